"""Our words behind theirs: in every character set, never over length, never a byte of theirs changed."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from pydicom.charset import convert_encodings, decode_bytes

from node.dicom.text import appended, charsets_of, decoded, own

KANJI = ("", "ISO 2022 IR 87")
KOREAN = ("", "ISO 2022 IR 149")
CHINESE = ("", "ISO 2022 IR 58")

# (value, character sets): PS3.5 Annex H, I, K examples and plain ones
TEXTS: list[tuple[bytes, tuple[str, ...]]] = [
    (b"Thorax 1.0 B30f", ("",)),
    (b"Sch\xe4del nativ", ("ISO_IR 100",)),
    (b"\x1b$B;3ED\x1b(B=\x1b$BB@O:\x1b(B", KANJI),
    (b"\x1b$B;3EDB@O:", KANJI),  # not set back to ASCII at its end
    (b"\x1b$)C\xb1\xe8\xc8\xf1\xc1\xdf", KOREAN),
    (b"\x1b$)A\xd0\xa1\xb6\xab", CHINESE),
    ("胸部平扫 1.0".encode("gb18030"), ("GB18030",)),
    ("胸部平扫".encode("gbk"), ("GBK",)),
    ("Θώρακας — тест 胸".encode(), ("ISO_IR 192",)),
    (b"\xd4\xcf\xc0\xde", ("ISO_IR 13",)),
    (b"\xb3\xe0\xe3", ("ISO_IR 144",)),
    (b"\xff\xfe broken \x80", ("ISO_IR 192",)),
    (b"\xff no set at all", ("",)),
    (b"\xe4 unknown set", ("ISO_IR 999",)),
]


@pytest.mark.parametrize(("raw", "sets"), TEXTS)
def test_what_fits_keeps_every_byte(raw: bytes, sets: tuple[str, ...]) -> None:
    out = appended(raw, " [LUM]", sets, 64)
    assert out.startswith(raw)
    assert out.endswith(b" [LUM]")
    assert out in (raw + b" [LUM]", raw + b"\x1b(B [LUM]")


@pytest.mark.parametrize(("raw", "sets"), TEXTS)
def test_what_does_not_fit_is_cut_at_a_character(raw: bytes, sets: tuple[str, ...]) -> None:
    for limit in range(8, 24):
        out = appended(raw * 6, " [LUM]", sets, limit)
        assert out.endswith(b"[LUM]")
        assert len(decoded(out, sets)) <= limit
        if sets[0] not in ("ISO_IR 999", "") or len(sets) > 1:
            told = decoded(out, sets)
            stem = told.removesuffix("[LUM]").rstrip()
            assert decoded(raw * 6, sets).startswith(stem)


def test_the_escape_back_to_ascii_is_added_only_where_it_is_missing() -> None:
    open_ended = b"\x1b$B;3ED"
    assert appended(open_ended, " x", KANJI, 64) == open_ended + b"\x1b(B x"
    assert appended(open_ended + b"\x1b(J", " x", KANJI, 64) == open_ended + b"\x1b(J x"
    told = decode_bytes(appended(open_ended, " x", KANJI, 64), convert_encodings(list(KANJI)), set())
    assert told == "山田 x"


@given(st.text(st.characters(codec="gb18030", exclude_characters="\\"), max_size=90), st.integers(7, 70))
@settings(max_examples=80, deadline=None)
def test_gb18030_of_any_length(stem: str, limit: int) -> None:
    out = appended(stem.encode("gb18030"), " [LUM]", ("GB18030",), limit)
    told = out.decode("gb18030")
    assert len(told) <= limit
    assert told.endswith("[LUM]")


def test_an_empty_stem_and_a_long_suffix() -> None:
    assert appended(b"", " [LUM]", ("",), 64) == b"[LUM]"
    assert appended(b"  \x00", " [LUM]", ("",), 64) == b"[LUM]"
    assert appended(b"Thorax", "x" * 80, ("",), 64) == b"x" * 64
    assert appended(b"Thorax", "é" * 80, ("ISO_IR 192",), 64).decode() == "é" * 64
    assert appended(b"Thorax  ", " [LUM]", ("",), 64) == b"Thorax [LUM]"


def test_our_words_in_their_set() -> None:
    assert own("gefiltert ü", ("ISO_IR 100",)) == b"gefiltert \xfc"
    assert own("gefiltert ü", ("ISO_IR 192",)) == "gefiltert ü".encode()
    assert own("gefiltert ü", ("",)) == b"gefiltert ?"
    assert own("two\\values\nand lines\x1b", ("",)) == b"twovaluesand lines"


def test_values_of_specific_character_set() -> None:
    assert charsets_of(b"") == ("",)
    assert charsets_of(b"\\ISO 2022 IR 87 ") == ("", "ISO 2022 IR 87")
    assert charsets_of(b"ISO_IR 100") == ("ISO_IR 100",)
