from __future__ import annotations

import contextlib
import struct
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.dsutils import decode
from pynetdicom.pdu import P_DATA_TF

from node.deliver import pdu


def elements(command: bytes) -> object:
    return decode(BytesIO(command), True, True)


@pytest.mark.parametrize("originator", [None, ("PACS", 7)])
def test_a_store_request_reads_as_pynetdicom_writes_it(originator: tuple[str, int] | None) -> None:
    request = C_STORE()
    request.MessageID = 513
    request.AffectedSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    request.AffectedSOPInstanceUID = "1.2.3.45"
    request.Priority = 0
    request.DataSet = BytesIO(b"\0\0")
    if originator:
        request.MoveOriginatorApplicationEntityTitle = originator[0]
        request.MoveOriginatorMessageID = originator[1]
    theirs = C_STORE_RQ()
    theirs.primitive_to_message(request)
    ours = elements(pdu.store_request(513, "1.2.840.10008.5.1.4.1.1.2", "1.2.3.45", originator))
    del theirs.command_set.CommandGroupLength
    del ours.CommandGroupLength  # type: ignore[attr-defined]
    assert ours == theirs.command_set


def test_an_echo_request_reads_as_pynetdicom_writes_it() -> None:
    request = C_ECHO()
    request.MessageID = 1
    theirs = C_ECHO_RQ()
    theirs.primitive_to_message(request)
    ours = elements(pdu.echo_request(1))
    assert ours.CommandField == theirs.command_set.CommandField == 0x30  # type: ignore[attr-defined]
    assert ours.CommandDataSetType == 0x0101  # type: ignore[attr-defined]


@given(st.binary(max_size=300), st.integers(2, 64).map(lambda n: 2 * n), st.integers(0, 127))
def test_fragments_put_together_are_the_command(command: bytes, size: int, context: int) -> None:
    context = 2 * context + 1
    raw, got, ends = pdu.command_pdus(context, command, size), b"", []
    while raw:
        kind, length = struct.unpack_from(">BxL", raw)
        assert kind == pdu.P_DATA
        body, raw = raw[6 : 6 + length], raw[6 + length :]
        P_DATA_TF().decode(struct.pack(">BxL", kind, length) + body)
        for piece in pdu.fragments(body):
            assert piece.context_id == context
            assert piece.is_command
            assert len(piece.data) <= size
            got += piece.data
            ends.append(piece.is_last)
    assert got == command
    assert ends[:-1] == [False] * (len(ends) - 1)
    assert all(ends[-1:])


@given(st.integers(-1, 2**32 - 1))
def test_a_fragment_is_even_and_within_what_the_peer_takes(peer_maximum: int) -> None:
    size = pdu.fragment_size(peer_maximum)
    assert size % 2 == 0
    assert size >= 2
    if peer_maximum > 7:
        assert size + 6 <= peer_maximum
    assert size + 6 <= pdu.LARGEST_FRAGMENT


def response(*elements: tuple[int, bytes]) -> bytes:
    return b"".join(struct.pack("<HHL", 0, n, len(v)) + v for n, v in elements)


def test_a_response_is_read() -> None:
    raw = response(
        (0x0000, b"\0\0\0\0"), (0x0100, b"\x01\x80"), (0x0120, b"\x07\x00"), (0x0900, b"\x00\xa7"),
        (0x0902, b"disk\x1bfull\0"),
    )  # fmt: skip
    got = pdu.response(raw)
    assert (got.command, got.responds_to, got.status, got.comment) == (0x8001, 7, 0xA700, "disk?full")


@pytest.mark.parametrize("missing", [0x0100, 0x0120, 0x0900])
def test_a_response_without_what_it_is_about_is_none(missing: int) -> None:
    parts = ((0x0100, b"\x01\x80"), (0x0120, b"\x07\x00"), (0x0900, b"\0\0"))
    with pytest.raises(pdu.ProtocolFault):
        pdu.response(response(*[p for p in parts if p[0] != missing]))


@given(st.binary(max_size=200))
def test_whatever_comes_is_an_answer_or_a_fault(raw: bytes) -> None:
    for read in (pdu.response, pdu.fragments, pdu.acceptance, lambda r: pdu.acceptance(bytes(68) + r)):
        with contextlib.suppress(pdu.ProtocolFault):
            read(raw)
