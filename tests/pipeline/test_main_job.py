"""The main job: a series in by C-STORE, an enhanced series in Orthanc, once, on both databases."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pydicom
import pytest

from node.deliver.files import send_files
from node.model import DeliveryState, JobState, SeriesState
from node.trial.phantoms import write_series
from tests.peers import OrthancPeer, wait_until
from tests.phantoms import small_ct, small_mr
from tests.pipeline.conftest import MakeNode
from tests.pipeline.harness import Node

pytestmark = pytest.mark.peer


def scanner(node: Node, files: list[Path], *, calling_ae: str = "CT1", associations: int = 1) -> None:
    peer = {"kind": "dimse", "ae_title": "LUMINODE", "address": f"127.0.0.1:{node.port}"}
    sent = send_files(files, peer, calling_ae=calling_ae, associations=associations)
    assert sent.ok, (sent.errors, sent.not_done)


def settled(node: Node, n_jobs: int | None) -> bool:
    with node.store() as store:
        jobs = store.jobs.list()
        deliveries = store.deliveries.list()
        assert not [j for j in jobs if j.state in (JobState.HELD, JobState.FAILED)], [j.failure for j in jobs]
        return (
            (len(jobs) == n_jobs if n_jobs is not None else bool(jobs))
            and all(j.state is JobState.DONE for j in jobs)
            and all(d.state is DeliveryState.SENT for d in deliveries)
            and not [s for s in store.series.list() if s.state in (SeriesState.OPEN, SeriesState.CLOSED)]
        )


def test_a_series_comes_out_enhanced_once_and_beside_its_source(
    nodes: MakeNode, orthanc: OrthancPeer, database_url: str, tmp_path: Path
) -> None:
    node = nodes(database=database_url, quiet_after="30s")
    ct, mr = small_ct(seed=3, n_slices=12, size=192, noise_hu=15.0), small_mr(seed=4, n_slices=10)
    files = write_series(ct, tmp_path / "ct") + write_series(mr, tmp_path / "mr")
    random.Random(5).shuffle(files)
    scanner(node, files)
    wait_until(lambda: settled(node, 2), 60, "both series are delivered, without the quiet time")
    with node.store() as store:
        assert {s.closed_because for s in store.series.list()} <= {"release", "count"}
        assert all(s.config_digest for s in store.series.list())
        derived = [d for j in store.jobs.list() if (d := store.deliveries.derived_of_job(j.id))]
        assert store.provenance.verify().ok
        story = store.provenance.story(derived[0].instances[0].sop_instance_uid)
        assert any("figures" in r.body for r in story.records)
    wanted = {d.series_uid: sorted(i.sop_instance_uid for i in d.instances) for d in derived}
    assert orthanc.series() == wanted
    assert sorted(len(v) for v in wanted.values()) == sorted([len(ct), len(mr)])

    by_uid = {d.SOPInstanceUID: d for d in [*ct, *mr]}
    for one in orthanc.get("/instances?expand")[:4]:
        told = pydicom.dcmread(io.BytesIO(orthanc.instance_file(one["ID"])))
        source = by_uid[told.SourceImageSequence[0].ReferencedSOPInstanceUID]
        assert told.StudyInstanceUID == source.StudyInstanceUID
        assert told.FrameOfReferenceUID == source.FrameOfReferenceUID
        assert told.ImagePositionPatient == source.ImagePositionPatient
        assert told.InstanceNumber == source.InstanceNumber
        assert list(told.ImageType[:2]) == ["DERIVED", "PRIMARY"]
        assert told.PixelData != source.PixelData

    scanner(node, files, associations=3)  # the whole study again
    wait_until(lambda: settled(node, 2), 30, "a second send adds nothing")
    assert orthanc.series() == wanted


def test_late_slices_are_appended_to_what_was_delivered(
    nodes: MakeNode, orthanc: OrthancPeer, tmp_path: Path
) -> None:
    node = nodes(quiet_after="1s")
    ct = small_ct(seed=6, n_slices=12, size=192, noise_hu=15.0)
    files = write_series(ct, tmp_path / "ct")
    early, late = files[:7], files[7:]
    scanner(node, early)
    wait_until(lambda: settled(node, 1), 60, "the first slices are delivered")
    first = orthanc.series()
    scanner(node, late)
    wait_until(lambda: settled(node, 2), 60, "the late slices are delivered")
    ((series_uid, uids),) = orthanc.series().items()
    assert {series_uid} == set(first)
    assert set(first[series_uid]) < set(uids)
    assert len(uids) == len(ct)


def test_late_slices_can_make_a_complete_revision(
    nodes: MakeNode, orthanc: OrthancPeer, tmp_path: Path
) -> None:
    node = nodes(quiet_after="1s", late="revise")
    ct = small_ct(seed=7, n_slices=12, size=192, noise_hu=15.0)
    files = write_series(ct, tmp_path / "ct")
    scanner(node, files[:7])
    wait_until(lambda: settled(node, 1), 60, "the first slices are delivered")
    scanner(node, files[7:])
    wait_until(lambda: settled(node, 2), 60, "the revision is delivered")
    assert sorted(len(v) for v in orthanc.series().values()) == [7, len(ct)]


def test_an_edit_takes_effect_while_running_and_a_bad_one_is_refused(
    nodes: MakeNode, orthanc: OrthancPeer, tmp_path: Path
) -> None:
    node = nodes(quiet_after="30s")
    good = node.config.read_text()
    node.config.write_text(good.replace("strength: 0.6", "strenght: 0.6"))

    def refused() -> bool:
        with node.store() as store:
            return bool(store.events.list(name="config.refused"))

    wait_until(refused, 20, "the bad edit is refused")
    with node.store() as store:
        (event, *_) = store.events.list(name="config.refused")
    assert ":11:28:" in event.body["faults"][0]
    assert "strenght" in event.body["faults"][0]
    ct = small_ct(seed=8, n_slices=12, size=192, noise_hu=15.0)
    scanner(node, write_series(ct, tmp_path / "ct"))
    wait_until(lambda: settled(node, 1), 60, "the last good configuration works on")

    node.config.write_text(
        good.replace(
            "when: {Modality: MR}, enhance: mr, send_to: [pacs]", "when: {Modality: MR}, ignore: true"
        )
    )

    def applied() -> bool:
        with node.store() as store:
            return len(store.configs.history()) == 2

    wait_until(applied, 20, "the good edit takes effect")
    scanner(node, write_series(small_mr(seed=9, n_slices=10), tmp_path / "mr"), calling_ae="MR1")

    def ignored() -> bool:
        with node.store() as store:
            return bool(store.series.list(states=[SeriesState.IGNORED]))

    wait_until(ignored, 30, "the edited rule ignores the MR")
    with node.store() as store:
        digests = [s.config_digest for s in store.series.list()]
        assert len(set(digests)) == 2
        assert "ignore" in store.configs.history()[0].diff
    assert len(orthanc.series()) == 1
