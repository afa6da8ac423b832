"""A secret made to be found again: in clear, in parts, URL-quoted, in hex and in base64 at any offset."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np

_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789"


@dataclass(frozen=True)
class Canary:
    """A password of four words with characters between them that a URL, a shell or a regular expression reads.

    ``secret`` is what the server is to get, ``quoted`` what stands in a URL. Each word of it counts as the whole.
    """

    seed: int
    words: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        words = tuple("".join(rng.choice(list(_LETTERS), 11)) for _ in range(4))
        object.__setattr__(self, "words", words)

    @property
    def secret(self) -> str:
        a, b, c, d = self.words
        return f"{a}@{b}/{c}:%{d}"

    @property
    def quoted(self) -> str:
        return quote(self.secret, safe="")

    def forms(self) -> Iterator[bytes]:
        """Byte strings each of which gives the secret, or a word of it, away."""
        for word in self.words:
            raw = word.encode()
            yield raw
            yield raw[::-1]
            yield raw.hex().encode()
            yield raw.hex().upper().encode()
            yield from aligned(raw)

    def hits(self, data: bytes) -> list[str]:
        """Which of its forms stand in bytes, in UTF-16 too."""
        thin = data.replace(b"\0", b"")
        return [form.decode() for form in self.forms() if form in data or form in thin]


def aligned(raw: bytes) -> Iterator[bytes]:
    """What of the base64 of a text that has ``raw`` in it does not depend on what stands around it."""
    for before in range(3):
        inside = base64.b64encode(b"\0" * before + raw)
        first = (8 * before + 5) // 6
        last = (8 * (before + len(raw))) // 6
        yield inside[first:last]
        yield inside[first:last].translate(bytes.maketrans(b"+/", b"-_"))


def found(canaries: Iterable[Canary], name: str, data: bytes) -> list[str]:
    """Places, as ``name: form``, at which any of the canaries stands in bytes."""
    if data[:2] == b"\x1f\x8b":
        data += gzip.decompress(data)
    return [f"{name}: {form}" for canary in canaries for form in canary.hits(data)]


def found_in(canaries: Iterable[Canary], folder: Path, but: Iterable[Path] = ()) -> tuple[int, list[str]]:
    """How many files lie in a folder, and the hits in all of them but some."""
    known, told, n = list(canaries), list[str](), 0
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path not in but:
            n += 1
            told += found(known, f"{path.relative_to(folder)} (its name)", str(path).encode())
            told += found(known, str(path.relative_to(folder)), path.read_bytes())
    return n, told
