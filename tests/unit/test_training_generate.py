"""Generators: what they draw is labelled, repeatable and refused where it could deceive; the comparison is fair."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from engines.catalog import Catalog  # noqa: E402
from tests.training_samples import shards as write_shards  # noqa: E402
from training import generate, typed, widen  # noqa: E402
from training.data import shards  # noqa: E402
from training.data.shards import Writer  # noqa: E402
from training.errors import CheckpointError, DataError  # noqa: E402
from training.generate import Gan, Generation  # noqa: E402
from training.networks.generator import Generator, PatchCritic, opened, pressed  # noqa: E402
from training.recipe import Recipe, parse  # noqa: E402
from training.report import widening  # noqa: E402
from training.report.section import Context, Section  # noqa: E402

RECIPE = """
name: small-gan
seed: 5
data: {unit: HU, truth: [toy-truth], kinds: [abdomen, abstract, chest, head], patch: 64, nearest_mm: 99,
  licence: synthetic}
network: {code: 8, width: 8, critic_width: 8}
optim: {updates: 6, batch: 4}
"""
FIT = """
name: small
seed: 3
network: {kind: pu, options: {size: t, gain: 1.0}}
data: {unit: HU, truth: [toy-truth], validation: [toy-validation], patch: 64, projected: 0, sigma: [20, 60],
  licence: synthetic}
optim: {updates: 4, batch: 2, rate: 1.0e-3, warmup: 2, average: 0.9}
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def recipe() -> Generation:
    return typed.parse(Generation, RECIPE, "small-gan.yaml")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "data", n=4, matrix=64)


def changed(recipe: Generation, **parts: dict[str, object]) -> Generation:
    told = recipe.model_dump()
    for name, values in parts.items():
        told[name] |= values
    return Generation.model_validate(told)


@pytest.mark.parametrize(("unit", "low", "high"), [("HU", -1024.0, 3071.0), ("arbitrary", 0.0, 4.0)])
def test_companding_is_undone(unit: str, low: float, high: float) -> None:
    values = torch.linspace(low, high, 1000)
    small = pressed(values, unit)
    assert small.min() >= -1
    assert small.max() <= 1.0001
    assert torch.allclose(opened(small, unit), values, atol=1e-2 if unit == "HU" else 1e-4)


@pytest.mark.parametrize("size", [64, 128])
def test_generator_and_critic_have_the_sizes_that_they_say(size: int) -> None:
    network = Generator(size, kinds=3, code=8, width=8)
    kinds = torch.tensor([0, 2])
    made = network(torch.randn(2, 8), kinds, torch.Generator().manual_seed(1))
    assert made.shape == (2, 3, size, size)
    assert PatchCritic(3, 8)(made, kinds).shape == (2, 1, size // 16, size // 16)


def test_shipped_recipes_of_generators_are_valid() -> None:
    for name in ("generate-ct", "generate-mr"):
        assert generate.load(name).name == name


def test_a_generator_resumes_to_the_weights_of_one_that_was_never_stopped(
    recipe: Generation, data: Path, tmp_path: Path
) -> None:
    whole = Gan(recipe, data, tmp_path / "whole")
    whole.learn()
    cut = Gan(recipe, data, tmp_path / "cut")
    for _ in range(3):
        cut.step()
        cut.progress = cut.progress.__class__(
            step=cut.progress.step + 1, seconds=0.0, best=0.0, recipe=recipe.digest, split=""
        )
    cut.save()
    again = Gan(recipe, data, tmp_path / "cut")
    assert again.resume()
    assert again.progress.step == 3
    again.learn()
    for one, other in zip(whole.mean.parameters(), again.mean.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    other_recipe = changed(recipe, optim={"updates": 7})
    with pytest.raises(CheckpointError):
        Gan(other_recipe, data, tmp_path / "cut").resume()


def test_a_generator_learns_the_level_of_what_it_is_shown(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    writer = Writer(tmp_path / "toy-truth")
    for i, (kind, level) in enumerate((("water", 0.0), ("bone", 900.0))):
        values = (level + 20 * rng.standard_normal((3, 64, 64))).astype(np.float32)
        writer.add(f"s{i}", values, (1.0, 1.0, 1.0), span=(-1024.0, 3071.0), kind=kind)
    recipe = typed.parse(
        Generation,
        "{name: levels, seed: 2, data: {unit: HU, truth: [toy-truth], kinds: [water, bone], licence: none},"
        " network: {code: 8, width: 16, critic_width: 8},"
        " optim: {updates: 60, batch: 6, rate: 2.0e-3, critic_rate: 2.0e-3, average: 0.8}}",
        "levels",
    )
    gan = Gan(recipe, tmp_path, tmp_path / "out")
    gan.learn()
    water, bone = gan.draw([0] * 6, 1).mean(), gan.draw([1] * 6, 1).mean()
    assert bone > water + 150


def test_what_is_drawn_says_so_and_is_repeatable(recipe: Generation, data: Path, tmp_path: Path) -> None:
    gan = Gan(recipe, data, tmp_path / "runs")
    gan.learn()
    assert generate.write(recipe, gan, data / "drawn", 3) == 3
    assert generate.write(recipe, gan, data / "drawn", 5) == 2
    assert generate.write(recipe, gan, data / "again", 5) == 5
    digest = hashlib.sha256((tmp_path / "runs" / "last.safetensors").read_bytes()).hexdigest()
    for one, other in zip(shards.read(data / "drawn"), shards.read(data / "again"), strict=True):
        assert one.shape == (3, 64, 64)
        assert one.facts["synthetic"] == "gan"
        assert one.facts["checkpoint_sha256"] == digest
        assert one.facts["recipe_sha256"] == recipe.digest
        assert one.facts["kind"] in recipe.data.kinds
        assert np.array_equal(one.stored, other.stored)
    drawn = typed.checked(Generation, changed(recipe, data={"truth": ["drawn"]}).model_dump(), "drawn")
    with pytest.raises(DataError, match="itself generated"):
        generate.sources(drawn, data)
    gan.step()
    gan.save()
    with pytest.raises(DataError, match="other weights"):
        generate.write(recipe, gan, data / "drawn", 6)


def test_patients_outside_of_the_split_are_not_learned_from(recipe: Generation, data: Path) -> None:
    values = np.zeros((3, 64, 64), np.float32)
    for part in ("train", "test"):
        Writer(data / f"own-{part}").add(
            part, values, (1.0, 1.0, 1.0), span=(-1024.0, 3071.0), kind="chest", split="abc", part=part
        )
    for truth, split, fine in (
        ("own-train", "abc", True),
        ("own-train", "", False),
        ("own-test", "abc", False),
    ):
        asked = changed(recipe, data={"truth": [truth], "split": split})
        if fine:
            assert len(generate.sources(asked, data)) == 1
        else:
            with pytest.raises(DataError, match="training patients"):
                generate.sources(asked, data)


def test_classical_widening_bends_and_says_so(recipe: Generation, data: Path) -> None:
    assert widen.write_classical(recipe, data, data / "bent", 3) == 3
    assert widen.write_classical(recipe, data, data / "bent", 3) == 0
    assert {s.facts["synthetic"] for s in shards.read(data / "bent")} == {"classical"}
    rng = np.random.default_rng(0)
    flat = np.full((3, 64, 64), 140.0, np.float32)
    made = widen.warped(flat, "HU", rng)
    assert np.ptp(made) < 1e-3
    assert 0 < abs(float(made.mean()) - 140) < 16
    air = widen.warped(np.full((3, 64, 64), -1000.0, np.float32), "HU", rng)
    assert abs(float(air.mean()) + 1000) < 1
    with pytest.raises(DataError):
        widen.write_classical(recipe, data, data / "toy-truth", 9)


@pytest.fixture
def compared(recipe: Generation, data: Path, tmp_path: Path) -> dict[str, object]:
    widen.write_classical(recipe, data, data / "bent", 4)
    return widen.compare(parse(FIT, "small"), data, tmp_path / "runs", "bent", seeds=(1, 2))


def test_the_comparison_is_of_equal_trainings(
    compared: dict[str, object], data: Path, tmp_path: Path
) -> None:
    f: dict[str, object] = compared
    assert f["n_generated"] == 4
    assert f["n_truth"] == 4
    assert f["n_validation"] == 4
    difference = f["difference_db"]
    assert isinstance(difference, dict)
    assert difference["low"] <= difference["mean"] <= difference["high"]
    by_seed = f["by_seed"]
    assert isinstance(by_seed, list)
    assert difference["mean"] == pytest.approx(np.mean(by_seed), abs=1e-6)
    assert f["helped"] == (difference["low"] > 0 and min(by_seed) > 0)
    again = widen.compare(parse(FIT, "small"), data, tmp_path / "runs", "bent", seeds=(1, 2))
    assert again == f, "what was trained is taken, and judged alike"
    recipe: Recipe = parse(FIT.replace("toy-validation", "bent"), "small")
    with pytest.raises(DataError, match="judge nothing"):
        widen.compare(recipe, data, tmp_path / "runs", "bent")
    with pytest.raises(DataError, match="not generated"):
        widen.compare(parse(FIT, "small"), data, tmp_path / "runs", "toy-truth")
    shard = shards.read(data / "toy-validation")[0]
    whole = shard.crop(slice(None), slice(None), slice(None))
    Writer(data / "single").add("one", whole, shard.spacing_mm, span=(-1024.0, 3071.0))
    with pytest.raises(DataError, match="no interval"):
        widen.compare(
            parse(FIT.replace("toy-validation", "single"), "small"), data, tmp_path / "runs", "bent"
        )


def test_the_report_shows_the_comparison_or_that_there_is_none(
    compared: dict[str, object], data: Path, tmp_path: Path
) -> None:
    def section(runs: Path) -> Section:
        return widening.run(
            Context(catalog=Catalog([]), corpus=None, data=data, runs=runs, out=tmp_path / "report")
        )

    none = section(tmp_path / "nothing")
    assert none.figures == {"made": False}
    assert "was not made" in none.text
    shown = section(tmp_path / "runs")
    assert shown.figures["made"]
    assert "classical" in shown.text
    path = tmp_path / "runs" / "widening" / "bent.json"
    below = {"helped": False, "difference_db": {"mean": -1.0, "low": -2.0, "high": -0.5, "p": 0.01}}
    path.write_text(json.dumps(compared | below | {"by_seed": [-2.5, 0.5]}))
    assert "no effect was shown" in section(tmp_path / "runs").text
    path.write_text(json.dumps(compared | below | {"by_seed": [-1.2, -0.8]}))
    assert "it did harm" in section(tmp_path / "runs").text
    (tmp_path / "runs" / "widening" / "bent.json").write_text("{")
    assert section(tmp_path / "runs").figures == {"made": False}


def test_a_picture_is_written(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    some = widen.some(data / "toy-truth", 3)
    generate.picture(tmp_path / "some.png", [("truth", some), ("also", some[:2])], "HU")
    assert (tmp_path / "some.png").read_bytes().startswith(b"\x89PNG")
