"""The chain: what comes out depends on the pixels alone, and what goes wrong leaves nothing behind."""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.base import Engine, Params, Volume
from engines.catalog import Catalog
from engines.errors import OutputImplausible
from node.dicom.stacks import stacks
from node.enhance.chain import run
from node.enhance.scratch import Item
from node.enhance.work import content_order, neighbours_of
from node.errors import DeriveError, OutOfSpace, SeriesError
from tests import onnx_samples
from tests.dicom_samples import enhanced, read
from tests.enhancing import SIZE, Chained, Watched, chained, files, flip, headers_of, series

SHIPPED = Catalog.default()
CASES = [(name, m) for name in SHIPPED.names() for m in SHIPPED.card(name).modalities]
CASES += [("ct-sample", "CT"), ("mr-sample", "MR")]
WHOLE = 1000


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    zoo = tmp_path_factory.mktemp("zoo")
    onnx_samples.folder(zoo, onnx_samples.blur_network())
    onnx_samples.folder(zoo, onnx_samples.blur_network(gain=1.0), name="mr-sample", modality="MR")
    return Catalog.default([zoo])


@pytest.fixture(scope="module")
def engine(catalog: Catalog) -> Engine:
    return catalog.load("ct-tv", threads=1)


def changed(result: Chained, items: list[Item]) -> set[str]:
    """Which sources came out with other pixels."""
    return {
        i.sop_instance_uid
        for i in items
        if read(result.made[i.sop_instance_uid]).PixelData != read(i.path.read_bytes()).PixelData
    }


# laws ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "modality"), CASES, ids=[f"{n}-{m}" for n, m in CASES])
def test_slabs_of_any_size_make_the_same_bytes(
    catalog: Catalog, name: str, modality: str, tmp_path: Path, scratch: Path
) -> None:
    engine = catalog.load(name, threads=1)
    items = files(tmp_path / "in", series(modality, 18))
    whole = chained(items, engine, scratch, slab=WHOLE)
    assert len(whole.made) == 18
    assert whole.report.n_skipped == 0
    assert bool(changed(whole, items)) == (engine.card.family != "identity")
    for slab in (1, 5, 16):
        assert chained(items, engine, scratch, slab=slab).made == whole.made


@pytest.mark.parametrize(
    ("name", "modality"), [("ct-cnn", "CT"), ("mr-cnn", "MR"), ("ct-tv", "CT"), ("mr-sr2", "MR")]
)
@pytest.mark.parametrize("slab", [1, 5, 16])
def test_threads_change_no_bit(
    catalog: Catalog, name: str, modality: str, slab: int, tmp_path: Path, scratch: Path
) -> None:
    """Slabs side by side, slices of each side by side, measured while others are made."""
    items = files(tmp_path / "in", series(modality, 21))
    alone = chained(items, catalog.load(name, threads=1), scratch)
    engine = catalog.load(name, threads=4)
    assert engine.lanes > 1
    together = chained(items, engine, scratch, slab=slab)
    assert together.made == alone.made
    assert together.report.notes == alone.report.notes
    assert together.report.figures["mean_change"] == pytest.approx(
        alone.report.figures["mean_change"], rel=1e-6
    )


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_order_of_arrival_changes_nothing(
    data: st.DataObject, engine: Engine, slices: list[Item], tmp_path_factory: pytest.TempPathFactory
) -> None:
    scratch = tmp_path_factory.mktemp("scratch")
    order = data.draw(st.permutations(slices))
    slab = data.draw(st.integers(1, 8))
    assert chained(order, engine, scratch, slab=slab).made == chained(slices, engine, scratch).made


@pytest.mark.parametrize("name", ["ct-nlm", "ct-tv", "ct-sample", "identity"])
def test_a_part_is_the_same_part_of_the_whole(
    catalog: Catalog, name: str, slices: list[Item], scratch: Path
) -> None:
    engine = Watched(catalog.load(name, threads=1))
    whole = chained(slices, engine, scratch).made
    assert engine.n("enhance") == 6
    engine.seen.clear()
    late = {slices[i].sop_instance_uid for i in (2, 4)}
    part = chained(slices, engine, scratch, wanted=late)
    assert part.made == {uid: whole[uid] for uid in late}
    assert engine.n("enhance") == 3, "only what is missing is computed, and what lies between"
    assert engine.n("survey") == 6
    assert part.report.n_slices == 3


def test_volumes_of_one_series_never_mix(catalog: Catalog, tmp_path: Path, scratch: Path) -> None:
    """Diffusion weighted: the same six positions at three b-values, interleaved as they are acquired."""
    engine = catalog.load("mr-nlm", threads=1)
    volumes = [series("MR", 6, seed=s) for s in (3, 4, 5)]
    for at, volume in enumerate(volumes):
        for ds in volume:
            ds.DiffusionBValue = [0.0, 500.0, 1000.0][at]
            ds.SOPInstanceUID += f".{at}"
            ds.InstanceNumber = str(3 * int(ds.InstanceNumber) + at)
    mixed = [ds for position in zip(*volumes, strict=True) for ds in position]
    together = chained(files(tmp_path / "all", mixed), engine, scratch, slab=4)
    found = stacks(headers_of(files(tmp_path / "all", mixed)))
    assert [len(s) for s in found] == [6, 6, 6]
    for at, volume in enumerate(volumes):
        alone = chained(files(tmp_path / f"b{at}", volume), engine, scratch)
        for uid, stored in alone.stored.items():
            assert np.array_equal(stored, together.stored[uid])
        own = {ds.SOPInstanceUID for ds in volume}
        headers = {h.sop_instance_uid: h for h in headers_of(files(tmp_path / "all", mixed))}
        near = neighbours_of(found, headers, 1)
        assert all({r.sop_instance_uid for r in near[uid]} < own for uid in own)


@pytest.mark.parametrize(("name", "modality"), [("ct-nlm", "CT"), ("mr-wavelet", "MR"), ("ct-sample", "CT")])
def test_strength_zero_gives_the_pixels_back(
    catalog: Catalog, name: str, modality: str, tmp_path: Path, scratch: Path
) -> None:
    items = files(tmp_path / "in", series(modality, 4))
    result = chained(items, catalog.load(name, threads=1), scratch, strength=0.0)
    assert changed(result, items) == set()
    assert result.report.n_skipped == 0


def test_frames_of_one_instance_are_put_together(catalog: Catalog, tmp_path: Path, scratch: Path) -> None:
    """Enhanced CT: one instance, all frames, the same for any slab, and each frame with its own slope."""
    ds = enhanced(21, ct=True, slopes=tuple(1.0 + 0.01 * i for i in range(21)))
    ds.Rows = ds.Columns = SIZE
    pixels = np.random.default_rng(5).normal(1100, 20, (21, SIZE, SIZE)).astype(np.uint16)
    ds.PixelData = pixels.tobytes()
    (item,) = files(tmp_path / "in", [ds])
    engine = catalog.load("ct-tv", threads=1)
    whole = chained([item], engine, scratch, slab=WHOLE)
    (stored,) = whole.stored.values()
    assert stored.shape == pixels.shape
    assert not np.array_equal(stored, pixels)
    assert np.abs(stored.astype(int) - pixels).max() < 200
    for slab in (1, 5):
        assert chained([item], engine, scratch, slab=slab).made == whole.made
    assert (
        chained([item], engine, scratch, strength=0.0).stored[item.sop_instance_uid].tobytes() == ds.PixelData
    )


# passed through -----------------------------------------------------------------------------------


def test_slices_beyond_the_engine_pass_and_are_told(catalog: Catalog, tmp_path: Path, scratch: Path) -> None:
    items = files(tmp_path / "in", series("CT", 14, loud=range(8, 14)))
    loud = {i.sop_instance_uid for i in items[8:]}
    whole = chained(items, catalog.load("ct-tv", threads=1), scratch)
    report = whole.report
    assert (report.n_slices, report.n_skipped) == (14, 6)
    assert report.notes[0] == "6 of 14 slices were passed through unchanged"
    assert any("noise is higher than this engine is made for" in note for note in report.notes)
    assert changed(whole, items) == {i.sop_instance_uid for i in items} - loud
    for slab in (1, 4):
        again = chained(items, catalog.load("ct-tv", threads=1), scratch, slab=slab)
        assert again.made == whole.made
        assert again.report.notes == report.notes
        assert again.report.figures["mean_change"] == pytest.approx(report.figures["mean_change"], rel=1e-6)


def test_a_series_that_is_left_as_it_was_is_no_result(engine: Engine, tmp_path: Path, scratch: Path) -> None:
    items = files(tmp_path / "in", series("CT", 5, loud=range(5)))
    with pytest.raises(SeriesError, match=r"every slice was passed through unchanged: .*noise is higher"):
        chained(items, engine, scratch)


def test_late_slices_that_pass_through_still_complete_their_series(
    engine: Engine, tmp_path: Path, scratch: Path
) -> None:
    items = files(tmp_path / "in", series("CT", 14, loud=range(8, 14)))
    late = {items[-1].sop_instance_uid}
    result = chained(items, engine, scratch, wanted=late)
    assert set(result.made) == late
    assert (result.report.n_slices, result.report.n_skipped) == (1, 1)


# failures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["pixels", "header"])
def test_a_flipped_bit_is_found_before_use(engine: Engine, tmp_path: Path, scratch: Path, where: str) -> None:
    items = files(tmp_path / "in", series("CT", 4))
    flip(items[2].path, -3 if where == "pixels" else items[2].path.read_bytes().index(b"Thorax"))
    watched, emitted = Watched(engine), []
    with pytest.raises(SeriesError, match="not those that were received"):
        chained(items, watched, scratch, emit=lambda *a: emitted.append(a))
    assert not watched.seen
    assert not emitted


def test_a_bit_that_flips_meanwhile_is_found_too(engine: Engine, tmp_path: Path, scratch: Path) -> None:
    items = files(tmp_path / "in", series("CT", 4))

    def on(step: str, n: int) -> None:
        if step == "enhance":
            flip(items[3].path, -3)

    with pytest.raises(SeriesError, match="not those that were received"):
        chained(items, Watched(engine, on), scratch)


def test_a_large_file_is_digested_too(
    engine: Engine, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.enhance.scratch._READ_WHOLE", 100)
    items = files(tmp_path / "in", series("CT", 4))
    good = chained(items, engine, scratch).made
    monkeypatch.undo()
    assert chained(items, engine, scratch).made == good
    monkeypatch.setattr("node.enhance.scratch._READ_WHOLE", 100)
    flip(items[2].path, -3)
    with pytest.raises(SeriesError, match="not those that were received"):
        chained(items, engine, scratch)


@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_instance_that_cannot_be_read_decides(
    catalog: Catalog, tmp_path: Path, scratch: Path, threads: int
) -> None:
    short = series("CT", 8)
    short[5].PixelData = short[5].PixelData[:-20]
    items = files(tmp_path / "in", short)
    flip(items[6].path, -3)
    made: list[Any] = []
    engine = catalog.load("ct-tv", threads=threads)
    for order, match in ((items, "cut short"), (items[::-1], "not those that were received")):
        with pytest.raises(SeriesError, match=match):
            chained(order, engine, scratch, emit=lambda *a: made.append(a))
    assert not made


def test_pixels_that_cannot_be_decoded_say_why(engine: Engine, tmp_path: Path, scratch: Path) -> None:
    short = series("CT", 4)
    short[1].PixelData = short[1].PixelData[:-20]
    with pytest.raises(SeriesError, match="Pixel Data is cut short"):
        chained(files(tmp_path / "in", short), engine, scratch)


def test_files_without_a_digest_are_taken_as_they_are(
    engine: Engine, slices: list[Item], scratch: Path
) -> None:
    bare = [Item(sop_instance_uid=i.sop_instance_uid, path=i.path, offset=0, sha256="") for i in slices]
    assert chained(bare, engine, scratch).made == chained(slices, engine, scratch).made


class Stop(Exception):
    pass


@pytest.mark.parametrize("step", ["decode", "survey", "enhance"])
def test_it_stops_at_every_step(engine: Engine, slices: list[Item], scratch: Path, step: str) -> None:
    def tell(now: str, share: float) -> None:
        assert 0 < share <= 1
        if now == step and share > 0.3:
            raise Stop

    with pytest.raises(Stop):
        chained(slices, engine, scratch, tell=tell, slab=1)


@pytest.mark.parametrize("step", ["decode", "survey", "enhance"])
def test_it_stops_with_many_threads_too(
    catalog: Catalog, slices: list[Item], scratch: Path, step: str
) -> None:
    engine, made = catalog.load("ct-tv", threads=4), []

    def tell(now: str, share: float) -> None:
        assert 0 < share <= 1
        if now == step and share > 0.3:
            raise Stop

    with pytest.raises(Stop):
        chained(slices, engine, scratch, tell=tell, slab=2, emit=lambda *a: made.append(a))
    n = len(made)
    left = [
        t.name for t in threading.enumerate() if t.name.startswith(("slab", "survey", "decode", "derive"))
    ]
    assert not left
    assert len(made) == n < len(slices)


def test_it_tells_how_far_it_is(engine: Engine, slices: list[Item], scratch: Path) -> None:
    told: dict[str, list[float]] = {}
    chained(slices, engine, scratch, tell=lambda s, share: told.setdefault(s, []).append(share), slab=2)
    assert list(told) == ["decode", "survey", "enhance"]
    for shares in told.values():
        assert shares == sorted(shares)
        assert shares[-1] == 1


@pytest.mark.parametrize("step", ["survey", "enhance"])
def test_an_engine_that_raises_ends_it(engine: Engine, slices: list[Item], scratch: Path, step: str) -> None:
    def on(now: str, n: int) -> None:
        if now == step and n == 3:
            raise SystemExit("an engine may do anything")

    with pytest.raises(SystemExit):
        chained(slices, Watched(engine, on), scratch, slab=1)


def test_deriving_that_fails_in_its_thread_ends_it(engine: Engine, slices: list[Item], scratch: Path) -> None:
    calls: list[str] = []

    def emit(item: Item, *_rest: Any) -> None:
        calls.append(item.sop_instance_uid)
        if len(calls) == 2:
            raise DeriveError("a defect")

    with pytest.raises(DeriveError):
        chained(slices, engine, scratch, emit=emit, slab=1)
    n = len(calls)
    assert n <= len(slices)
    assert len(calls) == n, "nothing is emitted after the end"


def test_an_engine_that_returns_something_else_is_implausible(
    engine: Engine, slices: list[Item], scratch: Path
) -> None:
    class Short(Watched):
        def enhance(self, volume: Volume, *args: Any, **kwargs: Any) -> Any:
            out = super().enhance(volume, *args, **kwargs)
            object.__setattr__(out.volume, "values", out.volume.values[:-1])
            return out

    with pytest.raises(OutputImplausible, match="another shape"):
        chained(slices, Short(engine), scratch)


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """As if the disk were full: no file of this process grows beyond."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_is_told_as_such(engine: Engine, slices: list[Item], scratch: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with largest_file(3 * SIZE * SIZE * 2), pytest.raises(OutOfSpace, match="scratch"):
        chained(slices, engine, scratch)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert chained(slices, engine, scratch).made


@pytest.mark.parametrize("told", [2, 4], ids=["too few", "too many"])
def test_headers_that_tell_of_other_frames_than_there_are(
    catalog: Catalog, tmp_path: Path, scratch: Path, told: int
) -> None:
    """A frame that no header places would be missing from the result, and nobody would see it."""
    ds = enhanced(told, ct=True)
    items = files(tmp_path / "in", [ds])
    found = stacks(headers_of(items))
    ds.NumberOfFrames, ds.PixelData = 3, ds.PixelData[: 3 * 48] + bytes(max(0, 3 - told) * 48)
    ds.PerFrameFunctionalGroupsSequence = enhanced(3, ct=True).PerFrameFunctionalGroupsSequence
    made: list[Any] = []
    with pytest.raises(SeriesError, match="frames"):
        run(
            files(tmp_path / "in", [ds]), found, catalog.load("identity", threads=1), Params(strength=1),
            scratch=scratch, emit=lambda *a: made.append(a),
        )  # fmt: skip
    assert not made


def test_a_frame_in_two_stacks_is_refused(engine: Engine, slices: list[Item], scratch: Path) -> None:
    found = stacks(headers_of(slices))
    with pytest.raises(SeriesError, match="frames"):
        run(
            slices, (*found, *found), engine, Params(strength=1), scratch=scratch, emit=lambda *_: None,
        )  # fmt: skip


def test_a_series_with_an_instance_twice_is_refused(
    engine: Engine, slices: list[Item], scratch: Path
) -> None:
    with pytest.raises(SeriesError, match="twice"):
        chained([*slices, slices[0]], engine, scratch)


def test_content_order_is_that_of_instance_numbers(slices: list[Item]) -> None:
    headers = headers_of(slices)
    order = content_order(headers[::-1])
    assert [order[h.sop_instance_uid] for h in headers] == list(range(6))


def test_neighbours_end_at_gaps(tmp_path: Path) -> None:
    volumes = series("CT", 6)
    for ds in volumes[3:]:
        ds.ImagePositionPatient = [0, 0, float(ds.ImagePositionPatient[2]) + 5]
    headers = headers_of(files(tmp_path / "in", volumes))
    near = neighbours_of(stacks(headers), {h.sop_instance_uid: h for h in headers}, 1)
    told = [[int(r.sop_instance_uid.rpartition(".")[2]) for r in near[h.sop_instance_uid]] for h in headers]
    assert told == [[2], [1, 3], [2], [5], [4, 6], [5]]
