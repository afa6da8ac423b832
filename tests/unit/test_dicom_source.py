"""File meta information is read as it stands, whatever stands there."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from node.dicom.elements import LONG_VRS, Elements
from node.dicom.parse import EXPLICIT_LE, MalformedError, parse
from node.dicom.source import file_meta, text_of
from tests.parcels import ct, part10

_WHOLE = part10(ct(1, side=8))
_OFFSET = 144 + int.from_bytes(_WHOLE[140:144], "little")


def _by_the_parser(data: bytes) -> tuple[Elements, int]:
    """Element by element, each through the parser of data sets."""
    if data[128:132] != b"DICM":
        raise MalformedError("")
    meta: Elements = {}
    at = 132
    while data[at : at + 2] == b"\x02\x00":
        long = data[at + 4 : at + 6].decode("latin-1") in LONG_VRS
        start = at + 12 if long else at + 8
        length = int.from_bytes(data[start - 4 if long else start - 2 : start], "little")
        if start + length > len(data):
            raise MalformedError("")
        meta |= parse(data[at : start + length], EXPLICIT_LE)
        at = start + length
    if not text_of(meta.get(0x00020010)):
        raise MalformedError("")
    return meta, at


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.integers(128, _OFFSET + 20), st.integers(0, 255)), max_size=6),
    st.integers(140, len(_WHOLE)),
)
@example([], len(_WHOLE))
@example([(136, ord("S")), (137, ord("Q"))], len(_WHOLE))
@example([(136, ord("Z")), (137, ord("Z"))], len(_WHOLE))
@example([(136, 0), (137, 0)], len(_WHOLE))
def test_it_is_what_the_parser_of_data_sets_makes_of_each_element(
    changes: list[tuple[int, int]], end: int
) -> None:
    raw = bytearray(_WHOLE)
    for at, value in changes:
        raw[at] = value
    data = bytes(raw[:end])
    try:
        expected = _by_the_parser(data)
    except MalformedError:
        for each in (data, memoryview(data)):
            with pytest.raises(MalformedError):
                file_meta(each)
        return
    assert file_meta(data) == file_meta(memoryview(data)) == expected
