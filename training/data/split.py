"""Who is trained on, who is tuned on, who is tested on: by patient, never by slice or scan.

A patient's place follows from a salted hash of the key, so it does not depend on the order of files. Strata
(vendor, site ...) are apportioned one after the other by largest remainder, with what rounding cost one part
carried to the next stratum, so that many small strata do not starve the small parts. The hash of the whole
split goes into every checkpoint: a network that saw a test patient cannot pass for one that did not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from training.data.records import Scan
from training.errors import SplitError

PARTS: Final = ("train", "validation", "test")
FORMAT: Final = 1
_ASK: Final = "make a new split, or restore the file that the checkpoint was trained with"


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Patients by part. Build one with :func:`make` or :func:`from_parts`, which check it.

    Attributes
    ----------
    parts
        Part -> patient keys, sorted.
    salt, fractions, by
        What it was made with; empty for a split that was given.
    """

    parts: Mapping[str, tuple[str, ...]]
    salt: str = ""
    fractions: tuple[float, ...] = ()
    by: tuple[str, ...] = ()
    _places: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        places: dict[str, str] = {}
        for part, patients in self.parts.items():
            for patient in patients:
                if patient in places:
                    where = f"{places[patient]} and {part}" if places[patient] != part else f"{part}, twice"
                    raise SplitError(
                        f"patient {patient} is in {where}",
                        hint="put all scans of a patient into one part",
                    )
                places[patient] = part
        object.__setattr__(self, "_places", places)

    def content(self) -> dict[str, Any]:
        """Return what is hashed and saved, in plain types."""
        return {
            "format": FORMAT,
            "salt": self.salt,
            "fractions": list(self.fractions),
            "by": list(self.by),
            "parts": {part: sorted(self.parts[part]) for part in sorted(self.parts)},
        }

    @property
    def split_hash(self) -> str:
        """SHA-256 of the canonical JSON (sorted keys, no blanks, ASCII)."""
        text = json.dumps(self.content(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def part_of(self, patient: str) -> str:
        """Return the part of a patient.

        Raises
        ------
        SplitError
            The split does not know the patient.
        """
        if patient not in self._places:
            raise SplitError(f"the split does not know patient {patient}", hint=_ASK)
        return self._places[patient]

    def select(self, scans: Iterable[Scan], part: str) -> tuple[Scan, ...]:
        """Return the scans of a part, having checked *all* of them.

        Raises
        ------
        SplitError
            No such part, a scan of an unknown patient, or one scan under two patients.
        """
        if part not in self.parts:
            raise SplitError(
                f"no part {part!r}; there are {', '.join(self.parts)}", hint="see training.data.split"
            )
        known = list(scans)
        check(self, known)
        return tuple(s for s in known if self._places[s.patient] == part)


def check(split: Split, scans: Iterable[Scan]) -> None:
    """Refuse scans that leak: a scan or a study under two patients, or a patient the split does not know.

    Raises
    ------
    SplitError
        Either.
    """
    owner: dict[str, str] = {}
    for scan in scans:
        split.part_of(scan.patient)
        if owner.setdefault(scan.key, scan.patient) != scan.patient:
            raise SplitError(
                f"scan {scan.key} belongs to patients {owner[scan.key]} and {scan.patient}",
                hint="the same series was filed under two patient IDs: correct one of them",
            )
        if scan.study and owner.setdefault(scan.study, scan.patient) != scan.patient:
            raise SplitError(
                f"scan {scan.key} of patient {scan.patient} is of a study of patient {owner[scan.study]}",
                hint="one study was filed under two patient IDs, so one person would count as two: correct one of them",
            )


def _strata(scans: Sequence[Scan], by: Sequence[str]) -> dict[str, list[str]]:
    """Patients by the values that all their scans together have."""
    seen: dict[str, list[set[str]]] = {}
    for scan in scans:
        values = seen.setdefault(scan.patient, [set() for _ in by])
        for held, name in zip(values, by, strict=True):
            if name not in scan.domains:
                raise SplitError(
                    f"scan {scan.key} has no domain {name!r}; it has {', '.join(sorted(scan.domains))}",
                    hint="stratify by domains that every scan has",
                )
            held.add(scan.domains[name])
    strata: dict[str, list[str]] = {}
    for patient, values in seen.items():
        strata.setdefault(json.dumps([sorted(v) for v in values]), []).append(patient)
    return strata


def make(
    scans: Sequence[Scan],
    *,
    salt: str,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    by: Sequence[str] = (),
) -> Split:
    """Split the patients of ``scans`` into train, validation and test.

    Parameters
    ----------
    salt
        Any text; another one gives another split.
    fractions
        Of the patients, for :data:`PARTS`; they add up to 1.
    by
        Domains whose shares all parts should have.

    Raises
    ------
    SplitError
        Fractions that are none, too few patients to give every wanted part one, or one scan under two patients.
    """
    shares = tuple(float(f) for f in fractions)
    if len(shares) != len(PARTS) or not min(shares) >= 0 or not abs(sum(shares) - 1) <= 1e-9:
        raise SplitError(
            f"fractions {shares} are not {len(PARTS)} shares of 1", hint="for example 0.7, 0.15, 0.15"
        )
    strata = _strata(scans, by)
    n_patients = sum(map(len, strata.values()))
    wanted = [part for part, share in zip(PARTS, shares, strict=True) if share > 0]
    if n_patients < len(wanted):
        raise SplitError(
            f"{n_patients} patients cannot fill {' and '.join(wanted)}",
            hint="add patients; scans or slices of one patient are never divided",
        )
    places: dict[str, list[str]] = {part: [] for part in PARTS}
    owed = [0.0] * len(PARTS)
    for name in sorted(strata):
        order = sorted(strata[name], key=lambda p: hashlib.sha256(f"{salt}\0{p}".encode()).hexdigest())
        counts = _apportion(len(order), shares, owed)
        for part, count in zip(PARTS, counts, strict=True):
            places[part] += order[:count]
            order = order[count:]
    _fill(places, wanted, salt)
    split = Split(
        parts={part: tuple(sorted(places[part])) for part in PARTS},
        salt=salt,
        fractions=shares,
        by=tuple(by),
    )
    check(split, scans)
    return split


def _apportion(n: int, shares: Sequence[float], owed: list[float]) -> list[int]:
    """Largest remainder (Hamilton's method); ``owed`` carries what rounding cost each part until now."""
    quotas = [n * share for share in shares]
    counts = [int(q) for q in quotas]
    for _ in range(n - sum(counts)):
        due = [o + q - c if s > 0 else -1e9 for o, q, c, s in zip(owed, quotas, counts, shares, strict=True)]
        counts[due.index(max(due))] += 1
    owed[:] = [o + q - c for o, q, c in zip(owed, quotas, counts, strict=True)]
    return counts


def _fill(places: dict[str, list[str]], wanted: Sequence[str], salt: str) -> None:
    """Give every wanted part a patient, from the largest one."""
    for part in wanted:
        if not places[part]:
            largest = max(wanted, key=lambda p: len(places[p]))
            moved = min(
                places[largest], key=lambda p: hashlib.sha256(f"{salt}\0{part}\0{p}".encode()).hexdigest()
            )
            places[largest].remove(moved)
            places[part].append(moved)


def from_parts(parts: Mapping[str, Iterable[str]]) -> Split:
    """Take a split that somebody else made, patient keys by part.

    Raises
    ------
    SplitError
        A patient in two parts, or twice in one.
    """
    return Split(parts={part: tuple(sorted(patients)) for part, patients in parts.items()})


def save(split: Split, path: Path) -> None:
    """Write the split with its hash, as JSON; whole or not at all, since half a split is none."""
    content = {**split.content(), "split_hash": split.split_hash}
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="ascii")
    part.replace(path)


def load(path: Path) -> Split:
    """Read a split and verify its hash.

    Raises
    ------
    SplitError
        No such file, not a split, changed since it was saved, or a patient in two parts.
    """
    try:
        content = json.loads(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise SplitError(f"{path.name}: no split can be read ({type(error).__name__})", hint=_ASK) from None
    try:
        if content["format"] != FORMAT:
            raise SplitError(f"{path.name}: format {content['format']}, not {FORMAT}", hint=_ASK)
        split = Split(
            parts={str(part): tuple(map(str, held)) for part, held in content["parts"].items()},
            salt=str(content["salt"]),
            fractions=tuple(map(float, content["fractions"])),
            by=tuple(map(str, content["by"])),
        )
        written = content["split_hash"]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise SplitError(f"{path.name}: not a split", hint=_ASK) from None
    if written != split.split_hash:
        raise SplitError(f"{path.name}: changed since it was saved (its hash does not fit)", hint=_ASK)
    return split
