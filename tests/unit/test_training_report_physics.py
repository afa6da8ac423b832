"""The physics page: what it says of engines whose truth is known, and that all of it runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

pytest.importorskip("torch")

from engines.base import Card, Floats
from engines.catalog import ZOO, Catalog
from engines.front import Enhancer, Task
from training.evaluate.conventions import SOFT
from training.report import (
    noise_table,
    physics,
    physics_inserts,
    physics_noise,
    physics_tasks,
    physics_verdicts,
    pictures,
    pictures_words,
    timing,
)
from training.report.physics_bench import CT_SPACING, Subject, cell, passed, subjects, table, volume
from training.report.section import Context


class _Nothing:
    """Finds no noise."""

    runtime, device, calls = "test", "cpu", 1

    def residual(self, task: Task, *, tile: int) -> Floats:
        return np.zeros_like(task.values)


class _Blur(_Nothing):
    """Takes everything that a running mean does not keep: a bad denoiser."""

    def residual(self, task: Task, *, tile: int) -> Floats:
        return np.asarray(task.values - ndimage.uniform_filter(task.values, 5), np.float32)


def _card() -> Card:
    return replace(Catalog.default().card("ct-nlm"), bound=4000.0, bound_sigmas=1000.0)


def _subject(core: _Nothing, strength: float = 0.6) -> Subject:
    return Subject(name="test", engine=Enhancer(_card(), core), strength=strength)


@pytest.fixture(scope="module")
def small_zoo(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """The tuned NLM of either modality and nothing else."""
    folder = tmp_path_factory.mktemp("zoo")
    for name in ("ct-nlm", "mr-nlm", "identity"):
        shutil.copytree(ZOO / name, folder / name)
    return Catalog([folder])


def test_an_engine_that_does_nothing_loses_nothing() -> None:
    subject = _subject(_Nothing())
    slab = physics_inserts.ct_slab(True)
    found, lines = physics_inserts.edges(subject, slab, physics_inserts.ct_noise(slab, 20.0), 20.0)
    assert all(e.f50_ratio == pytest.approx(1) and e.bias == 0 for e in found)
    assert all(li.slope == li.slope_of_input and li.slope == pytest.approx(1, abs=0.01) for li in lines)
    kept, spurious = physics_tasks.keep(subject, physics_tasks.stacks(True))
    assert all(k.retention == pytest.approx(1) for k in kept)
    assert all(s.before == s.after for s in spurious)


def test_blur_is_found_out() -> None:
    subject = _subject(_Blur())
    slab = physics_inserts.ct_slab(True)
    found, _ = physics_inserts.edges(subject, slab, physics_inserts.ct_noise(slab, 20.0), 20.0)
    assert all(e.f50_ratio < 0.9 for e in found if e.strength == 1.0)
    kept, _ = physics_tasks.keep(subject, physics_tasks.stacks(True))
    small = [k.retention for k in kept if k.diameter_mm == 3.0]
    assert max(small) < 0.9
    case = next(physics_noise.cases(True))
    default, full = physics_noise.grains(subject, physics_noise.ran(subject, case))
    assert default.strength == 0.6
    assert full.nmr < default.nmr < 1
    assert full.cfr < default.cfr < 0.9


def test_full_strength_follows_from_default_strength() -> None:
    values = next(physics_noise.cases(True)).noisy[0]
    at_half = passed(_subject(_Blur(), 0.5), values, CT_SPACING)
    at_one = passed(_subject(_Blur(), 1.0), values, CT_SPACING)
    assert np.abs(at_half.full - at_one.default).max() < 1e-3


def test_a_lesion_that_is_lowered_is_held_against_a_gan() -> None:
    subject = _subject(_Blur(), 1.0)
    kept, spurious = physics_tasks.keep(subject, physics_tasks.stacks(True))
    lowered, _ = physics_verdicts.never_invents("ct-gan", kept, spurious, [])
    assert not lowered.holds
    kept, spurious = physics_tasks.keep(_subject(_Nothing()), physics_tasks.stacks(True))
    assert all(v.holds for v in physics_verdicts.never_invents("ct-gan", kept, spurious, []))


def test_subjects_are_networks_and_the_tuned_filter(small_zoo: Catalog) -> None:
    assert [s.name for s in subjects(small_zoo, "CT")] == ["ct-nlm"]
    assert [s.name for s in subjects(small_zoo, "MR")] == ["mr-nlm"]
    assert subjects(small_zoo, "CT", scale=2) == []


def test_the_page_is_written_without_a_corpus(small_zoo: Catalog, tmp_path: Path) -> None:
    said: list[str] = []
    context = Context(
        catalog=small_zoo,
        corpus=None,
        data=tmp_path / "none",
        runs=tmp_path / "none",
        out=tmp_path / "out",
        quick=True,
        say=said.append,
    )
    page = physics.run(context)
    assert said
    for picture in ("physics-nps.png", "physics-nps-mr.png"):
        assert f"images/{picture}" in page.text
        assert (tmp_path / "out" / "images" / picture).stat().st_size < 250_000
    judged = {v["engine"] for v in page.figures["verdicts"]}
    assert judged == {"ct-nlm", "mr-nlm"}
    assert "nan" not in page.text.lower().split("## verdicts")[0]


def test_cells_are_for_people() -> None:
    assert [cell(v) for v in (True, False, float("nan"), 123.4, 12.34, 0.12345, "a")] == [
        "yes",
        "**no**",
        "-",
        "123",
        "12.3",
        "0.123",
        "a",
    ]
    assert table(("a",), [(1,)]) == "| a |\n|---|\n| 1 |"


def _context(catalog: Catalog, folder: Path) -> Context:
    return Context(
        catalog=catalog,
        corpus=None,
        data=folder / "none",
        runs=folder / "none",
        out=folder / "out",
        quick=True,
    )


def test_times_are_taken_in_turns(small_zoo: Catalog, tmp_path: Path) -> None:
    order: list[str] = []
    work = {
        ("a", "alone"): (lambda: order.append("a"), 2, 8),
        ("b", "alone"): (lambda: order.append("b"), 1, 8),
    }
    found = timing.in_turns(work, 3)
    assert order == ["a", "b"] * 4
    assert [(t.engine, t.runs) for t in found] == [("a", 3), ("b", 3)]
    page = timing.run(_context(small_zoo, tmp_path))
    turns = page.figures["turns"]
    assert {(t["engine"], t["what"]) for t in turns} == {
        (n, w) for n in ("ct-nlm", "mr-nlm") for w in ("alone", "whole")
    }
    assert all(t["wall_ms"] > 0 and t["cpu_ms"] > 0 for t in turns)
    gflop = {c["name"]: c["gflop"] for c in page.figures["costs"]}
    assert gflop["PU-T"] < gflop["PU-S"] < gflop["PU-M"]


def test_every_shipped_network_has_a_recipe_to_time_it_by(small_zoo: Catalog, tmp_path: Path) -> None:
    found = timing.recipe_of("ct-cnn")
    assert found is not None
    assert timing.recipe_of("ct-nlm") is None
    work = timing.eager(_context(small_zoo, tmp_path), "ct-cnn", 32, 2)
    assert work is not None
    made = work()
    assert isinstance(made, list)
    assert len(made) == 2


def test_the_noise_page_is_written(small_zoo: Catalog, tmp_path: Path) -> None:
    page = noise_table.run(_context(small_zoo, tmp_path))
    laws = page.figures["known"]["CT phantoms of the engines' laws"]
    assert all(abs(r["ratio"] - 1) <= 0.25 for r in laws)
    drawn = [r["ratio"] for r in page.figures["known"]["CT, drawn anatomy, noise through projections"]]
    # Texture that is there without noise drowns in stronger noise.
    assert page.figures["without_noise"][0]["found"] > 0
    assert drawn == sorted(drawn, reverse=True)
    assert 0.75 < drawn[-1] < 1.25
    frequency = {r["treatment"]: r["frequency"] for r in page.figures["smoothed"]}
    assert frequency["noise smoothed over 2.5 pixels"] < frequency["none"]


def test_smoothed_noise_on_nothing_else_is_told() -> None:
    flat = np.full((2, 160, 160), 40, np.float32)
    made = physics_noise.drawn((2, 160, 160), kernel="standard", sigma=20.0, seed=4)
    softer = np.asarray(ndimage.gaussian_filter(made, (0, 2.5, 2.5)), np.float32)
    said = [noise_table.remark("", "", volume(flat + n, CT_SPACING, "CT")).said for n in (made, softer)]
    assert said == [False, True]


def test_pictures_are_small_and_differences_are_grey_where_nothing_is(
    small_zoo: Catalog, tmp_path: Path
) -> None:
    made = physics_noise.drawn((3, 200, 200), kernel="standard", sigma=15.0, seed=3)
    given = volume(np.asarray(40 + made, np.float32), CT_SPACING, "CT")
    shot = replace(pictures.SHOTS[2], engines=("ct-nlm", "not-there"))
    context = _context(small_zoo, tmp_path)
    (told,) = pictures.shoot(context, shot, given, 1)
    assert told.engine == "ct-nlm"
    assert told.noise_after < told.noise_before
    with Image.open(context.image(f"picture-{shot.name}.png")) as image:
        assert image.mode == "L"
    assert pictures.shoot(context, replace(shot, engines=("not-there",)), given, 1) == []
    flat = np.zeros((8, 8), np.float32)
    assert set(pictures.difference(flat, flat, SOFT).ravel()) == {128}
    assert set(pictures.difference(flat, flat + 4, SOFT).ravel()) == {153}


def test_a_picture_that_is_too_large_gets_smaller_panels(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (300, 300)).astype(np.uint8)
    rows = [[(str(i), noise) for i in range(4)] for _ in range(3)]
    assert pictures.save(rows, tmp_path / "a.png") <= pictures.LARGEST_BYTES


def test_no_series_that_may_not_be_shown_is_drawn() -> None:
    for shot in pictures.SHOTS:
        assert "NC" not in shot.series.credit
        assert any(licence in shot.series.credit for licence in ("CC BY", "Apache-2.0", "BSD", "PDDL", "MIT"))


def test_words_of_other_weights_are_not_passed_off(
    small_zoo: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    shot = pictures.SHOTS[0]
    told = pictures.Told(
        picture=shot.name,
        engine="ct-cnn",
        weights="aaaaaaaaaaaa",
        strength=0.6,
        noise_before=20.0,
        noise_after=10.0,
        cfr=0.9,
        largest_mean_change=0.0,
        skipped=0,
    )
    for weights, stale in (("aaaaaaaaaaaa", False), ("bbbbbbbbbbbb", True)):
        words = pictures_words.Words(text="Good.", weights={"ct-cnn": weights})
        monkeypatch.setattr(pictures, "WORDS", {shot.name: words})
        text = pictures._caption(shot, [told], "HU")
        assert "Good." in text
        assert "50 % less" in text
        assert ("look again" in text) is stale
