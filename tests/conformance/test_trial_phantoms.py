"""Phantoms pass dicom3tools: no error in any object, a consistent study."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.phantoms import small_ct, small_mr, write_series

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dicom3tools is not installed"),
]

SERIES = {
    "ct": lambda: small_ct(1, 3),
    "ct_unsigned": lambda: small_ct(1, 3, signed=False, promise=True),
    "mr_t1": lambda: small_mr(1, 3),
    "mr_t2_partial": lambda: small_mr(1, 3, sequence="T2", partial=0.7),
}


def told(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return [line for line in (done.stdout + done.stderr).splitlines() if "Error" in line]


@pytest.mark.parametrize("name", SERIES)
def test_no_error(name: str, tmp_path: Path) -> None:
    paths = write_series(SERIES[name](), tmp_path)
    assert [line for path in paths for line in told("dciodvfy", str(path))] == []
    assert told("dcentvfy", *map(str, paths)) == []
