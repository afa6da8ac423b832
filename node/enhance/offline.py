"""The pure chain on files, without a server: what ``luminode enhance`` runs, to try and to find bugs with."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from engines.base import Engine, Params
from node import __version__
from node.dicom.derivation import Derivation
from node.dicom.derive import derive
from node.dicom.headers import merge
from node.dicom.modality import eligibility, split
from node.dicom.part10 import write_part10
from node.dicom.read import read_header
from node.dicom.source import Source
from node.dicom.stacks import stacks
from node.dicom.uids import derivation_key
from node.enhance.chain import Item, Ran, Report, Stored, Tell, run
from node.enhance.work import content_order, named, neighbours_of
from node.errors import NodeError
from node.model import InstanceHeader


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The DICOM files of a folder: series (by Series Instance UID), and what cannot be read and why."""

    series: Mapping[str, Sequence[tuple[Path, InstanceHeader]]]
    unreadable: Sequence[tuple[Path, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What became of one series. ``reason`` says why nothing was made, if so."""

    series_uid: str
    n_sources: int
    reason: str = ""
    derived_series_uid: str = ""
    folder: Path | None = None
    n_made: int = 0
    report: Report | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """How derived objects are marked; the fields of ``engines:`` in config.yaml."""

    description_suffix: str = " [LUM]"
    series_number_offset: int = 1000
    equipment: Literal["standard", "retain"] = "standard"
    value2: Literal["PRIMARY", "SECONDARY"] = "PRIMARY"
    research_mark: bool = True


def find(paths: Sequence[Path]) -> Found:
    """Read the headers of files and of all files below folders."""
    series: dict[str, list[tuple[Path, InstanceHeader]]] = {}
    unreadable: list[tuple[Path, str]] = []
    for path in _files(paths):
        try:
            header = read_header(path)
        except NodeError as e:
            unreadable.append((path, e.message))
        except OSError as e:
            unreadable.append((path, e.strerror or "cannot be read"))
        else:
            series.setdefault(header.series_uid, []).append((path, header))
    return Found(series=series, unreadable=unreadable)


def _files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        found += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return found


def enhance_series(
    members: Sequence[tuple[Path, InstanceHeader]],
    engine: Engine,
    params: Params,
    out: Path,
    *,
    when: datetime,
    output: Output | None = None,
    tell: Tell = lambda _step, _share: None,
) -> Made:
    """Enhance the files of one series into ``out``, numbered in series order, all or nothing.

    Parameters
    ----------
    members
        Files with their headers, as from :func:`find`.
    out
        A folder; made if absent.
    when
        Aware; written as the time of derivation.

    Raises
    ------
    NodeError, engines.errors.EngineError, OSError
        The series could not be enhanced; ``out`` is as it was.
    """
    output = output or Output()
    headers = [h for _, h in members]
    uid = headers[0].series_uid
    reason = eligibility(merge(headers), headers)
    if not reason and headers[0].modality not in engine.card.modalities:
        reason = f"{engine.card.name} is for {' and '.join(engine.card.modalities)}"
    if reason:
        return Made(series_uid=uid, n_sources=len(members), reason=reason)
    eligible = {h.sop_instance_uid for h in split(headers).eligible}
    unique = {h.sop_instance_uid: (p, h) for p, h in members if h.sop_instance_uid in eligible}
    items = [Item(sop_instance_uid=uid, path=p, offset=0, sha256="") for uid, (p, _) in unique.items()]
    found = stacks([h for _, h in unique.values()])
    order = content_order([h for _, h in unique.values()])
    near = neighbours_of(found, {u: h for u, (_, h) in unique.items()}, engine.card.neighbours)
    how = _derivation(headers[0], engine, params, when, output)
    there = out.is_dir()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".luminode-", dir=out) as scratch:
            folder = Path(scratch)

            def emit(item: Item, source: Source, stored: Stored, ran: Ran) -> None:
                sop = item.sop_instance_uid
                derived = derive(source, stored, how(ran), order=order[sop], neighbours=near.get(sop, ()))
                with (folder / f"{order[sop] + 1:05d}.dcm").open("wb") as file:
                    write_part10(derived, file)

            report = run(items, found, engine, params, scratch=folder, emit=emit, tell=tell)
            written = sorted(folder.iterdir())
            for path in written:
                path.replace(out / path.name)
    except BaseException:
        if not there:
            with contextlib.suppress(OSError):
                out.rmdir()
        raise
    return Made(
        series_uid=uid,
        n_sources=len(members),
        derived_series_uid=how(Ran(runtime=report.runtime, device=report.device)).series_uid,
        folder=out,
        n_made=len(written),
        report=report,
    )


def _derivation(
    header: InstanceHeader, engine: Engine, params: Params, when: datetime, output: Output
) -> Callable[[Ran], Derivation]:
    card = engine.card
    key = derivation_key(
        study_uid=header.study_uid,
        series_uid=header.series_uid,
        engine=card.name,
        engine_version=card.version,
        weights_sha256=card.weights_sha256,
        params={"strength": params.strength, "options": dict(params.options), "equipment": output.equipment},
        rule="",
    )

    def how(ran: Ran) -> Derivation:
        return Derivation(
            derivation_key=key,
            revision=1,
            when=when,
            product_version=__version__,
            serial="OFFLINE",
            engine=card.name,
            engine_title=card.title or card.name,
            engine_version=card.version,
            family=card.family,
            weights_sha256=card.weights_sha256,
            strength=params.strength,
            scale=card.scale,
            runtime=named(ran.runtime),
            device=ran.device,
            description_suffix=output.description_suffix,
            series_number_offset=output.series_number_offset,
            equipment=output.equipment,
            value2=output.value2,
            research_mark=output.research_mark,
            partial=False,
        )

    return how
