"""Transfer syntaxes as far as a header reader must know them, and how much it is ready to read.

Only the way a data set is written matters here (PS3.5 7 and Annex A); what is in the pixel data does not.
"""

from __future__ import annotations

import mmap
import zlib
from dataclasses import dataclass
from typing import Final, NamedTuple

from node.errors import HeaderFault

IMPLICIT_LE: Final = "1.2.840.10008.1.2"
EXPLICIT_LE: Final = "1.2.840.10008.1.2.1"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
EXPLICIT_BE: Final = "1.2.840.10008.1.2.2"
GE_IMPLICIT: Final = "1.2.840.113619.5.2"
"""GE's private syntax: an Implicit VR Little Endian data set with big endian pixel data."""

DEFLATED_SYNTAXES: Final = frozenset({DEFLATED, "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})
"""Syntaxes whose whole data set is deflated (PS3.5 A.5, A.7, A.11)."""

UNDEFINED: Final = 0xFFFFFFFF

_PIECE: Final = 64 << 10

SHORT_VRS: Final = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH"}
    | {b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}
)
"""VRs with a 16-bit length field (PS3.5 7.1.2); any other, known or to come, has 32 bits."""


class Encoding(NamedTuple):
    explicit: bool
    little: bool


IMPLICIT: Final = Encoding(explicit=False, little=True)


def encoding_of(transfer_syntax_uid: str) -> Encoding:
    """How the elements of a data set are written, after inflating where it is deflated.

    A syntax that is not known is Explicit VR Little Endian: all encapsulated ones are (PS3.5 A.4).
    """
    if transfer_syntax_uid in (IMPLICIT_LE, GE_IMPLICIT):
        return IMPLICIT
    return Encoding(explicit=True, little=transfer_syntax_uid != EXPLICIT_BE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most that a header may hold before it is taken for an attack or an accident.

    ``header_bytes`` bounds what lies in front of the pixel data, ``inflated_header_bytes`` the same of a
    deflated data set, of which ``inflation_ratio`` times its size may come out, or ``inflation_floor``.
    """

    depth: int = 64
    elements: int = 200_000
    items: int = 50_000
    header_bytes: int = 64 << 20
    inflated_header_bytes: int = 16 << 20
    inflation_ratio: int = 100
    inflation_floor: int = 1 << 20


LIMITS: Final = Limits()


def name(tag: int) -> str:
    """``(gggg,eeee)``, for messages."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def inflate(
    data: bytes | bytearray | memoryview, at_most: int, limits: Limits = LIMITS
) -> tuple[memoryview, bool]:
    """Inflate the beginning of a deflated data set (PS3.5 A.5: RFC 1951 without a zlib header).

    Parameters
    ----------
    data
        The deflated bytes, or as many of them as have come.
    at_most
        The most bytes to give back.

    Returns
    -------
    tuple[memoryview, bool]
        What came out, and whether it is all that there is or can be made of ``data``.

    Raises
    ------
    HeaderFault
        If the stream is corrupt, or blows up beyond ``limits`` (never more than ``at_most`` bytes are made).
    """
    allowed = max(limits.inflation_floor, limits.inflation_ratio * len(data))
    most = min(at_most, allowed + 1)
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    out = borrow(most)
    rest, tail, n = memoryview(data), memoryview(b""), 0
    try:
        while n < most and not machine.eof and (tail or rest):
            if not tail:
                tail, rest = rest[:_PIECE], rest[_PIECE:]
            piece = machine.decompress(tail, min(_PIECE, most - n))
            tail = memoryview(machine.unconsumed_tail)
            out[n : n + len(piece)] = piece
            n += len(piece)
    except zlib.error:
        raise HeaderFault("the deflated data set is corrupt") from None
    if n > allowed:
        raise HeaderFault("the deflated data set inflates beyond all bounds")
    return out[:n], machine.eof or (not tail and not rest and n < at_most)


def borrow(n: int) -> memoryview:
    """Writable memory of ``n`` bytes that goes back to the system as soon as nobody looks at it.

    What a thread's malloc once gave for something large it keeps, and there are many threads.
    """
    return memoryview(mmap.mmap(-1, n))[:n] if n > _PIECE else memoryview(bytearray(n))
