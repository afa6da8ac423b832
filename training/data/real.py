"""Any real series to shards: anyone's own images as truths, by patient, with the split that they belong to.

A clinical image is no noise-free truth: it holds the noise of its own dose, and a network that is trained to remove
what is added learns to leave that alone. So each shard tells its own ``noise`` as the node measures it, and series
that are noisier than asked for are left out. Test patients are never written: what judges is no shard.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from engines import noise
from engines.base import Modality, Volume
from training.data import folder, ixi, lidc, mayo, split
from training.data.records import Found, LeftOut, Run, Scan
from training.data.shards import Writer
from training.data.split import Split
from training.errors import DataError, SplitError
from training.prepare import CT_SPAN, MR_SPAN

Say = Callable[[str], None]
Kind = Literal["folder", "lidc", "ixi", "mayo"]

WRITTEN = ("train", "validation")
SPLIT = "split.json"
NAME = re.compile("[a-z][a-z0-9-]*")
FEWEST = 3
"""Slices of a run: a network sees three."""

AIR = -1024.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What to make of a folder of images.

    Attributes
    ----------
    images
        The folder.
    kind
        Which loader reads it.
    modality
        CT or MR; others are left out, and NIfTI files are taken for it.
    secret
        For hashes of patients (training.data.records.patient_key); loaders of public sets need none.
    licence
        Of the images.
    n_slices
        At most so many of a scan, from its middle.
    smallest
        Rows and columns that a scan must have.
    noisiest
        Scans of more noise are left out: HU, or share of the scale; 0: none.
    """

    images: Path
    kind: Kind = "folder"
    modality: Modality
    secret: str = ""
    licence: str = "unknown"
    patient_pattern: str = folder.USUAL_PATTERN
    n_slices: int = 64
    smallest: int = 144
    noisiest: float = 0.0


def found(ask: Ask) -> Found:
    """Find the scans.

    Raises
    ------
    DataError
        None of the modality is there.
    """
    if ask.kind == "lidc":
        held = lidc.load(ask.images)
    elif ask.kind == "ixi":
        held = ixi.load(ask.images)
    elif ask.kind == "mayo":
        pairs = mayo.load(ask.images)
        held = Found(
            scans=tuple({p.target.key: p.target for p in pairs.pairs}.values()), left_out=pairs.left_out
        )
    else:
        held = folder.scan_folder(
            ask.images,
            nifti_modality=ask.modality,
            patient_pattern=ask.patient_pattern,
            secret=ask.secret,
            licence=ask.licence,
        )
    scans = tuple(s for s in held.scans if s.modality == ask.modality)
    if not scans:
        raise DataError(f"no {ask.modality} stack is in {ask.images.name}", hint="see --modality and --kind")
    return Found(scans=scans, left_out=held.left_out)


def split_of(
    scans: Sequence[Scan], out: Path, given: Path | None, salt: str, fractions: Sequence[float]
) -> Split:
    """The split of the folder: the one given, the one that is there, or a new one, which is written.

    Raises
    ------
    SplitError
        Another one is there already, or it does not know a patient.
    """
    path = out / SPLIT
    there = split.load(path) if path.exists() else None
    made = (
        split.load(given) if given is not None else there or split.make(scans, salt=salt, fractions=fractions)
    )
    if there is not None and there.split_hash != made.split_hash:
        raise SplitError(f"{path.name} in {out.name} is another split", hint="give another --name")
    split.check(made, scans)
    out.mkdir(parents=True, exist_ok=True)
    split.save(made, path)
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What was written: shards by part, the split's hash, and what was left out and why."""

    n: dict[str, int]
    split_hash: str
    left_out: tuple[LeftOut, ...]


def write(
    ask: Ask,
    data: Path,
    name: str,
    *,
    given: Path | None = None,
    salt: str = "luminode",
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    say: Say = lambda _: None,
) -> Made:
    """Write ``NAME-train`` and ``NAME-validation`` under ``data``, and ``NAME/split.json``; goes on where it stopped.

    Raises
    ------
    DataError
        No scan can be used for one of the two, or ``name`` is none for folders and recipes.
    SplitError
        See :func:`split_of`.
    """
    if not NAME.fullmatch(name):
        raise DataError(
            f"{name!r} is no name of a set of shards",
            hint="small letters, digits and -, a letter first: site-a",
        )
    seen = found(ask)
    parts = split_of(seen.scans, data / name, given, salt, fractions)
    left_out = list(seen.left_out)
    counts: dict[str, int] = {}
    for part in WRITTEN:
        writer = Writer(data / f"{name}-{part}")
        for scan in parts.select(seen.scans, part):
            if any(n.startswith(scan.key) for n in writer.names):
                continue
            reason = _add(writer, scan, ask, parts.split_hash, part)
            if reason:
                left_out.append(LeftOut(what=scan.key, reason=reason))
            else:
                say(f"{part}: {scan.key}")
        counts[part] = len(writer.names)
        if not counts[part]:
            why = "; ".join(sorted({o.reason for o in left_out})) or "no patient is in it"
            raise DataError(f"no shard for {part}: {why}", hint="see `python -m training shards real --help`")
    return Made(n=counts, split_hash=parts.split_hash, left_out=tuple(left_out))


def _middle(runs: Sequence[Run], most: int) -> Run:
    """The middle of the longest run."""
    first, last = max(runs, key=lambda r: r[1] - r[0])
    cut = max(0, last - first - most)
    return first + cut // 2, last - (cut - cut // 2)


def _add(writer: Writer, scan: Scan, ask: Ask, split_hash: str, part: str) -> str:
    """Write a scan's shard; returns why not, if not."""
    if min(scan.shape[1:]) < ask.smallest:
        return f"fewer than {ask.smallest} rows or columns"
    run = _middle(scan.runs, ask.n_slices)
    if run[1] - run[0] < FEWEST:
        return f"no {FEWEST} neighbouring slices"
    try:
        volume = _cut(scan.load(), run)
    except DataError as e:
        return _unnamed(e.message, scan)
    survey = noise.survey(volume)
    scale = noise.scale(survey, volume.unit)
    known = survey.sigma[np.isfinite(survey.sigma)]
    if not math.isfinite(scale) or scale <= 0 or not known.size:
        return "its noise cannot be measured"
    level = float(np.median(known)) / scale
    if ask.noisiest and level > ask.noisiest:
        return "noisier than asked for"
    floor, span = (AIR, CT_SPAN) if volume.unit == "HU" else (0.0, MR_SPAN)
    values = np.where(volume.valid, volume.values / np.float32(scale), np.float32(floor)).astype(np.float32)
    facts = {
        "kind": scan.domains.get("anatomy") or scan.domains.get("contrast") or scan.domains.get("kernel", ""),
        "patient": scan.patient,
        "split": split_hash,
        "part": part,
        "noise": level,
        "licence": scan.licence,
        "domains": dict(scan.domains),
    }
    writer.add(f"{scan.key}-{run[0]:04d}", values, scan.spacing_mm, span=span, **facts)
    return ""


def _unnamed(message: str, scan: Scan) -> str:
    """What is wrong with a file of a scan, without its name: people are named in names of folders."""
    names = getattr(scan.source, "names", None) or (getattr(scan.source, "name", ""),)
    return next((message[len(n) + 2 :] for n in names if n and message.startswith(f"{n}: ")), message)


def _cut(volume: Volume, run: Run) -> Volume:
    own = slice(*run)
    return Volume(
        values=volume.values[own],
        spacing_mm=volume.spacing_mm,
        unit=volume.unit,
        valid=volume.valid[own],
        contiguous=volume.contiguous[own],
        step=volume.step[own],
    )
