"""What every loader returns: a scan with its domains and a way to read it, and what was left out and why.

Nobody's name or number is kept. A patient is known by :func:`patient_key`, a hash; where an image lies on disk
stays inside of its source and is never shown.
"""

from __future__ import annotations

import hashlib
import hmac
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from engines.base import Modality, Unit, Volume
from training.errors import DataError

Run = tuple[int, int]


def patient_key(patient_id: str, *, secret: str = "") -> str:
    """Hash a patient's identifier: 16 hex digits of SHA-256, or of HMAC-SHA-256 (RFC 2104) with ``secret``.

    Whoever can list a hospital's numbers can hash them all: give a secret for anything that is not public.
    Case, blanks around and doubled within, and forms of one letter (Unicode NFKC) do not tell patients apart. The
    key has no name of a data set in it, so one patient who is in two folders is one patient for the split.

    Raises
    ------
    DataError
        The identifier is empty.
    """
    named = " ".join(unicodedata.normalize("NFKC", patient_id).strip(" \0").casefold().split()).encode()
    if not named:
        raise DataError("a patient's identifier is empty", hint="give each patient a code of its own")
    if secret:
        return hmac.new(secret.encode(), named, hashlib.sha256).hexdigest()[:16]
    return hashlib.sha256(named).hexdigest()[:16]


def scan_key(*parts: str) -> str:
    """Hash what tells a scan from all others (a Series Instance UID, a stack in it) to 16 hex digits."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


class Source(Protocol):
    """How a scan is read. An instance must survive pickling: loaders run in processes of their own."""

    def load(self) -> Volume:
        """Read the voxels; DataError where a file is no longer what the index saw."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A place in a scan that readers marked.

    Attributes
    ----------
    kind
        ``nodule`` (3 mm and more), ``small nodule`` or ``non-nodule``.
    centre
        (z, y, x) in voxels.
    box
        ((z0, z1), (y0, y1), (x0, x1)), half-open, over all readers.
    diameter_mm
        Of the sphere of the same volume, median of the readers; 0 where only a point was marked.
    n_readers
        How many marked it.
    labels
        Domain -> value, for those with a consensus.
    """

    kind: str
    centre: tuple[float, float, float]
    box: tuple[Run, Run, Run]
    diameter_mm: float
    n_readers: int
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """One stack of slices of one patient.

    Attributes
    ----------
    patient, key
        Hashes: of the patient, of the scan.
    domains
        Name -> value, for stratifying and for the generalisation figure; ``unknown`` where nothing says.
    shape, spacing_mm
        (z, y, x); the spacing along z is the usual one, 0 for a single slice.
    runs
        Half-open ranges of slices that are true neighbours: a missing slice starts a new run.
    notes
        What was repaired while indexing, in words, with no identifier in them.
    licence
        Under which the data may be used.
    study
        Hash of the study, empty where none is told: one study is of one patient, whatever numbers it was filed under.
    """

    patient: str
    key: str
    modality: Modality
    unit: Unit
    domains: Mapping[str, str]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    runs: tuple[Run, ...]
    licence: str
    source: Source = field(repr=False, compare=False)
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    study: str = ""

    def load(self) -> Volume:
        """Read the voxels: float32 (z, y, x), HU or arbitrary units, padding marked invalid.

        Raises
        ------
        DataError
            A file cannot be read, or is not what the index saw.
        """
        volume = self.source.load()
        if volume.shape != self.shape:
            raise DataError(
                f"scan {self.key} has shape {volume.shape} where the index saw {self.shape}",
                hint="the files changed since they were indexed: index the folder again",
            )
        return volume


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A file or series that is not used, for the person who runs the loader.

    ``what`` is a file's name relative to the root, or a scan's key. People put identifiers into names of
    folders, so it is shown, never stored; :meth:`Found.reasons` may be.
    """

    what: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """All that a loader saw: what can be used, in a fixed order, and what cannot."""

    scans: tuple[Scan, ...]
    left_out: tuple[LeftOut, ...]

    def patients(self) -> tuple[str, ...]:
        """Return the keys of the patients, sorted, each once."""
        return tuple(sorted({s.patient for s in self.scans}))

    def reasons(self) -> dict[str, int]:
        """Count what was left out, by reason."""
        counts: dict[str, int] = {}
        for one in self.left_out:
            counts[one.reason] = counts.get(one.reason, 0) + 1
        return counts


def relative(path: Path, root: Path) -> str:
    """Name a file for a message: relative to the root that the user gave."""
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return path.name


def folder_of(root: Path) -> Path:
    """Return the folder, or say that there is none.

    Raises
    ------
    DataError
        No folder there.
    """
    if not root.is_dir():
        raise DataError(f"no folder {root.name!r}", hint="give the folder that the data set was unpacked to")
    return root


def some(found: Found, what: str) -> Found:
    """Return ``found``, or say that nothing in it can be used, with the most frequent reasons.

    Raises
    ------
    DataError
        No scan.
    """
    if found.scans:
        return found
    common = sorted(found.reasons().items(), key=lambda item: (-item[1], item[0]))[:3]
    why = "; ".join(f"{n} x {reason}" for reason, n in common) or "there is no file"
    raise DataError(
        f"no {what} can be used: {why}", hint="see the documentation of the loader for its layout"
    )


def numbered(runs: Sequence[Run]) -> str:
    """Say how a stack is broken up, for a note."""
    return f"{len(runs)} contiguous runs of {', '.join(str(b - a) for a, b in runs)} slices"
