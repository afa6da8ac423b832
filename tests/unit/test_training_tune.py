"""Tuning: spaces are checked, trials are judged on validation shards only, a study goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optuna")

from torch import Tensor, nn  # noqa: E402

from tests.training_samples import shards as write_shards  # noqa: E402
from training import feed, space, tune, typed  # noqa: E402
from training.data import shards  # noqa: E402
from training.errors import RecipeError  # noqa: E402
from training.networks import build  # noqa: E402
from training.recipe import Recipe, load, parse  # noqa: E402

RECIPE = """
name: small
seed: 3
network: {kind: pu, options: {size: t, gain: 1.0}}
data: {unit: HU, truth: [toy-truth], validation: [toy-validation], patch: 32, projected: 0, sigma: [20, 60],
  licence: synthetic}
optim: {updates: 8, batch: 2, rate: 1.0e-3, warmup: 2, average: 0.9}
"""
KEYS = "keys: {optim.rate: {range: [1.0e-4, 3.0e-3], log: true}, loss.gradient: {choices: [0.0, 0.1]}}"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return parse(RECIPE, "small.yaml")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), n=4, matrix=64)


def spaced(recipe: Recipe, folder: Path, text: str) -> space.Space:
    path = folder / "space.yaml"
    path.write_text(text)
    return space.load(path, recipe)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("keys: {optim.rat: {range: [1, 2]}}", "optim.rat"),
        ("keys: {network.options.sice: {choices: [t]}}", "network.options.sice"),
        ("keys: {adversary.weight: {range: [0.1, 0.2]}}", "adversary.weight"),
        ("keys: {optim: {choices: [1]}}", "optim"),
        ("keys: {data.validation: {choices: [other]}}", "data.validation"),
        ("keys: {optim.updates: {range: [1, 9], whole: true}}", "optim.updates"),
        ("keys: {optim.rate: {range: [-1.0, 1.0]}}", "optim.rate"),
        ("keys: {optim.rate: {range: [2, 1]}}", "optim.rate"),
        ("keys: {optim.rate: {}}", "optim.rate"),
        ("keys: {optim.rate: {range: [0, 1], log: true}}", "optim.rate"),
        ("keys: {optim.batch: {range: [1.5, 4], whole: true}}", "optim.batch"),
        ("keys: {}", "keys"),
        ("colour: red\n" + KEYS, "colour"),
    ],
)
def test_a_space_that_does_not_fit_names_the_key(
    recipe: Recipe, tmp_path: Path, text: str, named: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        spaced(recipe, tmp_path, text)
    assert named in caught.value.message


def test_the_shipped_space_fits_the_shipped_recipes() -> None:
    for name in ("ct-cnn", "mr-cnn", "ct-gan", "ct-sr2", "toy"):
        assert "optim.rate" in space.load("defaults", load(name)).keys


def test_a_changed_recipe_is_a_valid_copy(recipe: Recipe) -> None:
    copy = space.changed(recipe, {"optim.rate": 0.002, "network.options.gain": 2.0}, name="other")
    assert (copy.optim.rate, copy.network.options["gain"], copy.name) == (0.002, 2.0, "other")
    assert recipe.optim.rate == 1e-3
    assert copy.digest != recipe.digest
    assert space.value_of(recipe, "network.options.gain") == 1.0
    assert space.value_of(recipe, "network.options.blocks") is None


class Known(nn.Module):
    """Says a known thing: the target of the check, shifted or smoothed."""

    def __init__(self, says: Tensor) -> None:
        super().__init__()
        self.says, self.weight = says, nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.says


def test_bias_and_grain_cost_what_the_penalty_says(recipe: Recipe, data: Path) -> None:
    ((level, b),) = feed.validation(recipe, data)[1:2]
    target, sigma = torch.from_numpy(b.target), torch.from_numpy(b.sigma)
    penalty = space.Penalty()

    def judged(says: Tensor) -> tune.Figures:
        return tune.judge(Known(says), [(level, b)], recipe, penalty)

    half = judged(0.5 * target)
    assert half.gain == pytest.approx(6.02, abs=0.01)
    assert half.cfr == pytest.approx(1.0, abs=1e-6)
    own = float((-0.5 * target / sigma).mean())
    shifted = judged(0.5 * target + 0.1 * sigma)
    assert half.bias == pytest.approx(abs(own))
    assert shifted.bias == pytest.approx(abs(own + 0.1))
    fine = target - nn.functional.avg_pool2d(target, 3, 1, 1)
    coarse_left = judged(fine)
    assert coarse_left.cfr < 0.95
    expected = coarse_left.gain - 20 * coarse_left.bias - 10 * abs(1 - coarse_left.cfr)
    assert coarse_left.score == pytest.approx(expected)


def test_an_untrained_network_gains_nothing(recipe: Recipe, data: Path) -> None:
    figures = tune.judge(
        build("pu", size="t"), feed.validation(recipe, data), recipe, space.Penalty(bias=0.0, cfr=10.0)
    )
    assert figures.gain == pytest.approx(0.0, abs=1e-3)
    assert figures.cfr == pytest.approx(1.0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_study_opens_no_test_shard_and_goes_on(
    recipe: Recipe, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: set[str] = set()
    read = shards.read

    def noted(folder: Path) -> tuple[shards.Shard, ...]:
        opened.add(folder.name)
        return read(folder)

    monkeypatch.setattr(shards, "read", noted)
    found = spaced(recipe, tmp_path, KEYS)
    first = tune.tune(recipe, found, data, tmp_path, n_trials=1)
    assert first.trials[0]["values"] == {"optim.rate": 1e-3, "loss.gradient": 0.1}, (
        "the recipe itself comes first"
    )
    done = tune.tune(recipe, found, data, tmp_path, n_trials=3)
    assert opened == {"toy-truth", "toy-validation"}
    assert [t["trial"] for t in done.trials] == [0, 1, 2]
    assert all(t["state"] in ("complete", "pruned") for t in done.trials)

    told = json.loads((tmp_path / "small" / "tune.json").read_text())
    complete = {t["trial"]: t["score"] for t in told["trials"] if t["state"] == "complete"}
    assert told["best"] == max(complete, key=lambda n: complete[n])
    best = load(done.path)
    assert best == done.recipe
    assert best.name == "small-tuned"
    assert best.optim.rate == told["trials"][told["best"]]["values"]["optim.rate"]
    assert "| **" in (tmp_path / "small" / "tune.md").read_text()
    assert not list((tmp_path / "small").rglob("*.safetensors"))
    other = typed.parse(space.Space, "keys: {optim.decay: {range: [0, 1]}}", "other")
    with pytest.raises(RecipeError, match="another recipe or space"):
        tune.tune(recipe, other, data, tmp_path, n_trials=4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trial_that_does_badly_is_stopped_early(
    recipe: Recipe, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_rate(_network: object, _checks: object, copy: Recipe, _penalty: object) -> tune.Figures:
        score = 5.0 if copy.optim.rate == 1e-3 else 0.0
        return tune.Figures(gain=score, bias=0.0, cfr=1.0, score=score)

    monkeypatch.setattr(tune, "judge", by_rate)
    found = spaced(recipe, tmp_path, "keys: {optim.rate: {choices: [1.0e-3, 1.0e-9]}}")
    done = tune.tune(recipe, found, data, tmp_path, n_trials=4)
    states = {(t["values"]["optim.rate"], t["state"]) for t in done.trials}
    assert (1e-3, "complete") in states
    assert (1e-9, "pruned") in states
    assert (1e-9, "complete") not in states
    assert done.recipe.optim.rate == 1e-3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trial_that_diverges_does_not_end_the_search(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    found = spaced(recipe, tmp_path, "keys: {loss.gradient: {choices: [0.1, 1.0e+39]}}")
    told: list[str] = []
    done = tune.tune(recipe, found, data, tmp_path, n_trials=3, say=told.append)
    assert {(t["values"]["loss.gradient"], t["state"]) for t in done.trials} >= {
        (0.1, "complete"),
        (1e39, "pruned"),
    }
    assert any("not a number" in line for line in told)
    assert done.recipe.loss.gradient == 0.1
    assert not list((tmp_path / "small").rglob("*.safetensors"))
