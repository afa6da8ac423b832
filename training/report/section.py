"""What a section of the report is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.catalog import Catalog


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What there is to measure with.

    Attributes
    ----------
    catalog
        The engines.
    corpus
        Folder of real series, laid out in any way; None where there is none: sections that need it say so.
    data
        Folder of the folders of shards (training/prepare.py).
    runs
        Folder of trainings, for networks that are no engines.
    out
        Folder of the report; pictures go to ``out/images``.
    quick
        A small part of everything, to see that it works: for tests.
    threads
        Of engines.
    say
        Tells a person how far it is.
    """

    catalog: Catalog
    corpus: Path | None
    data: Path
    runs: Path
    out: Path
    quick: bool = False
    threads: int = 1
    say: Callable[[str], None] = lambda _: None

    def image(self, name: str) -> Path:
        """Where the picture ``name`` goes; its folder is made."""
        folder = self.out / "images"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One page.

    Attributes
    ----------
    name
        Of its files: ``out/NAME.md``, ``out/NAME.json``.
    text
        Markdown below the title; links to pictures as ``images/...``.
    figures
        Everything that was measured, as JSON.
    """

    name: str
    title: str
    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)
