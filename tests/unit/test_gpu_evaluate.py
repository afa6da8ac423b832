"""`make gpu` where there is no GPU: it says so, and what of it runs on the CPU does."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from engines.base import Floats
from engines.catalog import Catalog
from engines.errors import DeviceLost
from engines.runtime import flavour, gpu
from engines.runtime.kernels import SETTLING
from tests import kernels_cpp
from tests.device_onnx import OnnxProgram, StandIn
from tests.gpu import evaluate, kernels, parts
from tests.gpu.parts import PARTS, Asked


def test_without_a_gpu_nothing_is_measured_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if gpu.local():
        pytest.skip("there is a GPU here")
    assert evaluate.main(["--out", str(tmp_path / "out")]) == 2
    assert "there is no GPU here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        ["--dry-run"],
        ["--dry-run", "--out", str(evaluate.DOCS / "evaluation")],
        ["ct-wavelet"],
        ["--part", "x"],
    ],
    ids=["nowhere", "to docs", "no network", "no part"],
)
def test_a_command_line_that_is_wrong(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        evaluate.arguments(wrong)
    assert end.value.code == 2
    assert capsys.readouterr().err


def test_all_engines_with_a_network_unless_named() -> None:
    every = evaluate.arguments([]).engines
    assert {"ct-cnn", "mr-sr2"} <= set(every)
    assert not {"ct-wavelet", "identity"} & set(every)
    assert evaluate.arguments(["ct-cnn"]).engines == ["ct-cnn"]


@pytest.mark.slow
def test_a_dry_run_goes_the_same_way_and_says_what_it_is(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not here")
    assert evaluate.main(["ct-cnn", "--dry-run", "--repeat", "1", "--out", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "gpu.json").read_text())
    page = (tmp_path / "gpu.md").read_text()
    assert told["dry_run"] is True
    assert "no figures of a GPU" in page
    assert {name: part["failed"] for name, part in told["parts"].items()} == dict.fromkeys(PARTS, "")
    (same,) = told["parts"]["parity"]["rows"]
    assert (same["runtime"], same["largest"], same["ok"], same["repeats"]) == ("onnx", 0.0, True, True)
    assert all(row["roofline_ms"] is None for row in told["parts"]["torch"]["rows"])
    if kernels_cpp.COMPILER:
        bare, settled, rounds = told["parts"]["kernels"]["rows"]
        assert all(
            v > 0 for r in (bare, settled, rounds) for v in (*r["ms"].values(), *r["with_copies_ms"].values())
        )
    for name in flavour.FLAVOURS:
        (row,) = told["parts"][name]["rows"]
        assert row["words"]
        assert row["runs"] is False or gpu.local()
        assert (row["version"] != "") == (name in flavour.installed())


@pytest.mark.skipif(kernels_cpp.COMPILER is None, reason=kernels_cpp.NO_COMPILER)
@pytest.mark.parametrize("capturable", [True, False])
def test_what_times_a_network_runs_it_and_gives_everything_back(capturable: bool) -> None:
    device = StandIn()
    calls: list[tuple[int, ...]] = []

    def network(x: Floats, c: Floats) -> Floats:
        calls.append(x.shape)
        assert np.isfinite(x).all()
        assert np.isfinite(c).all()
        return c

    program = OnnxProgram(device, network, capturable=capturable)
    assert kernels.network_alone(device, program, 2, 16, repeat=1, loops=3) > 0
    assert calls == [(2, 3, 16, 16)] * (1 + 3 * 3)
    assert ("replay" in device.trace) == capturable
    assert device.empty
    assert program.open_contexts == 0


@pytest.mark.skipif(kernels_cpp.COMPILER is None, reason=kernels_cpp.NO_COMPILER)
def test_what_times_the_kernels_runs_them_and_gives_everything_back() -> None:
    device = StandIn()
    device.enter()
    for what, region, tolerance in kernels.KINDS:
        given = kernels.slab(32, 2, region, tolerance)
        before = device.trace.count("launch settle"), device.trace.count("download")
        assert kernels.alone(device, given, 32, repeat=1, loops=2) > 0
        assert device.trace.count("launch settle") - before[0] == (0 if region is None else 2 * SETTLING), (
            what
        )
        # What was timed are replays: no copy is in it.
        assert device.trace[::-1].index("replay") < device.trace[::-1].index("download")
        device.check()
        assert device.empty


def test_a_lost_device_is_asked_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_lost", [])
    asked: list[int] = []

    def lose() -> dict[str, object]:
        asked.append(1)
        raise DeviceLost("gone")

    assert parts.tell(lose, engine="a")["refused"] == "DeviceLost: gone"
    assert parts.tell(lose, engine="b") == {"engine": "b", "refused": "not asked: gone"}
    assert asked == [1]


def test_a_part_for_each_engine_loses_one_and_not_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Children of it are scripts here: one dies, one prints before it speaks, one says nothing."""
    script = tmp_path / "evaluate.py"
    script.write_text(
        "import os, sys\n"
        "name = sys.argv[1]\n"
        "if name == 'ct-gan': os.kill(os.getpid(), 11)\n"
        "if name == 'mr-cnn': sys.exit(0)\n"
        "print('a library has its say', [1])\n"
        "print('[{\"engine\": \"' + name + '\"}]')\n"
    )
    real = evaluate.subprocess.run

    def run(command: list[str], **how: object) -> object:
        return real([command[0], str(script), *command[3:]], **how)  # type: ignore[call-overload]

    monkeypatch.setattr(evaluate.subprocess, "run", run)
    given = evaluate.arguments(["ct-cnn", "ct-gan", "mr-cnn", "--out", str(tmp_path)])
    told = evaluate.run("parity", given, tmp_path)
    assert told["rows"] == [{"engine": "ct-cnn"}]
    assert told["failed"] == "ct-gan ended with status -11: ; mr-cnn said what is no JSON: "
    assert evaluate.run("plans", given, tmp_path)["rows"] == [{"engine": "ct-cnn"}]


def test_the_index_says_that_no_gpu_was_at_hand_and_what_measures_on_one(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not here")
    from training.report.build import index

    context = SimpleNamespace(out=tmp_path, catalog=Catalog.default())
    index(context)  # type: ignore[arg-type]
    page = (tmp_path / "README.md").read_text()
    assert "No GPU was at hand" in page
    assert "`make gpu`" in page
    (tmp_path / "gpu.md").write_text("# On a GPU\n")
    index(context)  # type: ignore[arg-type]
    page = (tmp_path / "README.md").read_text()
    assert "(gpu.md)" in page
    assert "No GPU was at hand" not in page


def test_the_roofline_is_the_cards() -> None:
    card = Asked(plans=Path(), engines=(), repeat=1, flops=790e12, bytes_s=4.3e12)
    # models.md, 2.1: PU-S 16 us by its bytes, PU-M at the ridge, PU-L 150 us by its work.
    at = {size: parts._roof(card, size) for size in parts.SIZES}
    assert at == pytest.approx({"s": 0.0158, "m": 0.0209, "l": 0.153}, rel=0.01)


def test_the_page_tells_what_failed_and_what_was_refused() -> None:
    told = {
        "machine": evaluate.machine(), "dry_run": False, "repeat": 3,
        "parts": {
            "plans": {"rows": [], "failed": "ended with status -11: "},
            "parity": {"rows": [
                {"engine": "ct-cnn", "runtime": "tensorrt", "precision": "fp16", "refused": "PlanMismatch: no plan"},
                {"engine": "ct-cnn", "runtime": "tensorrt_rtx", "precision": "fp16", "unit": "HU", "largest": 0.7,
                 "rms": 0.01, "repeats": True, "ok": False},
            ], "failed": ""},
            "speed": {"rows": [], "failed": ""}, "kernels": {"rows": [], "failed": ""},
            "memory": {"rows": [], "failed": ""}, "torch": {"rows": [{"refused": "no CUDA"}], "failed": ""},
            "tensorrt": {"rows": [{"flavour": "TensorRT", "version": "11.4", "known": True, "runs": True,
                                   "words": ["for the GPU that is here: runs"]}], "failed": ""},
            "tensorrt_rtx": {"rows": [], "failed": "ended with status -11: "},
        },
    }  # fmt: skip
    page = evaluate.markdown(told)
    assert "**Not measured: it ended with status -11: **" in page
    assert "PlanMismatch: no plan" in page
    assert "0.7 HU | 0.01 HU | same | **fails**" in page
    assert "no CUDA" in page
    assert "| TensorRT | 11.4 | yes | yes | for the GPU that is here: runs |" in page
    measured = {"tflops": 790.0, "gbs": 4300.0, "told": False}
    row = {"size": "s", "batch": 8, "ms": 0.032, "roofline_ms": 0.016}
    told["parts"]["torch"]["rows"] = [measured, row]  # type: ignore[index]
    page = evaluate.markdown(told)
    assert "790 TFLOP/s in fp16, 4300 GB/s (measured here" in page
    assert "| PU-S | 8 | 0.032 | 0.016 (x 2.0) |" in page
    assert not evaluate.sound({**told, "parts": {**told["parts"], "plans": {"rows": [], "failed": ""}}})
