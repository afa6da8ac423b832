"""ONNX Runtime 1.29 and newer report to their maker, unless they are told not to before they start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.onnx_samples import blur_network
from tests.pipeline.harness import REPOSITORY

PROGRAM = """
import sys
from hashlib import sha256
from pathlib import Path
from engines.runtime.onnx import OnnxNetwork

path = Path(sys.argv[1])
OnnxNetwork.load(path, sha256(path.read_bytes()).hexdigest())
"""


@pytest.mark.parametrize("asked_for", ["", "0"])
def test_onnx_runtime_keeps_no_identity_and_reports_to_nobody(tmp_path: Path, asked_for: str) -> None:
    network, home = tmp_path / "network.onnx", tmp_path / "home"
    home.mkdir()
    network.write_bytes(blur_network().SerializeToString())
    # Not as in CI, where it is silent by itself.
    environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(home), "OMP_NUM_THREADS": "1"}
    if asked_for:
        environment["ORT_DISABLE_TELEMETRY"] = asked_for
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(network)],
        cwd=REPOSITORY,
        env=environment,
        check=True,
        timeout=120,
    )
    assert [p.relative_to(home).as_posix() for p in home.rglob("*")] == []
