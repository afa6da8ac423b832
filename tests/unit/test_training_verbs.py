"""The command line of training: shards, shards of real series, retrain, tune, generate, report."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.training_samples import shards as write_shards  # noqa: E402
from training import feed, verbs  # noqa: E402
from training.__main__ import main  # noqa: E402
from training.data import lookalike, real, shards, split  # noqa: E402
from training.data.records import patient_key  # noqa: E402
from training.errors import SplitError  # noqa: E402
from training.recipe import Recipe, load, parse  # noqa: E402
from training.simulate import anatomy  # noqa: E402

RECIPE = """
name: small
seed: 3
network: {kind: pu, options: {size: t, gain: 1.0}}
data: {unit: HU, truth: [toy-truth], validation: [toy-validation], patch: 32, projected: 0, sigma: [20, 60],
  licence: synthetic}
optim: {updates: 3, batch: 2, rate: 1.0e-3, warmup: 1, average: 0.9}
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four patients at full and low dose."""
    return lookalike.mayo(tmp_path / "images")


def run(tmp_path: Path, *words: object) -> int:
    return main(
        [
            "--data",
            str(tmp_path / "data"),
            "--runs",
            str(tmp_path / "runs"),
            "--threads",
            "1",
            *map(str, words),
        ]
    )


def test_synthetic_shards_are_the_same_bytes_when_a_run_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anatomy, "draw", partial(anatomy.draw, matrix=96))
    assert run(tmp_path, "shards", "ct", "--n", 1) == 0
    assert run(tmp_path, "shards", "ct", "--n", 2) == 0
    made = shards.read(tmp_path / "data" / "ct-truth")
    shutil.rmtree(tmp_path / "data")
    assert run(tmp_path, "shards", "ct", "--n", 2) == 0
    for one, other in zip(made, shards.read(tmp_path / "data" / "ct-truth"), strict=True):
        assert one.name == other.name
        assert np.array_equal(one.stored, other.stored)
    assert run(tmp_path, "shards", "ct-validation", "--n", 1) == 0
    (validation,) = shards.read(tmp_path / "data" / "ct-validation")
    assert not np.array_equal(validation.stored, made[0].stored), "another seed"


def test_noise_shards_belong_to_truths(tmp_path: Path) -> None:
    write_shards(tmp_path / "data", n=2, matrix=96, name="ct")
    assert run(tmp_path, "shards", "ct-noise", "--n", 1) == 0
    (made,) = shards.read(tmp_path / "data" / "ct-noise")
    assert made.facts["truth"] == "ct-0"
    assert made.shape == (3, 96, 96)


def test_mr_shards_need_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "shards", "mr", "--n", 1) == 1
    (tmp_path / "labels").mkdir()
    assert run(tmp_path, "shards", "mr-validation", "--n", 1, "--labels", tmp_path / "labels") == 1
    assert "--labels FOLDER" in capsys.readouterr().err


def asked(images: Path, **more: object) -> real.Ask:
    told: dict[str, object] = {"images": images, "modality": "CT", "smallest": 48, **more}
    return real.Ask(**told)  # type: ignore[arg-type]


def test_real_series_become_shards_by_patient(images: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    made = real.write(asked(images), data, "own", fractions=(0.5, 0.25, 0.25))
    assert made.n["train"] > 0
    assert made.n["validation"] > 0
    parts = split.load(data / "own" / "split.json")
    assert parts.split_hash == made.split_hash
    for part in real.WRITTEN:
        for shard in shards.read(data / f"own-{part}"):
            assert parts.part_of(str(shard.facts["patient"])) == part
            assert shard.facts["split"] == made.split_hash
            assert shard.facts["part"] == part
            assert 0 < float(shard.facts["noise"]) < 100
            assert len(str(shard.facts["patient"])) == 16
    written = (data / "own-train" / "index.json").read_text() + (data / "own" / "split.json").read_text()
    assert not any(code in written for codes in lookalike.MAYO_PATIENTS.values() for code in codes)
    again = real.write(asked(images), data, "own", fractions=(0.5, 0.25, 0.25))
    assert again.n == made.n
    held = parts.parts["test"]
    assert held
    assert not any(key in written.split('"parts"')[0] for key in held), "no shard of a test patient"
    with pytest.raises(SplitError, match="another split"):
        other = tmp_path / "other.json"
        split.save(split.make(real.found(asked(images)).scans, salt="x", fractions=(0.3, 0.4, 0.3)), other)
        real.write(asked(images), data, "own", given=other)


def test_no_name_of_a_file_is_among_the_reasons(images: Path, tmp_path: Path) -> None:
    for folder in sorted({p.parent for p in images.rglob("C001/**/*.dcm")}):
        named = folder / "DOE^JOHN"
        named.mkdir()
        for path in folder.glob("*.dcm"):
            path.write_bytes(path.read_bytes()[:-100])
            path.rename(named / path.name)
    made = real.write(asked(images), tmp_path, "own", fractions=(0.5, 0.5, 0.0))
    assert any("cannot be decoded" in o.reason for o in made.left_out)
    assert not any("DOE" in o.reason for o in made.left_out)


def test_values_of_a_shard_are_those_of_the_series(images: Path, tmp_path: Path) -> None:
    real.write(asked(images, n_slices=4), tmp_path, "own", fractions=(0.75, 0.25, 0.0))
    scans = {s.key: s for s in real.found(asked(images)).scans}
    (shard, *_) = shards.read(tmp_path / "own-train")
    key, _, first = shard.name.partition("-")
    values = scans[key].load().values[int(first) : int(first) + 4]
    assert shard.shape[0] == 4
    assert (
        np.abs(shard.crop(slice(None), slice(None), slice(None)) - np.clip(values, -1024, 3071)).max() < 0.05
    )


def test_noisy_series_and_the_low_dose_of_pairs_can_be_left_out(images: Path, tmp_path: Path) -> None:
    quiet = real.write(asked(images, noisiest=15.0), tmp_path, "quiet", fractions=(0.5, 0.5, 0.0))
    assert "noisier than asked for" in {o.reason for o in quiet.left_out}
    pairs = real.write(asked(images, kind="mayo"), tmp_path, "pairs", fractions=(0.5, 0.5, 0.0))
    assert sum(pairs.n.values()) == sum(len(codes) for codes in lookalike.MAYO_PATIENTS.values())


def test_shards_of_another_split_or_part_are_refused(images: Path, tmp_path: Path) -> None:
    made = real.write(asked(images, licence="synthetic"), tmp_path, "own", fractions=(0.5, 0.25, 0.25))
    write_shards(tmp_path, n=2, matrix=64)
    text = RECIPE.replace("truth: [toy-truth]", "truth: [toy-truth, own-train]")
    good = parse(text.replace("patch: 32", f"patch: 32, split: {made.split_hash}"), "good")
    next(feed.training(good, tmp_path))
    for wrong in (parse(text, "none"), parse(text.replace("patch: 32", "patch: 32, split: abc"), "other")):
        with pytest.raises(SplitError) as caught:
            next(feed.training(wrong, tmp_path))
        assert made.split_hash in caught.value.hint
    leaking = Recipe.model_validate(
        good.model_dump() | {"data": good.data.model_dump() | {"validation": ["own-train"]}}
    )
    with pytest.raises(SplitError, match="train patient"):
        feed.validation(leaking, tmp_path)


def test_retrain_is_one_command_and_goes_on(
    images: Path,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(real.Ask, "__init__", _smaller(real.Ask.__init__))
    write_shards(tmp_path / "data", n=2, matrix=64)
    words = (
        "retrain",
        recipe,
        "--images",
        images,
        "--fractions",
        0.5,
        0.25,
        0.25,
        "--quiet",
        "--licence",
        "ours",
    )
    assert run(tmp_path, *words, "--stop-after", 1) == 0
    assert run(tmp_path, *words) == 0
    copy = load(capsys.readouterr().out.splitlines()[-1])
    assert copy.name == "small-own"
    assert copy.data.truth == ["toy-truth", "own-train"]
    assert copy.data.validation == ["own-validation"]
    assert copy.data.split == split.load(tmp_path / "data" / "own" / "split.json").split_hash
    assert "ours" in copy.data.licence
    from training.checkpoint import read

    progress, _ = read(tmp_path / "runs" / "small-own" / "last.safetensors")
    assert (progress.step, progress.split) == (3, copy.data.split)
    assert run(tmp_path, *words, "--updates", 9) == 1, "another recipe of the same name"


def _smaller(init: object) -> object:
    def made(self: real.Ask, **told: object) -> None:
        init(self, **{**told, "smallest": 48})  # type: ignore[operator]

    return made


def test_a_secret_changes_the_keys_of_patients(images: Path) -> None:
    plain = set(real.found(asked(images)).patients())
    secret = set(real.found(asked(images, secret="salt and pepper")).patients())
    assert not plain & secret
    assert patient_key("C001") in plain
    assert patient_key("C001", secret="salt and pepper") in secret


def test_generate_and_tune_run_from_the_command_line(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(tmp_path / "data", n=4, matrix=64)
    maker = tmp_path / "maker.yaml"
    maker.write_text(
        "{name: maker, data: {unit: HU, truth: [toy-truth], nearest_mm: 99, licence: none},"
        " network: {code: 4, width: 8, critic_width: 8}, optim: {updates: 2, batch: 2}}"
    )
    compared = ("--compare", recipe, "--updates", 2, "--seeds", 1)
    assert run(tmp_path, "generate", maker, "--n", 2, *compared) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["using"], told["n_generated"], told["updates"]) == (["gan"], 2, 2)
    assert run(tmp_path, "generate", maker, "--n", 2, "--using", "classical") == 0
    assert {s.facts["synthetic"] for s in shards.read(tmp_path / "data" / "maker-classical")} == {"classical"}
    with pytest.raises(SystemExit):
        run(tmp_path, "generate", maker, "--using", "magic")
    wrong = tmp_path / "space.yaml"
    wrong.write_text("keys: {optim.rat: {range: [1, 2]}}")
    assert run(tmp_path, "tune", recipe, "--space", wrong) == 1
    assert "optim.rat" in capsys.readouterr().err


def test_report_runs_the_sections_that_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.report import build, widening

    monkeypatch.setattr(build, "sections", lambda: {"widening": widening.run})
    out = tmp_path / "pages"
    assert run(tmp_path, "report", "--only", "widening", "--out", out, "--quick") == 0
    assert "was not made" in (out / "widening.md").read_text()
    told = json.loads((out / "widening.json").read_text())
    assert told["made"] is False
    assert set(told) == {"made", "weights_sha256"}
    assert capsys.readouterr().out.strip() == str(out / "widening.md")
    assert run(tmp_path, "report", "--only", "nothing") == 1


def test_every_verb_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("fit", "export", "tune", "generate", "shards", "retrain", "report"):
        with pytest.raises(SystemExit) as caught:
            main([verb, "--help"])
        assert caught.value.code == 0
        assert len(capsys.readouterr().out) > 100
    assert set(verbs.WORDS.values()) <= set(verbs.TRUTHS)
