"""`make gpu` where there is no GPU: it says so, and what of it runs on the CPU does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.runtime import gpu
from tests.gpu import evaluate
from tests.gpu.parts import PARTS


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
        },
    }  # fmt: skip
    page = evaluate.markdown(told)
    assert "**Not measured: it ended with status -11: **" in page
    assert "PlanMismatch: no plan" in page
    assert "0.7 HU | 0.01 HU | same | **fails**" in page
    assert "no CUDA" in page
    assert not evaluate.sound({**told, "parts": {**told["parts"], "plans": {"rows": [], "failed": ""}}})
