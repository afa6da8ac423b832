"""From anyone's own images to an engine: what its card says is true, and nothing good is written over."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from engines.card import read as read_card  # noqa: E402
from engines.catalog import ZOO, Catalog  # noqa: E402
from engines.runtime.onnxfile import inspect  # noqa: E402
from tests.training_samples import shards as write_shards  # noqa: E402
from training import feed, retrain, warm  # noqa: E402
from training.__main__ import main  # noqa: E402
from training.data import lookalike, real  # noqa: E402
from training.errors import DataError  # noqa: E402
from training.recipe import FOLDER, load, parse  # noqa: E402
from training.ship import licence_of  # noqa: E402

RECIPE = """
name: small
seed: 3
network: {kind: pu, options: {size: t, gain: 1.0}}
data: {unit: HU, truth: [toy-truth], validation: [toy-validation], patch: 32, projected: 0, sigma: [20, 60],
  licence: "synthetic, Apache-2.0"}
optim: {updates: 2, batch: 2, rate: 1.0e-3, warmup: 1, average: 0.9}
engine: {name: small, version: 3.2.1, title: Small, family: cnn, modality: CT, sigma_range: [1.5, 150.0], bound: 200.0,
  trained_on: Drawn., evaluated: "+3.1 dB on real CT.", intended_use: All., not_for: Diagnosis., mean_with: another}
"""
OWN = "own images, not for others"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of patients and of drawings, and a recipe."""
    folder = tmp_path_factory.mktemp("home")
    write_shards(folder / "data", n=2, matrix=64)
    images = lookalike.mayo(folder / "images")
    ask = real.Ask(images=images, modality="CT", smallest=48, licence=OWN)
    real.write(ask, folder / "data", "own", fractions=(0.5, 0.25, 0.25))
    (folder / "small.yaml").write_text(RECIPE)
    return folder


def run(home: Path, runs: Path, *words: object) -> int:
    return main(["--data", str(home / "data"), "--runs", str(runs), "--threads", "1", *map(str, words)])


def test_what_is_retrained_becomes_an_engine_that_tells_the_truth(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo = tmp_path / "zoo"
    words = ("retrain", home / "small.yaml", "--images", home / "images", "--fractions", 0.5, 0.25, 0.25)
    assert run(home, tmp_path, *words, "--quiet") == 0
    path = capsys.readouterr().out.splitlines()[-1]
    assert run(home, tmp_path, "export", path, "--zoo", zoo) == 0
    card = read_card(zoo / "small-own")
    assert card.licence == f"synthetic, Apache-2.0; own images: {OWN}", "not that of the shipped weights"
    assert "dB" not in card.evaluated, "what was measured was measured of other weights"
    assert card.trained_on.startswith("Own images")
    assert card.version == "1.0.0"
    told = inspect((zoo / "small-own" / "model.fp32.onnx").read_bytes()).metadata
    assert told["split_sha256"] == load(path).data.split
    assert "mean_with" not in told
    assert "small-own" in Catalog([zoo]).names()
    # Once more is the same; other weights under the same name and version are not.
    assert run(home, tmp_path, "export", path, "--zoo", zoo) == 0
    assert run(home, tmp_path, *words, "--quiet", "--updates", 3, "--name", "own") == 1, "another recipe"
    before = (zoo / "small-own" / "model.fp32.onnx").read_bytes()
    assert run(home, tmp_path / "again", *words, "--quiet", "--updates", 1) == 0
    other = capsys.readouterr().out.splitlines()[-1]
    assert run(home, tmp_path / "again", "export", other, "--zoo", zoo) == 1
    assert "with other weights" in capsys.readouterr().err
    assert (zoo / "small-own" / "model.fp32.onnx").read_bytes() == before
    assert run(home, tmp_path / "again", "export", other, "--zoo", zoo, "--replace") == 0
    assert (zoo / "small-own" / "model.fp32.onnx").read_bytes() != before
    # A recipe that was edited afterwards would tell of weights that it did not make.
    edited = Path(other)
    edited.write_text(edited.read_text().replace(OWN, "CC0"))
    assert run(home, tmp_path / "again", "export", edited, "--zoo", zoo, "--replace") == 1
    assert "another recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["ct-cnn", "ct-cnn-fine", "ct-cnn-late", "ct-gan", "mr-cnn-late", "mr-gan", "ct-sr2"]
)
def test_every_stage_of_a_shipped_engine_can_be_retrained_from_what_is_shipped(
    home: Path, tmp_path: Path, name: str
) -> None:
    copy = retrain.own(load(name), home / "data", "own", tmp_path)
    assert copy.engine is not None
    assert copy.engine.name == f"{name}-own"
    assert copy.engine.mean_with is None
    assert not copy.engine.evaluated
    begins = [b for b in (copy.begins_with, copy.adversary and copy.adversary.begins_with) if b]
    assert all(warm.shipped(b) is not None for b in begins)
    assert (len(begins) > 0) == (load(name).begins_with is not None or load(name).adversary is not None)
    assert OWN in licence_of(copy)


def test_the_shipped_cards_say_what_their_recipes_say() -> None:
    made = {r.engine.name: r for r in (load(p) for p in FOLDER.glob("*.yaml")) if r.engine is not None}
    for name, what in made.items():
        if (ZOO / name).is_dir():
            assert read_card(ZOO / name).licence == licence_of(what)


def test_terms_of_patients_images_are_told(home: Path) -> None:
    split = (home / "data" / "own" / "split.json").read_text()
    text = RECIPE.replace("truth: [toy-truth]", "truth: [toy-truth, own-train]")
    text = text.replace("patch: 32", f"patch: 32, split: {split.split('split_hash')[1].split(chr(34))[2]}")
    with pytest.raises(DataError, match=OWN) as caught:
        next(feed.training(parse(text, "silent"), home / "data"))
    assert "card" in caught.value.hint
    next(feed.training(parse(text.replace("Apache-2.0", f"Apache-2.0; {OWN}"), "told"), home / "data"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--secret-file", "{}/empty.txt"), "holds no secret"),
        (("--secret-file", "{}/none.txt"), "cannot be read"),
        (("--name", "../elsewhere"), "no name of a set"),
        (("--name", "Site A"), "no name of a set"),
        (("--images", "{}/nowhere"), "no folder"),
        (("--patient-pattern", "("), "patient pattern"),
        (("--split", "{}/none.json"), "no split can be read"),
    ],
)
def test_bad_arguments_are_told_in_words(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    asked = ("retrain", home / "small.yaml", "--images", home / "images", "--quiet", "--stop-after", 0)
    assert run(home, tmp_path, *asked, *(w.replace("{}", str(tmp_path)) for w in words)) == 1
    assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    "words",
    [
        ("--threads", "-1", "fit", "toy"),
        ("fit", "toy", "--stop-after", "-1"),
        ("retrain", "toy", "--images", ".", "--updates", "-3"),
        ("shards", "toy", "--n", "0"),
        ("shards", "toy", "--seed", "-1"),
        ("shards", "real", ".", "--slices", "2"),
        ("tune", "toy", "--trials", "0"),
    ],
)
def test_numbers_that_make_no_sense_are_told(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    assert caught.value.code == 2
    assert "is below" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_told(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("a file")
    assert run(home, tmp_path / "taken", "fit", home / "small.yaml", "--quiet") == 1
    assert main(["--data", str(tmp_path / "taken"), "shards", "toy", "--n", "1"]) == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert str(tmp_path) not in told
