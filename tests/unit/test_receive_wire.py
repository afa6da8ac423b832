"""The byte stream of a peer: every legal stream is understood however it is cut, no stream does any harm."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.receive.commands import LARGEST_COMMAND_SET
from node.receive.wire import (
    LARGEST_REQUEST,
    SLACK,
    CommandSet,
    Data,
    DataEnd,
    Fault,
    Happening,
    Pdu,
    Reason,
    Wire,
)
from tests.senders import ABORT, RELEASE, associate_rq, cancel_rq, echo_rq, p_data, pdv, store_rq, us

CONTEXTS = frozenset({1, 3, 5})
LARGEST = 4096


def established() -> Wire:
    wire = Wire(LARGEST)
    wire.establish(CONTEXTS)
    return wire


def feed(wire: Wire, stream: bytes, cuts: list[int] | None = None) -> list[Happening]:
    """Feed a stream in pieces, each in a buffer that is overwritten afterwards, as the door does it."""
    out: list[Happening] = []
    at = 0
    for cut in [*sorted(c for c in cuts or [] if c < len(stream)), len(stream)]:
        buffer = bytearray(stream[at:cut])
        for happening in wire.feed(memoryview(buffer)):
            if isinstance(happening, Data):
                out.append(Data(happening.context_id, [memoryview(b"".join(happening.pieces))]))
            else:
                out.append(happening)
        buffer[:] = b"\xee" * len(buffer)
        at = cut
    return out


def joined(happenings: list[Happening]) -> list[object]:
    """What happened, with the pieces of each data set joined."""
    out: list[object] = []
    open_: dict[int, bytearray] = {}
    for one in happenings:
        if isinstance(one, Data):
            open_.setdefault(one.context_id, bytearray()).extend(one.pieces[0])
        elif isinstance(one, DataEnd):
            out.append((one.context_id, bytes(open_.pop(one.context_id, b""))))
        elif isinstance(one, CommandSet):
            out.append((one.context_id, one.command.raw))
        else:
            out.append(one)
    assert not open_
    return out


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(c for c in cuts if c <= len(data)), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


fragments = st.lists(st.integers(0, 3000), max_size=6)


@st.composite
def legal_streams(draw: st.DrawFn) -> tuple[bytes, list[object]]:
    """Messages on several contexts, fragmented, interleaved and packed into PDUs at will."""
    queues: dict[int, list[tuple[bytes, object | None]]] = {}
    for context in sorted(draw(st.sets(st.sampled_from(sorted(CONTEXTS)), min_size=1))):
        queue: list[tuple[bytes, object | None]] = []
        for _ in range(draw(st.integers(1, 3))):
            data = draw(st.one_of(st.none(), st.binary(max_size=3000)))
            command = (
                store_rq("1.2.3") if data is not None else draw(st.sampled_from([echo_rq(), cancel_rq()]))
            )
            for bits, content in ((1, command), (0, data)):
                if content is None:
                    continue
                parts = pieces(content, draw(fragments))
                for n, part in enumerate(parts, 1):
                    last = n == len(parts)
                    queue.append((pdv(context, bits | 2 * last, part), (context, content) if last else None))
        queues[context] = queue
    body, told = [], []
    while any(queues.values()):
        context = draw(st.sampled_from(sorted(c for c, queue in queues.items() if queue)))
        raw, happened = queues[context].pop(0)
        body.append(raw)
        if happened is not None:
            told.append(happened)
    stream, pdu = b"", []
    for raw in body:
        if pdu and (sum(map(len, pdu)) + len(raw) > LARGEST or draw(st.booleans())):
            stream, pdu = stream + p_data(*pdu), []
        pdu.append(raw)
    return stream + p_data(*pdu), told


@settings(max_examples=150, deadline=None)
@given(legal_streams(), st.lists(st.integers(0, 20000), max_size=12))
def test_a_legal_stream_is_understood_however_it_is_cut(
    stream: tuple[bytes, list[object]], cuts: list[int]
) -> None:
    raw, told = stream
    wire = established()
    assert joined(feed(wire, raw, cuts)) == told
    assert not wire.partial
    assert not wire.in_message
    assert not wire.broken


@settings(max_examples=25, deadline=None)
@given(legal_streams())
def test_a_legal_stream_is_understood_byte_by_byte(stream: tuple[bytes, list[object]]) -> None:
    raw, told = stream
    assert joined(feed(established(), raw, list(range(len(raw))))) == told


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_stream_does_harm(data: st.DataObject) -> None:
    """Mutated streams and noise: nothing is raised, a fault is the last thing that ever happens."""
    raw = bytearray(data.draw(legal_streams())[0])
    for _ in range(data.draw(st.integers(0, 8))):
        at = data.draw(st.integers(0, max(len(raw) - 1, 0)))
        how = data.draw(st.sampled_from(["flip", "cut", "noise", "double"]))
        if how == "flip" and raw:
            raw[at] ^= data.draw(st.integers(1, 255))
        elif how == "cut":
            del raw[at : at + data.draw(st.integers(1, 50))]
        elif how == "noise":
            raw[at:at] = data.draw(st.binary(max_size=40))
        else:
            raw += raw[at : at + 200]
    wire = established()
    happenings = feed(wire, bytes(raw), data.draw(st.lists(st.integers(0, 20000), max_size=5)))
    faults = [n for n, one in enumerate(happenings) if isinstance(one, Fault)]
    assert faults in ([], [len(happenings) - 1])
    assert wire.broken == bool(faults)
    if faults:
        assert wire.feed(memoryview(bytes(raw))) == []
    assert sum(len(one.pieces[0]) for one in happenings if isinstance(one, Data)) <= len(raw)


def test_data_comes_as_it_arrives_not_when_it_is_complete() -> None:
    wire = established()
    data = bytes(range(250)) * 16
    feed(wire, p_data(pdv(1, 3, store_rq("1.2.3"))))
    raw = p_data(pdv(1, 2, data))
    first = feed(wire, raw[:1000])
    assert [type(one) for one in first] == [Data]
    assert bytes(first[0].pieces[0]) == data[: 1000 - 12]  # type: ignore[union-attr]
    assert wire.partial
    assert wire.in_message


@pytest.mark.parametrize("raw", [RELEASE, ABORT], ids=["release", "abort"])
def test_other_pdus_come_whole(raw: bytes) -> None:
    wire = established()
    stream = p_data(pdv(1, 3, echo_rq())) + raw
    for cuts in ([], [len(stream) - 3], list(range(len(stream)))):
        wire = established()
        happenings = feed(wire, stream, cuts)
        assert happenings[-1] == Pdu(raw[0], raw)
        assert len(happenings) == 2
        assert wire.pdus == 2


def test_an_association_request_comes_whole_and_data_before_it_is_a_fault() -> None:
    request = associate_rq([(1, "1.2", ["1.3"])])
    assert feed(Wire(LARGEST), request, [3, 9, 80]) == [Pdu(1, request)]
    assert feed(Wire(LARGEST), p_data(pdv(1, 3, echo_rq()))) == [
        Fault(Reason.UNEXPECTED_PDU, "PDU before an association request")
    ]


def header(kind: int, length: int) -> bytes:
    return struct.pack(">BBL", kind, 0, length)


C, D = store_rq("1.2.3"), b"data"
FAULTS = {
    "unknown PDU type": (header(8, 4), Reason.UNRECOGNIZED_PDU),
    "PDU type zero": (header(0, 4), Reason.UNRECOGNIZED_PDU),
    "second request": (header(1, 100), Reason.UNEXPECTED_PDU),
    "acceptance": (header(2, 100), Reason.UNEXPECTED_PDU),
    "rejection": (header(3, 4), Reason.UNEXPECTED_PDU),
    "release response": (header(6, 4), Reason.UNEXPECTED_PDU),
    "no PDV": (header(4, 0), Reason.INVALID_PARAMETER),
    "less than a PDV": (header(4, 5), Reason.INVALID_PARAMETER),
    "PDU over the cap": (header(4, LARGEST + SLACK + 1), Reason.INVALID_PARAMETER),
    "PDU of 2 GiB": (header(4, 2**31), Reason.INVALID_PARAMETER),
    "PDU of 4 GiB": (header(4, 2**32 - 1), Reason.INVALID_PARAMETER),
    "release of 4 GiB": (header(5, 2**32 - 1), Reason.INVALID_PARAMETER),
    "release of nothing": (header(5, 0), Reason.INVALID_PARAMETER),
    "PDV length zero": (header(4, 6) + struct.pack(">LBB", 0, 1, 3), Reason.INVALID_PARAMETER),
    "PDV length one": (header(4, 6) + struct.pack(">LBB", 1, 1, 3), Reason.INVALID_PARAMETER),
    "PDV over its PDU": (header(4, 10) + struct.pack(">LBB", 7, 1, 3), Reason.INVALID_PARAMETER),
    "PDV of 4 GiB": (header(4, 10) + struct.pack(">LBB", 2**32 - 1, 1, 3), Reason.INVALID_PARAMETER),
    "bytes behind the PDVs": (
        header(4, len(pdv(1, 3, C)) + 3) + pdv(1, 3, C) + b"xyz",
        Reason.INVALID_PARAMETER,
    ),
    "context not accepted": (p_data(pdv(7, 3, C)), Reason.INVALID_PARAMETER),
    "context even": (p_data(pdv(2, 3, C)), Reason.INVALID_PARAMETER),
    "data without a command": (p_data(pdv(1, 2, D)), Reason.UNEXPECTED_PARAMETER),
    "data on another context": (p_data(pdv(1, 3, C), pdv(3, 2, D)), Reason.UNEXPECTED_PARAMETER),
    "data where none was announced": (
        p_data(pdv(1, 3, echo_rq()), pdv(1, 2, D)),
        Reason.UNEXPECTED_PARAMETER,
    ),
    "command inside a data set": (
        p_data(pdv(1, 3, C), pdv(1, 0, D), pdv(1, 3, C)),
        Reason.UNEXPECTED_PARAMETER,
    ),
    "command that is none": (p_data(pdv(1, 3, b"\1\2\3")), Reason.INVALID_PARAMETER),
    "empty command": (p_data(pdv(1, 3, b"")), Reason.INVALID_PARAMETER),
    "command too long": (
        b"".join(p_data(pdv(1, 1, bytes(4000))) for _ in range(LARGEST_COMMAND_SET // 4000 + 1)),
        Reason.INVALID_PARAMETER,
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_have_their_reason(case: str) -> None:
    raw, reason = FAULTS[case]
    for cuts in ([], list(range(len(raw)))):
        happenings = feed(established(), raw + RELEASE, cuts)
        assert isinstance(happenings[-1], Fault)
        assert happenings[-1].reason is reason
        assert not any(isinstance(one, Pdu | DataEnd) for one in happenings)


@pytest.mark.parametrize(
    ("raw", "is_fault"),
    [
        (header(1, LARGEST_REQUEST), False),
        (header(1, LARGEST_REQUEST + 1), True),
        (header(1, 2**32 - 1), True),
        (header(7, 4), False),
        (header(7, 2**32 - 1), True),
        (header(5, 4), True),
        (header(0x16, 0x03010200), True),
    ],
    ids=[
        "request at its cap",
        "request over it",
        "request of 4 GiB",
        "abort",
        "long abort",
        "release",
        "TLS",
    ],
)
def test_before_an_association_only_a_request_of_bounded_length(raw: bytes, is_fault: bool) -> None:
    assert any(isinstance(one, Fault) for one in feed(Wire(LARGEST), raw)) is is_fault


def test_messages_at_once_are_bounded() -> None:
    wire = Wire(LARGEST)
    wire.establish(frozenset(range(1, 256, 2)))
    happenings = feed(wire, b"".join(p_data(pdv(c, 3, C)) for c in range(1, 200, 2)))
    assert isinstance(happenings[-1], Fault)
    assert len(happenings) < 20


def test_what_came_before_a_fault_still_counts() -> None:
    good = p_data(pdv(1, 3, C), pdv(1, 2, D))
    happenings = feed(established(), good + header(9, 1))
    assert [type(one) for one in happenings] == [CommandSet, Data, DataEnd, Fault]


def test_only_the_two_lowest_bits_of_the_control_header_count() -> None:
    happenings = feed(established(), p_data(pdv(1, 0xFF, C), pdv(1, 0xFE, D)))
    assert [type(one) for one in happenings] == [CommandSet, Data, DataEnd]


def test_an_odd_number_of_bytes_and_none_at_all_are_fragments_too() -> None:
    parts = [pdv(1, 3, C), pdv(1, 0, b""), pdv(1, 0, b"a"), pdv(1, 0, b""), pdv(1, 0, b"bcd"), pdv(1, 2, b"")]
    assert joined(feed(established(), p_data(*parts)))[1:] == [(1, b"abcd")]
    assert us(1) == b"\1\0"
