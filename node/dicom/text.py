"""Words of ours added to words of theirs, in whatever character set theirs are in.

What a source says stays the bytes that it was. Only when the sum is too long is the source's part cut, at a
character: multi-byte sets and code extensions make that a matter of decoding (PS3.5 6.1.2, PS3.3 C.12.1.1.2).
"""

from __future__ import annotations

import re
import warnings
from typing import Final

from pydicom.charset import convert_encodings, decode_bytes, encode_string

_G0: Final = re.compile(rb"\x1b(?:\$\(?[@-~]|\([@-~])")
_ASCII_IN_G0: Final = (b"\x1b(B", b"\x1b(J")
_RESET: Final = b"\x1b(B"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\\]")


def charsets_of(raw: bytes) -> tuple[str, ...]:
    """Values of Specific Character Set (0008,0005); an empty first one is the default repertoire."""
    return tuple(v.strip(b" \x00").decode("latin-1") for v in raw.split(b"\\"))


def decoded(raw: bytes, charsets: tuple[str, ...]) -> str:
    """Text for counting and for people. Bytes that the character set does not know count one each."""
    if raw.isascii() and b"\x1b" not in raw:
        return raw.decode("ascii")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return decode_bytes(raw, convert_encodings(list(charsets)), set())
    except Exception:  # codecs and pydicom raise and warn in many ways; the bytes are kept in any case
        return raw.decode("latin-1")


def own(words: str, charsets: tuple[str, ...]) -> bytes:
    """Our words in the source's character set; what it does not have becomes ``?``.

    Control characters and backslashes, which would end the value, are left out.
    """
    words = _CONTROL.sub("", words)
    if words.isascii():
        return words.encode("ascii")
    if charsets[0] in ("ISO_IR 192", "GB18030", "GBK", "ISO_IR 100"):
        codec = {"ISO_IR 192": "utf-8", "ISO_IR 100": "latin-1"}.get(charsets[0], charsets[0].lower())
        return words.encode(codec, "replace")
    return words.encode("ascii", "replace")


def appended(raw: bytes, words: str, charsets: tuple[str, ...], limit: int) -> bytes:
    """The source's text followed by ours, of at most ``limit`` characters.

    Parameters
    ----------
    raw
        The source's value; kept as it is, without trailing padding, or cut where the sum is too long.
    words
        Never cut, unless alone too long.
    charsets
        From :func:`charsets_of`.
    """
    ours = own(words, charsets)
    if not (stem := raw.rstrip(b" \x00")):
        ours = ours.lstrip(b" ")
    n_ours = len(decoded(ours, charsets))
    if n_ours >= limit:
        return own(words.strip()[:limit], charsets)[:limit] if ours.isascii() else _cut(ours, charsets, limit)
    stem = _cut(stem, charsets, limit - n_ours)
    return _closed(stem) + ours


def _cut(raw: bytes, charsets: tuple[str, ...], limit: int) -> bytes:
    told = decoded(raw, charsets)
    if len(told) <= limit:
        return raw
    told = told[:limit].rstrip()
    if raw.isascii() and b"\x1b" not in raw:
        return told.encode("ascii")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            out = bytes(encode_string(told, convert_encodings(list(charsets))))
    except Exception:  # as in decoded()
        out = b""
    if out and decoded(out, charsets) == told:
        return out
    # Cut at a byte that is certain to be a character: the ASCII at the beginning.
    head = re.match(rb"[ -~]*", raw)
    return head.group()[:limit].rstrip() if head else b""


def _closed(raw: bytes) -> bytes:
    """With the escape that makes G0 ASCII again, where the text leaves it otherwise (PS3.5 6.1.2.5.3)."""
    designated = _G0.findall(raw)
    if designated and designated[-1] not in _ASCII_IN_G0:
        return raw + _RESET
    return raw
