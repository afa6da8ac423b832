"""Real CT and MR from many scanners, sent by DCMTK over four associations at once in random order, to Orthanc.

The acceptance test of the main job: what should be enhanced is in PACS exactly once, instance for instance, what
should not be is on record with its reason, a second complete send adds nothing, and dicom3tools finds no
error in a derived object that its source did not have.
"""

from __future__ import annotations

import io
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from node.enhance.offline import find
from node.model import Action, SeriesState
from tests.peers import OrthancPeer, needs, wait_until
from tests.pipeline.conftest import MakeNode
from tests.pipeline.harness import Node
from tests.pipeline.test_main_job import settled

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "data"

pytestmark = [
    pytest.mark.peer,
    pytest.mark.corpus,
    pytest.mark.slow,
    pytest.mark.timeout(420),
    pytest.mark.skipif(not CORPUS.is_dir(), reason="the image corpus (../shared/data) is not here"),
]

NEVER = {
    "S1000_localizer": "localizer",
    "S4010_exam_summary_SC": "",
    "mr_dwi_uih_tiled": "",
    "mr_mosaic_siemens_skyra_epi": "",
}
"""Folders of ct/ and mr/ that must not be enhanced, and a word of the reason."""


NO_UIDS = {"ct_abdomen_siemens_mct"}


def folders() -> Iterator[Path]:
    for kind in ("ct", "mr"):
        yield from sorted({p.parent for p in (CORPUS / kind).rglob("*") if p.is_file()})


def with_uids(folder: Path, target: Path) -> Path:
    """Copies of a folder whose files have no UIDs at all, which no peer could send: given some, nothing else."""
    target.mkdir()
    for n, path in enumerate(sorted(folder.iterdir())):
        ds = pydicom.dcmread(path)
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = "2.25.1", "2.25.2", f"2.25.{100 + n}"
        ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.save_as(target / f"{n:03d}.dcm")
    return target


def send(node: Node, files: list[Path], *, associations: int, seed: int) -> None:
    """DCMTK's storescu, several at once, each with a random share in random order."""
    files = list(files)
    random.Random(seed).shuffle(files)
    running = [
        subprocess.Popen(
            ["storescu", "-xv", "-aet", "CT1", "-aec", "LUMINODE", "127.0.0.1", str(node.port), *map(str, share)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for share in (files[i::associations] for i in range(associations))
    ]  # fmt: skip
    for process in running:
        told, _ = process.communicate(timeout=300)
        assert process.returncode == 0, told.decode()[-2000:]


def complaints(path: Path) -> set[str]:
    told = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
    return {line for line in (told.stdout + told.stderr).splitlines() if line.startswith("Error")}


def test_the_whole_corpus_reaches_orthanc_exactly_once(
    nodes: MakeNode, orthanc: OrthancPeer, tmp_path: Path
) -> None:
    needs("storescu", "dciodvfy", "dcentvfy")
    node = nodes(quiet_after="3s")
    wanted: dict[str, set[str]] = {}
    never: dict[str, str] = {}
    paths: dict[str, Path] = {}
    files: list[Path] = []
    for original in folders():
        folder = original
        if original.name in NO_UIDS:
            folder = with_uids(original, tmp_path / original.name)
        for uid, members in find([folder]).series.items():
            files += [p for p, _ in members]
            paths |= {h.sop_instance_uid: p for p, h in members}
            if folder.name in NEVER:
                never[uid] = NEVER[folder.name]
            else:
                wanted[uid] = {h.sop_instance_uid for _, h in members}
    send(node, files, associations=4, seed=1)
    wait_until(lambda: settled(node, len(wanted)), 240, "everything is delivered", every_s=0.5)

    with node.store() as store:
        by_source = {}
        for series in store.series.list(limit=1000):
            uid = series.key.series_uid
            decision = store.series.decision(series.id)
            assert decision is not None
            if uid in never:
                assert series.state is SeriesState.REJECTED
                assert decision.action is Action.REJECT
                assert decision.reason
                assert never[uid] in decision.reason.lower()
            else:
                assert series.state is SeriesState.ROUTED, decision.reason
                (derived,) = store.deliveries.derived_of_series(uid)
                by_source[uid] = derived
        jobs_before = len(store.jobs.list(limit=1000))
    assert set(by_source) == set(wanted)
    held = orthanc.series()
    assert held == {d.series_uid: sorted(i.sop_instance_uid for i in d.instances) for d in by_source.values()}
    for uid, derived in by_source.items():
        assert {i.source_sop_instance_uid for i in derived.instances} == wanted[uid]

    send(node, files, associations=4, seed=2)
    wait_until(lambda: settled(node, jobs_before), 60, "nothing is added")
    assert orthanc.series() == held

    _standard(orthanc, paths, tmp_path)


def _standard(orthanc: OrthancPeer, paths: dict[str, Path], tmp_path: Path) -> None:
    """No error in a derived object that its source did not have; each series consistent with its source."""
    together: dict[str, list[Path]] = {}
    out = tmp_path / "derived"
    out.mkdir()
    for n, one in enumerate(orthanc.get("/instances?expand")):
        data = orthanc.instance_file(one["ID"])
        ds = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
        groups = ds.get("SourceImageSequence")
        source = paths[str(groups[0].ReferencedSOPInstanceUID)]
        path = out / f"{n}.dcm"
        path.write_bytes(data)
        together.setdefault(str(ds.SeriesInstanceUID), []).extend([path, source])
    for members in together.values():
        for derived, source in list(zip(members[::2], members[1::2], strict=True))[:3]:
            assert complaints(derived) <= complaints(source), source.parent.name
        told = subprocess.run(["dcentvfy", *map(str, members)], capture_output=True, text=True, check=False)
        sources = subprocess.run(
            ["dcentvfy", *map(str, members[1::2])], capture_output=True, text=True, check=False
        )
        before = _errors(sources.stdout + sources.stderr, out)
        after = _errors(told.stdout + told.stderr, out)
        assert after <= before, (members[1].parent.name, sorted(after - before)[:5])
    shutil.rmtree(out)


def _errors(text: str, folder: Path) -> set[str]:
    return {line for line in text.splitlines() if line.startswith("Error") and str(folder) in line}
