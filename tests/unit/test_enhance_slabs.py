"""What the chain holds at once, what it tells meanwhile, and what it says of the time that it took."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from engines import noise
from engines.base import Engine, Params, Volume
from engines.catalog import Catalog
from node.dicom import pixels
from node.dicom.elements import PIXEL_DATA, Element
from node.dicom.stacks import stacks
from node.enhance.chain import Work
from node.enhance.memo import Memo, keys
from node.enhance.scratch import Item, Scratch
from node.errors import SeriesError
from tests.dicom_samples import BIG, DEFLATED, EXPLICIT, IMPLICIT, enhanced, image
from tests.enhancing import SIZE, Watched, chained, files, flip, headers_of, series
from tests.laws import uniform


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog.default()


@pytest.fixture(scope="module")
def engine(catalog: Catalog) -> Engine:
    return catalog.load("ct-tv", threads=1)


class Laned(Watched):
    """An engine that is given two slabs at once if it has threads."""

    def __init__(self, engine: Engine, on: Any = lambda _step, _n: None, threads: int = 1) -> None:
        super().__init__(engine, on)
        self.threads, self.lanes, self.hands = threads, min(2, threads), nullcontext()


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("at", ["first", "last"])
def test_every_slab_that_is_surveyed_is_told(
    catalog: Catalog, modality: str, at: str, tmp_path: Path, scratch: Path
) -> None:
    """Once slices are made too: of a stack that is surveyed as a whole, and where few slices are wanted."""
    datasets = series(modality, 20)
    if modality == "MR":
        for i, ds in enumerate(datasets):
            ds.DiffusionBValue = 500.0 * (i >= 10)
    items = files(tmp_path / "in", datasets)
    silent, told = [0], []

    def on(step: str, _n: int) -> None:
        silent[0] += step == "survey"
        assert silent[0] <= 1, "a slab was surveyed, and nobody heard of it"

    def tell(step: str, share: float) -> None:
        silent[0] = 0
        told.append((step, share))

    engine = Watched(catalog.load(f"{modality.lower()}-tv", threads=1), on)
    wanted = None if modality == "MR" else {items[0 if at == "first" else -1].sop_instance_uid}
    chained(items, engine, scratch, slab=2, wanted=wanted, tell=tell)
    assert [share for step, share in told if step == "survey"] == [n / 10 for n in range(1, 11)]
    assert told[-1] == ("enhance", 1)


class Ticking:
    """The clock of the chain: only the engine lets time pass, a second for every call of one of its steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
        self._step, self._now, self._lock = step, 0.0, threading.Lock()
        for module in ("chain", "tally"):
            monkeypatch.setattr(f"node.enhance.{module}.time", self)

    def monotonic(self) -> float:
        return self._now

    def on(self, step: str, _n: int) -> None:
        with self._lock:
            self._now += step == self._step


@pytest.mark.parametrize("threads", [1, 4])
def test_a_step_of_the_engine_is_as_long_as_it_was_at_work(
    engine: Engine, tmp_path: Path, scratch: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is surveyed, told, unwanted or remembered meanwhile makes it no shorter."""
    items = files(tmp_path / "in", series("CT", 24))
    laned = Laned(engine, Ticking(monkeypatch, "enhance").on, threads)
    steps: list[tuple[float, int]] = []
    wanted = {items[i].sop_instance_uid for i in (0, 1, 2, 3, 21)}
    chained(items, laned, scratch, slab=4 * laned.lanes, wanted=wanted, worked=lambda *a: steps.append(a))
    assert [n for _, n in steps] == [4 * SIZE**2, SIZE**2]
    assert all(1 <= seconds <= laned.lanes for seconds, _ in steps)


@dataclass(frozen=True)
class Made:
    """All of a series, made before its job."""

    kept: Scratch
    memo: Memo


def test_slabs_that_are_remembered_are_no_steps_of_the_engine(
    engine: Engine, slices: list[Item], tmp_path: Path, scratch: Path
) -> None:
    """A job that was made ahead is soon done; the next one, that was not, must not be taken for one that hangs."""
    steps: list[tuple[float, int]] = []
    (stack,) = stacks(headers_of(slices))
    memo = Memo(tmp_path)
    with Scratch(tmp_path) as kept, closing(memo):
        work = Work(engine=engine, params=Params(strength=0.7), kept=kept, memo=memo)
        work.decode(slices)
        work.measure(stack, 0, 6)
        survey = work.surveyed(stack)
        made = work.make(stack, 0, 5, survey)
        for key, one in zip(keys(engine.card, stack, survey, "HU", 0, 5), made, strict=True):
            memo.put(key, one)
        told = chained(
            slices, engine, scratch, slab=2, ahead=Made(kept, memo), worked=lambda *a: steps.append(a)
        )
    assert told.report.n_before == 5
    assert [n for _, n in steps] == [SIZE**2], "of the one slice that was not there"
    assert told.made == chained(slices, engine, scratch).made


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("slow", ["survey", "enhance"])
def test_no_second_is_in_two_steps(
    engine: Engine,
    slices: list[Item],
    scratch: Path,
    threads: int,
    slow: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Ticking(monkeypatch, slow)
    laned = Laned(engine, clock.on, threads)
    seconds = chained(slices, laned, scratch, slab=2 * laned.lanes).report.seconds
    assert clock.monotonic() == 3
    assert sum(seconds[step] for step in ("decode", "survey", "enhance")) <= 3
    assert seconds[slow] >= 1
    if threads == 1:
        assert seconds[slow] == 3


class Counting(Laned):
    """Counts the slabs and slices that are in one step at once; the first waits until there are as many as are
    expected."""

    def __init__(self, engine: Engine, step: str, expected: int) -> None:
        super().__init__(engine, threads=4)
        self._step, self._expected, self._changed = step, expected, threading.Condition()
        self._at_work: list[int] = []
        self.slabs = self.slices = 0
        self.threads_seen: set[str] = set()

    def survey(self, volume: Volume) -> Any:
        with self._counted("survey", volume.shape[0]):
            return super().survey(volume)

    def enhance(self, volume: Volume, *args: Any, **kwargs: Any) -> Any:
        with self._counted("enhance", len(range(volume.shape[0])[kwargs["keep"]])):
            return super().enhance(volume, *args, **kwargs)

    @contextmanager
    def _counted(self, step: str, n: int) -> Iterator[None]:
        if step != self._step:
            yield
            return
        with self._changed:
            self.threads_seen.add(threading.current_thread().name)
            self._at_work.append(n)
            self.slabs = max(self.slabs, len(self._at_work))
            self.slices = max(self.slices, sum(self._at_work))
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.slabs >= self._expected, 10)
        yield
        with self._changed:
            self._at_work.remove(n)


@pytest.mark.parametrize(("lanes", "slab"), [(None, 16), (None, 1), (1, 16), (1, 8), (None, 3)])
@pytest.mark.parametrize("step", ["survey", "enhance"])
def test_slabs_in_work_at_once_have_no_more_slices_than_one_may(
    engine: Engine, tmp_path: Path, scratch: Path, lanes: int | None, slab: int, step: str
) -> None:
    items = files(tmp_path / "in", series("CT", 34))
    expected = 1 if lanes == 1 or slab == 1 else 2
    counting = Counting(engine, step, expected)
    chained(items, counting, scratch, slab=slab, lanes=lanes)
    assert counting.slabs == expected
    assert counting.slices <= slab
    if expected == 1:
        assert counting.threads_seen == {threading.current_thread().name}


def test_large_frames_are_decoded_a_few_at_a_time(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the threads that decode hold does not grow with the matrix."""
    ds = enhanced(11, ct=True)
    ds.Rows = ds.Columns = 1024
    values = np.random.default_rng(5).integers(900, 1200, (11, 1024, 1024), np.uint16)
    ds.PixelData = values.tobytes()
    (item,) = files(tmp_path / "in", [ds])
    asked: list[range] = []

    def decode(source: Any, frames: range, **known: Any) -> Any:
        asked.append(frames)
        return pixels.decode(source, frames, **known)

    monkeypatch.setattr("node.enhance.scratch.decode", decode)
    with Scratch(scratch) as kept:
        shares = list(kept.take(kept.read(item), 2))
        monkeypatch.undo()
        stored = {
            ref.frame_number - 1: kept.slab(stack, i, i + 1).stored[0][0]
            for stack in stacks(headers_of([item]))
            for i, ref in enumerate(stack.frames)
        }
    assert sorted((r.start, r.stop) for r in asked) == [(0, 4), (4, 8), (8, 11)]
    assert shares == [4 / 11, 8 / 11, 1]
    assert np.array_equal(np.stack([stored[i] for i in range(11)]), values)


def _large(**attributes: Any) -> Dataset:
    cells = np.random.default_rng(1).integers(0, 4096, (200, 200), np.uint16)
    return image(cells, SOPInstanceUID="1.2.3", **attributes)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_an_instance_is_derived_from_the_bytes_that_were_verified(
    tmp_path: Path, scratch: Path, syntax: str
) -> None:
    """What the disk makes of the file afterwards is nobody's business."""
    (item,) = files(tmp_path / "in", [_large()], syntax)
    whole = item.open()
    with Scratch(scratch) as kept:
        list(kept.take(kept.read(item)))
        item.path.unlink()
        found = kept.source(kept.places["1.2.3"])
    assert (found.transfer_syntax_uid, found.meta_uids) == (whole.transfer_syntax_uid, whole.meta_uids)
    assert found.pixel_data == Element(PIXEL_DATA, "OW", b"")
    assert {t: e for t, e in found.elements.items() if t != PIXEL_DATA} == {
        t: e for t, e in whole.elements.items() if t != PIXEL_DATA
    }


@pytest.mark.parametrize("why", ["deflated", "big endian", "small", "an overlay in its pixels", "no room"])
def test_an_instance_that_cannot_be_had_without_its_pixels_is_verified_again(
    tmp_path: Path, scratch: Path, why: str
) -> None:
    ds = image(SOPInstanceUID="1.2.3") if why == "small" else _large()
    if why == "an overlay in its pixels":
        ds.add_new(0x60000100, "US", 16)
        ds.add_new(0x60000102, "US", 14)
    syntax = {"deflated": DEFLATED, "big endian": BIG}.get(why, EXPLICIT)
    (item,) = files(tmp_path / "in", [ds], syntax)
    with Scratch(scratch) as kept:
        if why == "no room":
            kept._heads_left = 100
        list(kept.take(kept.read(item)))
        place = kept.places["1.2.3"]
        assert kept.source(place).elements == item.open().elements
        flip(item.path, item.path.stat().st_size // 2)
        with pytest.raises(SeriesError, match="not those that were received"):
            kept.source(place)


@pytest.mark.parametrize("threads", [2, 4])
def test_where_there_is_one_hand_a_slab_is_surveyed_with_it(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """The other thread is the network's then; where there are more, they share the slices of a slab."""
    engine = catalog.load("ct-tv", threads=threads)
    seen: set[tuple[bool, bool]] = set()

    def survey(volume: Volume) -> Any:
        free = engine.hands.acquire(blocking=False)  # type: ignore[attr-defined]
        if free:
            engine.hands.release()  # type: ignore[attr-defined]
        seen.add((free, threading.current_thread() is threading.main_thread()))
        return measured(volume)

    measured = noise.survey
    monkeypatch.setattr("engines.front.noise.survey", survey)
    engine.survey(uniform("CT", 40.0, 20.0, (5, 64, 64)))
    assert seen == ({(False, True)} if threads == 2 else {(True, False)})
