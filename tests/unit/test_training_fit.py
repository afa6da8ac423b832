"""The training loop: it learns, it resumes to the bit, it refuses what it cannot go on with."""

from __future__ import annotations

import json
import resource
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.training_samples import shards  # noqa: E402
from training import checkpoint, losses  # noqa: E402
from training.data.shards import Writer  # noqa: E402
from training.errors import CheckpointError, DataError, Diverged, RecipeError, SplitError  # noqa: E402
from training.fit import BEST, LAST, Fit, finished  # noqa: E402
from training.recipe import FOLDER, Recipe, load, parse  # noqa: E402

TINY = """
name: {name}
seed: 3
network: {network}
data: {{unit: HU, truth: [toy-truth], validation: [toy-validation], patch: 32, projected: 0, sigma: [20, 60],
  licence: x}}
optim: {{updates: {updates}, batch: 2, rate: 1.0e-3, warmup: 2, average: 0.9}}
"""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards(tmp_path_factory.mktemp("data"), n=4, matrix=96)


def recipe(
    name: str = "tiny", network: str = "{kind: pu, options: {size: t}}", updates: int = 12, more: str = ""
) -> Recipe:
    return parse(TINY.format(name=name, network=network, updates=updates) + more, "tiny")


def fit(what: Recipe, data: Path, runs: Path) -> Fit:
    return Fit(what, data, runs / what.name, runs)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read(path)[1]


def test_a_resumed_training_ends_with_the_same_bits(data: Path, tmp_path: Path) -> None:
    fit(recipe(), data, tmp_path / "whole").run()
    fit(recipe(), data, tmp_path / "parts").run(stop_after=5)
    second = fit(recipe(), data, tmp_path / "parts")
    assert second.resume()
    assert second.progress.step == 5
    assert second.run().step == 12
    one, other = (weights(tmp_path / which / "tiny" / LAST) for which in ("whole", "parts"))
    assert one.keys() == other.keys()
    assert {k for k in one if not torch.equal(one[k], other[k])} == set()
    lines = (tmp_path / "parts" / "tiny" / "figures.jsonl").read_text().splitlines()
    assert {"gain", "step"} <= json.loads(lines[-1]).keys()


def test_a_finished_training_has_nothing_to_do(data: Path, tmp_path: Path) -> None:
    fit(recipe(updates=3), data, tmp_path).run()
    again = fit(recipe(updates=3), data, tmp_path)
    again.resume()
    assert again.run().step == 3


def test_another_recipe_does_not_go_on(data: Path, tmp_path: Path) -> None:
    fit(recipe(), data, tmp_path).run(stop_after=1)
    with pytest.raises(CheckpointError, match="another recipe"):
        fit(recipe(updates=13), data, tmp_path).resume()


@pytest.mark.parametrize("harm", ["cut", "empty", "pickle"])
def test_a_broken_checkpoint_is_told(tmp_path: Path, data: Path, harm: str) -> None:
    fit(recipe(updates=2), data, tmp_path).run()
    path = tmp_path / "tiny" / LAST
    if harm == "pickle":
        torch.save({"a": 1}, path)
    else:
        path.write_bytes(path.read_bytes()[: 100 if harm == "cut" else 0])
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        fit(recipe(updates=2), data, tmp_path).resume()


def test_a_training_goes_on_from_a_shipped_engine(data: Path, tmp_path: Path) -> None:
    """Checkpoints do not last, the zoo does: weights come back from it to the bit."""
    from engines.catalog import ZOO
    from training import warm

    name = warm.recipe_of(ZOO / "ct-cnn")
    assert warm.shipped(name) == ZOO / "ct-cnn"
    network = "{kind: pu, options: {size: s}}"
    begun = fit(recipe("next", network, updates=1, more=f"begins_with: {name}\n"), data, tmp_path)
    stored = warm.weights(ZOO / "ct-cnn")
    assert all(torch.equal(v, stored[k]) for k, v in begun.network.state_dict().items())
    with pytest.raises(CheckpointError, match="do not fit"):
        fit(recipe("other", updates=1, more=f"begins_with: {name}\n"), data, tmp_path)


def test_a_gan_begins_with_the_cnn(data: Path, tmp_path: Path) -> None:
    adversary = "adversary: {begins_with: tiny, weight: 0.01}\n"
    gan = recipe("tiny-gan", updates=4, more=adversary)
    with pytest.raises(CheckpointError, match="are not there"):
        fit(gan, data, tmp_path)
    fit(recipe(updates=6), data, tmp_path).run()
    begun = fit(gan, data, tmp_path)
    start = weights(tmp_path / "tiny" / BEST)
    assert all(torch.equal(v, start[f"ema.{k}"]) for k, v in begun.network.state_dict().items())
    before = {k: v.clone() for k, v in begun.critic.state_dict().items() if "original" in k}
    begun.run()
    assert any(not torch.equal(v, before[k]) for k, v in begun.critic.state_dict().items() if k in before)
    assert finished(tmp_path / "tiny-gan" / BEST, gan)(
        torch.zeros(1, 3, 16, 16), torch.zeros(1, 1, 16, 16)
    ).shape


@pytest.mark.parametrize(
    "network",
    [
        "{kind: autoencoder, options: {channels: [8, 8, 8], code: 4}}",
        "{kind: autoencoder, options: {channels: [8, 8, 8], code: 4, variational: true}}",
        "{kind: red-cnn, options: {channels: 4}}",
    ],
)
def test_other_networks_train(data: Path, tmp_path: Path, network: str) -> None:
    what = recipe(network=network, updates=3)
    made = fit(what, data, tmp_path)
    before = {k: v.clone() for k, v in made.network.state_dict().items()}
    made.run()
    assert any(not torch.equal(v, before[k]) for k, v in made.network.state_dict().items())


def test_bfloat16_trains(data: Path, tmp_path: Path) -> None:
    what = recipe(updates=4)
    halved = what.model_copy(update={"optim": what.optim.model_copy(update={"precision": "bf16"})})
    assert fit(halved, data, tmp_path).run().step == 4


def test_a_loss_that_is_not_a_number_stops(data: Path, tmp_path: Path) -> None:
    made = fit(recipe(), data, tmp_path)
    with torch.no_grad():
        next(made.network.parameters()).fill_(float("nan"))
    with pytest.raises(Diverged, match="not a number at step 0"):
        made.run()


def test_a_gradient_that_is_not_a_number_changes_no_weight(data: Path, tmp_path: Path) -> None:
    made = fit(recipe(), data, tmp_path)
    made.run(stop_after=2)
    before = {k: v.clone() for k, v in made.network.state_dict().items()}
    parameter = next(made.network.parameters())
    parameter.register_hook(lambda g: g * float("inf"))  # as half precision that overflows on the way back
    with pytest.raises(Diverged, match="gradient is not a number at step 2"):
        made.run()
    assert all(torch.equal(v, before[k]) for k, v in made.network.state_dict().items())


@pytest.mark.parametrize("lesions", [False, True])
def test_weights_that_are_no_numbers_never_take_the_place_of_good_ones(
    data: Path, tmp_path: Path, lesions: bool
) -> None:
    what = recipe(updates=4)
    what = what.model_copy(update={"data": what.data.model_copy(update={"lesions": 0.5 if lesions else 0.0})})
    made = fit(what, data, tmp_path)
    made.run(stop_after=2)
    kept = {name: (tmp_path / "tiny" / name).read_bytes() for name in (LAST, BEST)}
    for network in (made.network, made.mean):
        with torch.no_grad():
            next(network.parameters()).fill_(float("nan"))
    with pytest.raises(Diverged, match="not a number at step 2"):
        made.run(stop_after=0)
    assert {name: (tmp_path / "tiny" / name).read_bytes() for name in (LAST, BEST)} == kept
    again = fit(what, data, tmp_path)
    assert again.resume()
    assert again.run().step == 4


def test_a_full_disk_leaves_the_last_checkpoint(data: Path, tmp_path: Path) -> None:
    fit(recipe(), data, tmp_path).run(stop_after=2)
    kept = (tmp_path / "tiny" / LAST).read_bytes()
    made = fit(recipe(), data, tmp_path)
    assert made.resume()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # Python ignores its signal: writes fail
    try:
        with pytest.raises(CheckpointError, match="cannot be written"):
            made.run(stop_after=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "tiny" / LAST).read_bytes() == kept
    assert not list((tmp_path / "tiny").glob("*.part")), "no half of one takes the room that is missing"
    again = fit(recipe(), data, tmp_path)
    assert again.resume()
    assert again.progress.step == 2


def test_two_processes_do_not_train_the_same(data: Path, tmp_path: Path) -> None:
    with (
        checkpoint.alone(tmp_path / "tiny"),
        pytest.raises(CheckpointError, match="another process trains tiny"),
    ):
        fit(recipe(updates=1), data, tmp_path).run()
    assert fit(recipe(updates=1), data, tmp_path).run().step == 1


def test_a_run_that_was_killed_after_its_best_keeps_it(data: Path, tmp_path: Path) -> None:
    made = fit(recipe(), data, tmp_path)
    made.run(stop_after=2)
    last = made.progress
    made.progress = replace(last, best=50.0, step=3)  # judged and kept; killed before the next checkpoint
    made.save(BEST)
    kept = (tmp_path / "tiny" / BEST).read_bytes()
    again = fit(recipe(), data, tmp_path)
    assert again.resume()
    assert (again.progress.step, again.progress.best) == (2, 50.0)
    again.run()
    assert (tmp_path / "tiny" / BEST).read_bytes() == kept


@pytest.mark.parametrize("before", ["", "split-a", "split-b"])
def test_weights_that_saw_patients_of_another_split_are_no_beginning(
    data: Path, tmp_path: Path, before: str
) -> None:
    def of(what: Recipe, split: str) -> Recipe:
        return what.model_copy(update={"data": what.data.model_copy(update={"split": split})})

    fit(of(recipe(updates=1), before), data, tmp_path).run()
    second = of(recipe("second", updates=1, more="begins_with: tiny\n"), "split-b")
    if before == "split-a":
        with pytest.raises(SplitError, match="another split"):
            fit(second, data, tmp_path)
    else:
        assert fit(second, data, tmp_path).run().step == 1


@pytest.mark.parametrize("harm", ["progress", "moments", "gone"])
def test_a_checkpoint_that_does_not_fit_is_told(data: Path, tmp_path: Path, harm: str) -> None:
    from safetensors.torch import save_file

    what = recipe(updates=3)
    fit(what, data, tmp_path).run(stop_after=1)
    path = tmp_path / "tiny" / LAST
    progress, tensors = checkpoint.read(path)
    told = json.dumps({**asdict(progress), **({"colour": "red"} if harm == "progress" else {})})
    if harm == "moments":
        name = next(k for k in tensors if k.endswith(".exp_avg"))
        tensors[name] = torch.zeros(3)
    save_file(tensors, str(path), metadata={"progress": told})
    with pytest.raises(CheckpointError) as caught:
        if harm == "gone":
            finished(tmp_path / "other" / BEST, what)
        else:
            fit(what, data, tmp_path).resume()
    assert caught.value.hint
    assert "--fresh" in caught.value.hint or "fit other" in caught.value.hint


def test_losses_have_their_meaning() -> None:
    torch.manual_seed(0)
    error = torch.randn(2, 1, 64, 64)
    assert float(losses.charbonnier(torch.zeros(1), 0.2)) == 0
    assert float(losses.charbonnier(torch.full((1,), 100.0), 0.2)) == pytest.approx(99.8, abs=0.01)
    assert float(losses.gradient(torch.ones(1, 1, 8, 8))) == 0
    assert float(losses.lowpass(error + 1)) == pytest.approx(1, abs=0.05)
    assert float(losses.lowpass(error)) < 0.1
    smooth = torch.nn.functional.avg_pool2d(error, 5, 1, 2)
    assert float(losses.texture(error, error)) == 0
    assert float(losses.texture(3 * error, error)) < 0.02
    assert float(losses.texture(smooth, error)) > 0.5
    assert float(losses.hinge_critic(torch.full((4,), 2.0), torch.full((4,), -2.0))) == 0


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_recipes_are_sound(path: Path) -> None:
    found = load(path)
    assert found.name == path.stem
    assert load(path.stem) == found
    if found.engine is not None:
        assert "NON-COMMERCIAL" not in found.data.licence.upper()


def test_no_two_recipes_make_the_same_engine() -> None:
    made = [r.engine.name for r in map(load, FOLDER.glob("*.yaml")) if r.engine is not None]
    assert len(made) == len(set(made)) >= 8


def test_lesions_are_asked_to_stay_in_twins(data: Path, tmp_path: Path) -> None:
    """Twins make a part of the loss of their own, and neither goes without the other."""
    text = TINY.format(name="kept", network="{kind: pu, options: {size: t}}", updates=3)
    text = text.replace("licence: x", "lesions: 1.0, twins: 1.0, licence: x")
    told = fit(parse(text + "loss: {kept: 0.2}", "r"), data, tmp_path)
    seen: list[float] = []
    told.run(lambda figures: seen.append(figures.get("kept", -1.0)))
    assert sum(v >= 0 for v in seen) == 3
    with pytest.raises(RecipeError, match="go together"):
        parse(text, "r")
    change, ruler = torch.full((2, 1, 8, 8), 0.5), torch.full((2, 1, 8, 8), 1 / 64)
    assert float(losses.kept(change, ruler)) == pytest.approx(0.25)


def test_an_engine_may_be_the_mean_of_two_stages(data: Path, tmp_path: Path) -> None:
    from training.ship import mean_of

    fit(recipe(updates=4), data, tmp_path).run()
    fit(recipe("second", updates=4, more="begins_with: tiny\n"), data, tmp_path).run()
    one, other = (finished(tmp_path / name / BEST, recipe()) for name in ("tiny", "second"))
    before = {k: v.clone() for k, v in one.state_dict().items()}
    mean_of(one, other)
    theirs = other.state_dict()
    assert any(not torch.equal(before[k], theirs[k]) for k in theirs)
    for k, v in one.state_dict().items():
        assert torch.allclose(v, 0.5 * (before[k] + theirs[k]))


def test_a_second_stage_goes_on_from_the_first(data: Path, tmp_path: Path) -> None:
    fit(recipe(updates=6), data, tmp_path).run()
    second = fit(recipe("second", updates=2, more="begins_with: tiny\n"), data, tmp_path)
    start = weights(tmp_path / "tiny" / BEST)
    assert all(torch.equal(v, start[f"ema.{k}"]) for k, v in second.network.state_dict().items())


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: [", "not YAML at line"),
        ("- 1", "not a mapping"),
        ("name: X", "name: String should match"),
        (TINY.format(name="a", network="{kind: sr}", updates=1), "go together"),
        (TINY.format(name="a", network="{kind: pu}", updates=0), "optim.updates"),
        (TINY.format(name="a", network="{kind: pu}", updates=1) + "colour: red", "colour: Extra"),
    ],
)
def test_a_wrong_recipe_is_told(text: str, what: str) -> None:
    with pytest.raises(RecipeError, match=what):
        parse(text, "r.yaml")


@pytest.mark.parametrize(
    "network",
    [
        "{kind: pu, options: {size: t, gain: 0}}",
        "{kind: pu, options: {size: t, gain: many}}",
        "{kind: autoencoder, options: {channels: [], code: 4}}",
        "{kind: autoencoder, options: {channels: [-1, 8, 8], code: 4}}",
    ],
)
def test_options_that_make_no_network_are_told(data: Path, tmp_path: Path, network: str) -> None:
    with pytest.raises(RecipeError, match="options"):
        fit(recipe(network=network), data, tmp_path)


@pytest.mark.parametrize("unit", ["HU", "arbitrary"])
def test_shards_of_another_unit_are_refused(tmp_path: Path, unit: str) -> None:
    span, level = ((0.0, 4.0), 0.5) if unit == "HU" else ((-1024.0, 3071.0), 40.0)
    for part in ("truth", "validation"):
        writer = Writer(tmp_path / f"toy-{part}")
        writer.add("a", np.full((3, 64, 64), level, np.float32), (1.0, 1.0, 1.0), span=span)
    told = parse(
        TINY.format(name="tiny", network="{kind: pu}", updates=1).replace("unit: HU", f"unit: {unit}"), "x"
    )
    with pytest.raises(DataError, match=f"is for {unit}"):
        fit(told, tmp_path, tmp_path)


def test_the_card_does_not_make_other_weights() -> None:
    one = load("ct-gan")
    assert one.engine is not None
    other = one.model_copy(update={"engine": one.engine.model_copy(update={"title": "x"})})
    assert other.digest == one.digest
    assert one.model_copy(update={"seed": 99}).digest != one.digest
