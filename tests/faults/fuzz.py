"""Seeded mutations of what scanners send: every case can be made again from the run's seed and its number."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from functools import cache

from node.dicom.parse import parse_header
from node.dicom.source import file_meta, text_of
from node.errors import SeriesError
from tests.dicom_samples import BIG, CORPUS, DEFLATED, EXPLICIT, IMPLICIT, enhanced, image, part10
from tests.faults.scale import SEED

_LARGEST = 9_000
"""Bytes of a seed: whatever a mutation of a longer one can break, one of a shorter one can."""

_NUMBERS = [
    0,
    1,
    2,
    7,
    8,
    0x7F,
    0x80,
    0xFE,
    0xFF,
    0x7FFF,
    0xFFFE,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 2,
    2**32 - 1,
]
_TAGS = [
    b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0",
    b"\x20\0\x0e\0UI", b"\x08\0\x40\x11SQ\0\0" + b"\xff" * 4,
    b"\xe0\x7f\x10\0", b"\x28\0\x08\0IS", b"\x20\0\x37\0DS", b"\0\0\0\0", b"\xff\xff\xff\xff",
]  # fmt: skip


def case(number: int) -> random.Random:
    """The dice of a case."""
    return random.Random(SEED * 1_000_003 + number)


def mutated(dice: random.Random, raw: bytes, others: Sequence[bytes]) -> bytes:
    """One to four changes of the kinds that parsers break on."""
    out = bytearray(raw)
    for _ in range(dice.randint(1, 4)):
        kind = dice.randrange(10)
        at = dice.randrange(len(out) + 1)
        if not out:
            return bytes(dice.randbytes(dice.randint(0, 40)))
        if kind <= 2:
            out[at % len(out)] = dice.randrange(256)
        elif kind == 3:
            width = dice.choice((1, 2, 4))
            value = dice.choice(_NUMBERS) & (1 << 8 * width) - 1
            out[at : at + width] = value.to_bytes(width, dice.choice(("little", "big")))
        elif kind == 4:
            del out[at : at + dice.randint(1, 64)]
        elif kind == 5:
            out[at:at] = out[at : at + dice.randint(1, 64)]
        elif kind == 6:
            out[at:at] = dice.choice(_TAGS)
        elif kind == 7:
            other = dice.choice(others)
            start = dice.randrange(len(other) + 1)
            out[at : at + dice.randint(0, 64)] = other[start : start + dice.randint(1, 200)]
        elif kind == 8:
            del out[at:]
        else:
            out[at : at + dice.randint(1, 16)] = dice.randbytes(dice.randint(1, 16))
    return bytes(out)


@cache
def data_sets() -> tuple[tuple[str, bytes], ...]:
    """(transfer syntax, encoded data set) of seeds: real headers beside the checkout, and some that are made here."""
    found: list[tuple[str, bytes]] = []
    for syntax in (EXPLICIT, IMPLICIT, BIG, DEFLATED):
        for made in (image(), enhanced(), enhanced(ct=True)):
            _take(found, part10(made, syntax))
    series = [sorted(p for p in each.glob("**/*") if p.is_file())[:1] for each in sorted(CORPUS.glob("*/*"))]
    for path in (path for paths in series for path in paths):
        _take(found, path.read_bytes()[: 1 << 20])
    for path in sorted(CORPUS.glob("odd/*")):
        _take(found, path.read_bytes())
    return tuple(found)


def _take(found: list[tuple[str, bytes]], raw: bytes) -> None:
    """Keep what stands in front of the pixels, and their beginning."""
    if raw[128:132] != b"DICM":
        return
    try:
        meta, offset = file_meta(raw)
    except SeriesError:
        return
    syntax, data = text_of(meta.get(0x00020010)), raw[offset:]
    if syntax != DEFLATED:
        try:
            _, at = parse_header(data, EXPLICIT if syntax not in (IMPLICIT, BIG) else syntax)
        except SeriesError:
            at = _LARGEST
        data = data[: at + 64]
    if len(data) <= _LARGEST and all(data[:2000] != other[:2000] for _, other in found):
        found.append((syntax, data))


def pdu(kind: int, body: bytes) -> bytes:
    """A PDU with the length that it has."""
    return struct.pack(">BBL", kind, 0, len(body)) + body
