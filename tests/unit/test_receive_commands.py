"""Command sets and association requests: read what peers send, write what peers can read."""

from __future__ import annotations

import struct
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom.dsutils import decode
from pynetdicom.pdu import A_ASSOCIATE_RQ, P_DATA_TF

from node.dicom.ours import IMPLEMENTATION_CLASS_UID
from node.receive import part10
from node.receive.associate import RequestError, tidy
from node.receive.commands import CommandSetError, answer, as_pdus, parse, uid_text
from node.receive.contexts import STORAGE_CLASSES, Contexts, transfer_syntaxes
from tests.senders import (
    CT,
    EXPLICIT,
    IMPLICIT,
    VERIFICATION,
    associate_rq,
    cancel_rq,
    command_set,
    echo_rq,
    item,
    store_rq,
    ui,
    us,
)


def test_a_store_request_is_read() -> None:
    command = parse(store_rq("1.2.3", CT, 77))
    assert command.is_store
    assert command.is_request
    assert command.has_data
    assert (command.message_id, command.sop_class_uid, command.sop_instance_uid) == (77, CT, "1.2.3")


def test_what_needs_no_answer() -> None:
    assert parse(echo_rq()).is_request
    assert not parse(cancel_rq()).is_request
    assert not parse(answer(parse(store_rq("1.2.3")), 0)).is_request


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"1.2.3", "1.2.3"), (b"1.2.3\0", "1.2.3"), (b"1.2.3 ", "1.2.3"), (b"1.02.3", "1.02.3"),
        (b"1." + b"2" * 62, "1." + "2" * 62), (b"1." + b"2" * 63, ""), (b"", ""), (b"1.2\0.3", ""),
        (b"../../etc", ""), (b"1.2/3", ""), (b"1.2.3\n", ""), (b" 1.2", ""), (b"\xff\xfe", ""),
        (b"1.2.a", ""), (b"1.2.3\0\0\0", "1.2.3"),
    ],
)  # fmt: skip
def test_a_uid_is_digits_and_dots(raw: bytes, text: str) -> None:
    assert uid_text(raw) == text


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\0", store_rq("1.2")[:-1], command_set({0x100: us(1)}), command_set({0x800: us(1)}),
        command_set({0x100: b"\1", 0x800: us(1)}), command_set({0x100: b"", 0x800: us(1)}),
        struct.pack("<HHL", 0, 0x100, 2**32 - 1), struct.pack("<HHL", 8, 0x100, 2) + us(1),
        command_set({0x100: us(1), 0x800: us(1)}) + struct.pack("<HHL", 0, 0x100, 2) + us(2),
    ],
)  # fmt: skip
def test_what_is_no_command_set_is_refused(raw: bytes) -> None:
    with pytest.raises(CommandSetError):
        parse(raw)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6))
def test_no_bytes_do_harm(noise: bytes, edits: list[tuple[int, int]]) -> None:
    raw = bytearray(store_rq("1.2.3"))
    for at, value in edits:
        raw[at % len(raw)] = value
    for one in (noise, bytes(raw)):
        try:
            command = parse(one)
        except CommandSetError:
            continue
        assert len(command.sop_instance_uid) <= 64
        answer(command, 0xC000, "x")


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=200),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
    st.sampled_from([0, 1, 7, 8, 100, 128, 4096]),
)
def test_an_answer_is_what_pynetdicom_reads(comment: str, status: int, number: int, largest: int) -> None:
    command = parse(store_rq("1.2.3.4", CT, number))
    raw = as_pdus(5, answer(command, status, comment), largest)
    got, at = b"", 0
    while at < len(raw):
        length = struct.unpack_from(">L", raw, at + 2)[0]
        assert not largest or length <= max(largest, 8)
        pdu = P_DATA_TF()
        pdu.decode(raw[at : at + 6 + length])
        (value,) = pdu.presentation_data_value_items
        assert value.context_id == 5
        control, content = value.presentation_data_value[0], value.presentation_data_value[1:]
        got += content
        at += 6 + length
        assert control == (3 if at == len(raw) else 1)
    ds = decode(BytesIO(got), True, True)
    assert ds.CommandField == 0x8001
    assert ds.Status == status
    assert ds.MessageIDBeingRespondedTo == number
    assert ds.AffectedSOPInstanceUID == "1.2.3.4"
    assert ds.CommandGroupLength == len(got) - 12
    assert len(ds.get("ErrorComment", "")) <= 64


def test_a_uid_that_is_none_is_not_said_back() -> None:
    ds: Dataset = decode(BytesIO(answer(parse(store_rq("../x")), 0x117, "no UID")), True, True)
    assert "AffectedSOPInstanceUID" not in ds
    assert ds.Status == 0x117


# --- A-ASSOCIATE-RQ ---------------------------------------------------------------------------------


def read(raw: bytes) -> A_ASSOCIATE_RQ:
    pdu = A_ASSOCIATE_RQ()
    pdu.decode(raw)
    pdu.to_primitive()
    return pdu


def test_what_is_not_negotiated_is_left_out() -> None:
    """PS3.8 9.3.2: unrecognized items are ignored. pynetdicom would abort on the first of these."""
    contexts = [(1, CT, [EXPLICIT, IMPLICIT]), (3, VERIFICATION, [IMPLICIT])]
    raw = associate_rq(
        contexts,
        extra=item(0x7F, b"unheard of"),
        extra_user=item(0x60, b"?")
        + item(0x58, b"\2\1\0\1a\0\1b")
        + item(0x53, b"\0\5\0\5")
        + item(0x54, b"odd"),
    )
    with pytest.raises(Exception):  # noqa: B017 - whatever pynetdicom raises
        read(raw)
    pdu = read(tidy(raw))
    assert pdu.called_ae_title == "LUMINODE"
    assert [(cx.presentation_context_id, cx.abstract_syntax) for cx in pdu.presentation_context] == [
        (1, CT),
        (3, VERIFICATION),
    ]
    assert pdu.presentation_context[0].transfer_syntax == [EXPLICIT, IMPLICIT]
    assert pdu.user_information.maximum_length == 16384


def test_padding_of_uids_is_taken_off() -> None:
    raw = associate_rq(
        [(1, CT + "\0", [EXPLICIT + "\0", IMPLICIT + " "])], application="1.2.840.10008.3.1.1.1\0"
    )
    pdu = read(tidy(raw))
    assert pdu.presentation_context[0].abstract_syntax == CT
    assert pdu.presentation_context[0].transfer_syntax == [EXPLICIT, IMPLICIT]
    assert pdu.application_context_name == "1.2.840.10008.3.1.1.1"


@pytest.mark.parametrize(
    "raw",
    [
        b"\1\0\0\0\0\4abcd",
        associate_rq([(2, CT, [EXPLICIT])]),
        associate_rq([(1, CT, [EXPLICIT]), (1, CT, [IMPLICIT])]),
        associate_rq([(1, CT, [EXPLICIT])])[:-3],
        associate_rq([(1, CT, [EXPLICIT])]) + b"\x50\0\xff\xff",
    ],
)
def test_requests_that_cannot_be_read(raw: bytes) -> None:
    with pytest.raises(RequestError):
        tidy(raw)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=10), st.integers(0, 400))
def test_no_request_does_harm(edits: list[tuple[int, int]], cut: int) -> None:
    raw = bytearray(associate_rq([(1, CT, [EXPLICIT, IMPLICIT]), (3, VERIFICATION, [IMPLICIT])]))
    for at, value in edits:
        raw[6 + at % (len(raw) - 6)] = value
    for one in (bytes(raw), bytes(raw[: max(cut, 6)])):
        try:
            tidy(one)
        except RequestError:
            continue


@pytest.mark.parametrize("largest", [0, 7, 8, 9, 101, 4097, 16384])
def test_fragments_are_even_but_for_the_last(largest: int) -> None:
    """PS3.8 Annex E: DCMTK gives up on an odd one. A result of storage commitment has many fragments."""
    data = bytes(range(256)) * 40 + b"x"
    raw, pieces = as_pdus(1, data, largest, is_command=False), []
    while raw:
        (length,) = struct.unpack_from(">L", raw, 2)
        assert length <= max(largest, 8) or not largest
        pieces.append(raw[12 : 6 + length])
        raw = raw[6 + length :]
    assert b"".join(pieces) == data
    assert not any(len(piece) % 2 for piece in pieces[:-1])


# --- presentation contexts and file meta information -------------------------------------------------


def test_every_transfer_syntax_that_pydicom_knows_is_accepted_lossless_first() -> None:
    from pydicom.uid import AllTransferSyntaxes

    syntaxes = transfer_syntaxes()
    assert set(AllTransferSyntaxes) <= set(syntaxes)
    assert len(set(syntaxes)) == len(syntaxes)
    assert syntaxes[:2] == (EXPLICIT, IMPLICIT)
    lossless = syntaxes.index("1.2.840.10008.1.2.4.70")
    assert all(
        syntaxes.index(lossy) > lossless for lossy in ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.81")
    )
    assert transfer_syntaxes([IMPLICIT, EXPLICIT, "1.2.3"]) == (EXPLICIT, IMPLICIT, "1.2.3")


def test_only_what_was_proposed_is_supported_and_private_classes_are() -> None:
    contexts = Contexts(["1.3.46.670589.11.0.0.12.1"])
    pdu = read(
        tidy(
            associate_rq(
                [(1, CT, [EXPLICIT]), (3, CT, [IMPLICIT]), (5, "1.2.3.4", [IMPLICIT]),
                 (7, "1.3.46.670589.11.0.0.12.1", [IMPLICIT]), (9, VERIFICATION, [IMPLICIT])]
            )
        )
    )  # fmt: skip
    supported = contexts.supported(pdu.to_primitive().presentation_context_definition_list)
    assert [cx.abstract_syntax for cx in supported] == [CT, "1.3.46.670589.11.0.0.12.1", VERIFICATION]
    assert contexts.supported(pdu.to_primitive().presentation_context_definition_list)[0] is supported[0]
    assert {"1.2.840.10008.5.1.4.1.1.4.3", "1.2.840.10008.5.1.4.1.1.88.67"} <= STORAGE_CLASSES


@pytest.mark.parametrize("uid", ["1.2", "1.2.3", "1." + "2" * 62])
def test_the_head_of_a_file_is_conformant_and_always_as_long(uid: str) -> None:
    head = part10.head(CT, uid, EXPLICIT)
    assert len(head) == part10.OFFSET
    ds = dcmread(BytesIO(head + b"\x08\0\x18\0UI" + us(len(ui(uid))) + ui(uid)))
    assert ds.file_meta.MediaStorageSOPInstanceUID == uid == ds.SOPInstanceUID
    assert ds.file_meta.MediaStorageSOPClassUID == CT
    assert ds.file_meta.TransferSyntaxUID == EXPLICIT
    assert ds.file_meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert ds.file_meta.FileMetaInformationGroupLength == part10.OFFSET - 132 - 12
    assert head[:128] == bytes(128)
