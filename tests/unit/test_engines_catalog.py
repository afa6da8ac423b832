"""The catalogue: sound engines are found, broken ones are told and hide nobody, digests are checked first."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines import __main__ as command
from engines import bench, canary, known
from engines.base import Params
from engines.card import digest, read
from engines.catalog import ZOO, Catalog
from engines.errors import CanaryRefused, CardInvalid, EngineError, RuntimeUnavailable, WeightsMismatch
from tests import laws, onnx_samples

SHIPPED = Catalog.default().names()


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    return tmp_path / "zoo"


def edited(path: Path, change: Callable[[str], str]) -> Path:
    card = path / "card.yaml"
    card.write_text(change(card.read_text()))
    return path


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_cards_are_whole(name: str) -> None:
    card = Catalog.default().card(name)
    assert card.name == name
    assert len(card.weights_sha256) == 64
    assert 0 < card.default_strength <= 1
    for text in (card.title, card.trained_on, card.evaluated, card.intended_use, card.not_for, card.licence):
        assert text, "a card leaves nothing untold"
    assert not re.search(r"/(work|tmp|home)\b", repr(card))


def test_a_card_can_be_read_without_loading_anything() -> None:
    code = (
        "import sys\n"
        "from engines.catalog import Catalog\n"
        "assert Catalog.default().card('ct-nlm').modalities == ('CT',)\n"
        "assert not {'onnxruntime', 'torch', 'tensorrt'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ZOO.parent.parent)


def test_broken_folders_hide_nobody_and_are_told(zoo: Path) -> None:
    onnx_samples.folder(zoo, onnx_samples.blur_network(), name="good")
    onnx_samples.folder(zoo, onnx_samples.blur_network(), name="another")
    breaks: dict[str, Callable[[str], str]] = {
        "no-yaml": lambda s: "{[",
        "no-mapping": lambda s: "- 1\n",
        "unknown-key": lambda s: s + "wings: 2\n",
        "wrong-type": lambda s: s.replace("neighbours: 1", "neighbours: many"),
        "wrong-name": lambda s: s.replace("name: wrong-name", "name: good"),
        "long": lambda s: s + "#" * 70_000,
        "twice": lambda s: s + "version: 2.0.0\n",
        "sneaky": lambda s: s.replace("model.fp32.onnx", "../good/model.fp32.onnx"),
        "upside-down": lambda s: s.replace("[1.0, 150.0]", "[150.0, 1.0]"),
        "no-core": lambda s: s.replace("family: cnn", "family: classical"),
        "tagged": lambda s: s + "licence: !!python/object/apply:os.system ['true']\n",
        "no-date": lambda s: s + "evaluated: 2026-99-99\n",
        "no-number": lambda s: s + "evaluated: !!int many\n",
        "no-truth": lambda s: s + "evaluated: !!bool perhaps\n",
        "boundless": lambda s: s.replace("bound: 200.0", "bound: .inf"),
    }
    for name, change in breaks.items():
        edited(onnx_samples.folder(zoo, onnx_samples.blur_network(), name=name), change)
    (zoo / "empty").mkdir()
    (zoo / "latin").mkdir()
    (zoo / "latin" / "card.yaml").write_bytes(b"name: \xff\xfe")
    (zoo / ".hidden").mkdir()
    (zoo / "a-file").write_text("x")
    catalog = Catalog([zoo])
    assert catalog.names() == ("another", "good")
    assert set(catalog.faults()) == {*breaks, "empty", "latin"}
    for name in breaks:
        with pytest.raises(CardInvalid):
            catalog.load(name)
    assert "wings" in catalog.faults()["unknown-key"].message
    catalog.load("good")


def test_a_name_is_given_once(zoo: Path) -> None:
    onnx_samples.folder(zoo, onnx_samples.blur_network(), name="ct-nlm")
    catalog = Catalog.default([zoo])
    assert catalog.card("ct-nlm").family == "classical"
    (fault,) = catalog.faults().values()
    assert "already" in fault.message


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert Catalog([tmp_path / "nowhere"]).names() == ()
    assert not Catalog([tmp_path / "nowhere"]).faults()


def test_unknown_names_get_a_hint() -> None:
    with pytest.raises(CardInvalid) as caught:
        Catalog.default().load("ct-nml")
    assert "ct-nlm" in caught.value.hint


def test_edited_parameters_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "ct-nlm"
    folder.mkdir()
    (folder / "card.yaml").write_text(
        (ZOO / "ct-nlm" / "card.yaml").read_text().replace("reach: 7", "reach: 6")
    )
    with pytest.raises(WeightsMismatch, match="parameters"):
        Catalog([tmp_path]).load("ct-nlm")


def test_a_site_may_have_parameters_of_its_own(tmp_path: Path) -> None:
    theirs = read(ZOO / "ct-nlm")
    folder = tmp_path / "ct-ours"
    folder.mkdir()
    text = (ZOO / "ct-nlm" / "card.yaml").read_text().replace("name: ct-nlm", "name: ct-ours")
    text = text.replace("reach: 7", "reach: 5")
    ours = digest("nlm", {**theirs.parameters, "reach": 5})
    (folder / "card.yaml").write_text(text.replace(theirs.weights_sha256, ours))
    engine = Catalog.default([tmp_path]).load("ct-ours")
    laws.works(engine, laws.stack("CT"))


@pytest.mark.parametrize(
    ("runtime", "word"), [("onnx", "without"), ("tensorrt", "without"), ("abacus", "no runtime")]
)
def test_classical_engines_take_no_runtime(runtime: str, word: str) -> None:
    with pytest.raises(RuntimeUnavailable, match=word):
        Catalog.default().load("ct-tv", runtime=runtime)


def test_runtimes_of_learned_engines(zoo: Path) -> None:
    onnx_samples.folder(zoo, onnx_samples.blur_network())
    catalog = Catalog([zoo])
    for runtime in ("auto", "onnx"):
        result = catalog.load("ct-sample", runtime).enhance(laws.stack("CT"), Params(strength=1.0))
        assert (result.runtime, result.device) == ("onnx", "cpu")
    with pytest.raises(RuntimeUnavailable, match=r"TensorRT|no GPU"):
        catalog.load("ct-sample", "tensorrt")


def test_the_learned_way_does_what_the_network_says(zoo: Path) -> None:
    """r = slice - mean of 27 neighbours, in HU; what the guards leave alone is subtracted to the bit."""
    onnx_samples.folder(zoo, onnx_samples.blur_network())
    engine = Catalog([zoo]).load("ct-sample")
    volume = laws.uniform("CT", 40.0, 20.0, (3, 64, 64))
    out = laws.run(engine, volume, 1.0)[1]
    x = np.pad(volume.values.astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    mean = sum(x[z, i : i + 64, j : j + 64] for z in range(3) for i in range(3) for j in range(3)) / 27
    change = (out - volume.values[1])[20:44, 20:44]
    expected = (mean - volume.values[1])[20:44, 20:44]
    # The lock takes the local mean of 33 x 33 pixels out; here that is less than 3 HU.
    assert np.abs(change - expected).max() < 3
    assert np.corrcoef(change.ravel(), expected.ravel())[0, 1] > 0.998


def test_mr_goes_by_the_series_scale(zoo: Path) -> None:
    onnx_samples.folder(zoo, onnx_samples.blur_network(1.0), name="mr-sample", modality="MR")
    engine = Catalog([zoo]).load("mr-sample")
    laws.works(engine, laws.stack("MR"))
    laws.scales(engine, laws.stack("MR"), 3.7)


def test_units_are_not_mixed_up() -> None:
    with pytest.raises(EngineError, match="works in HU"):
        Catalog.default().load("ct-nlm").enhance(laws.stack("MR"), Params(strength=0.5))


def test_command_list(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx_samples.folder(zoo, onnx_samples.blur_network())
    assert command.main(["list", "--zoo", str(zoo)]) == 0
    told = capsys.readouterr().out
    assert "ct-nlm" in told
    assert "ct-sample" in told
    assert "BROKEN" not in told


def test_command_tells_what_is_broken(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = onnx_samples.folder(zoo, onnx_samples.blur_network(), name="bad")
    (bad / "model.fp32.onnx").write_bytes(b"something else")
    (zoo / "worse").mkdir()
    assert command.main(["verify", "--json", "--zoo", str(zoo)]) == 1
    found = {f["name"]: f for f in json.loads(capsys.readouterr().out)}
    assert not found["bad"]["ok"]
    assert "not the one the card names" in found["bad"]["fault"]
    assert not found["worse"]["ok"]
    for name in SHIPPED:
        assert found[name]["ok"]
        assert len(found[name]["output"]) == 64


def test_command_bench(
    zoo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "SIDE", {"CT": 64, "MR": 64})
    onnx_samples.folder(zoo, onnx_samples.blur_network())
    asked = ["bench", "identity", "ct-sample", "--zoo", str(zoo), "--repeat", "1"]
    assert command.main([*asked, "--json"]) == 0
    identity, sample = json.loads(capsys.readouterr().out)
    assert (identity["name"], sample["rows"], sample["columns"]) == ("identity", 64, 64)
    assert 0 < sample["core_ms"] < 10_000
    assert 0 < sample["whole_ms"] < 10_000
    assert command.main(asked) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    (zoo / "ct-sample" / "model.fp32.onnx").write_bytes(b"broken")
    assert command.main(asked) == 1
    with pytest.raises(SystemExit):
        command.main(["bench", "nobody"])


def test_command_noise(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "ANATOMY", (("head", 256),))
    monkeypatch.setattr(known, "FILLINGS", (1.0,))
    assert command.main(["noise"]) == 0
    told = capsys.readouterr().out
    assert "head" in told
    assert "white" in told
    monkeypatch.setattr(known, "WITHIN", 0.001)
    assert command.main(["noise", "--json"]) == 1
    assert all(0.7 < r["ratio"] < 1.3 for r in json.loads(capsys.readouterr().out))


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
def test_links_out_of_the_folder_are_refused(zoo: Path, tmp_path: Path) -> None:
    folder = onnx_samples.folder(zoo, onnx_samples.blur_network())
    weights = folder / "model.fp32.onnx"
    elsewhere = tmp_path / "elsewhere.onnx"
    weights.rename(elsewhere)
    weights.symlink_to(elsewhere)
    with pytest.raises(CardInvalid, match="cannot be opened"):
        Catalog([zoo]).load("ct-sample")
    weights.unlink()
    os.mkfifo(weights)
    with pytest.raises(CardInvalid, match="plain file"):
        Catalog([zoo]).load("ct-sample")


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "huge", "deep"])
def test_a_seal_that_cannot_be_read_is_told_and_blocks_nobody(zoo: Path, tmp_path: Path, kind: str) -> None:
    onnx_samples.folder(zoo, onnx_samples.blur_network())
    seal = zoo / "seal.json"
    if kind == "pipe":
        os.mkfifo(seal)
    elif kind == "folder":
        seal.mkdir()
    elif kind == "link":
        (tmp_path / "elsewhere.json").write_text("{}")
        seal.symlink_to(tmp_path / "elsewhere.json")
    else:
        seal.write_text("[" * 60_000 if kind == "deep" else "{" + " " * 100_000 + "}")
    # In a process of its own: a pipe that is opened for reading would never come back.
    if kind == "pipe":
        code = f"from engines.catalog import Catalog; Catalog([__import__('pathlib').Path({str(zoo)!r})])"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ZOO.parent.parent)
    catalog = Catalog.default([zoo])
    assert "ct-sample" not in catalog.names()
    assert "ct-cnn" in catalog.names()
    (fault,) = catalog.faults().values()
    assert "seal.json" in fault.message
    assert fault.hint


@pytest.mark.parametrize("harm", ["cut", "emptied", "flipped", "gone", "text"])
@pytest.mark.parametrize("name", ["ct", "ct-tv"])
def test_a_damaged_canary_is_told_and_a_damaged_answer_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, harm: str
) -> None:
    folder = shutil.copytree(canary.FOLDER, tmp_path / "canaries")
    path = folder / f"{name}.npz"
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "cut": whole[:middle],
            "emptied": b"",
            "flipped": whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :],
            "gone": b"",
            "text": b"not here",
        }[harm]
    )
    if harm == "gone":
        path.unlink()
    monkeypatch.setattr(canary, "FOLDER", folder)
    canary.question.cache_clear()
    engine = Catalog.default().load("ct-tv", threads=1)
    try:
        if name == "ct":
            with pytest.raises(CanaryRefused, match="cannot be read") as caught:
                canary.prove(engine)
            assert caught.value.hint
        else:
            assert canary.prove(engine).against == "itself"
    finally:
        canary.question.cache_clear()
