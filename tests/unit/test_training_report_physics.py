"""The physics page: what it says of engines whose truth is known, and that all of it runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from engines.base import Card, Floats
from engines.catalog import ZOO, Catalog
from engines.front import Enhancer, Task
from training.report import physics, physics_inserts, physics_noise, physics_tasks, physics_verdicts
from training.report.physics_bench import CT_SPACING, Subject, cell, passed, subjects, table
from training.report.section import Context


class _Nothing:
    """Finds no noise."""

    runtime, device, calls = "test", "cpu", 1

    def residual(self, task: Task, *, tile: int) -> Floats:
        return np.zeros_like(task.values)


class _Blur(_Nothing):
    """Takes everything that a running mean does not keep: a bad denoiser."""

    def residual(self, task: Task, *, tile: int) -> Floats:
        from scipy.ndimage import uniform_filter

        return np.asarray(task.values - uniform_filter(task.values, 5), np.float32)


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
