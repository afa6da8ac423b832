"""Ten times the slices, the same memory: decoded pixels lie on the disk, and come back slab by slab."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.enhancing import files, series
from tests.pipeline.harness import REPOSITORY

CHAIN = """\
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from engines.base import Enhancement, Params, SliceFigures, Survey
from engines.catalog import Catalog
from node.dicom.read import read_header
from node.dicom.stacks import stacks
from node.enhance.chain import Item, run



class Echo:  # in no time: the chain's memory is asked for, not an engine's
    card = Catalog.default().card("ct-tv")

    def survey(self, volume):
        told = np.ones(volume.shape[0], np.float32)
        return Survey(sigma=told, high=told, share=told, frequency=told)

    def enhance(self, volume, params, survey, *, first, keep):
        out = replace(volume, values=volume.values[keep] + 1)
        return Enhancement(
            volume=out, card=self.card, params=params, runtime="", device="", seconds=0.0, figures={},
            slices=(SliceFigures(),) * len(out.values),
        )


folder, scratch = Path(sys.argv[1]), Path(sys.argv[2])
headers = {path: read_header(path) for path in sorted(folder.iterdir())}
items = [
    Item(sop_instance_uid=h.sop_instance_uid, path=p, offset=0, sha256="") for p, h in headers.items()
]
report = run(
    items, stacks(list(headers.values())), Echo(), Params(strength=1.0), scratch=scratch, emit=lambda *_: None
)
assert report.n_slices == len(items)
# Not getrusage: its maximum counts what the process was before exec, a copy of the test's own.
told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(told["VmHWM"].split()[0]) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_times_the_slices_take_the_same_memory(tmp_path: Path) -> None:
    (scratch := tmp_path / "scratch").mkdir()
    slices = series("CT", 4, size=256)
    peaks = []
    for n in (30, 300):
        many = []
        for i in range(n):
            ds = slices[i % 4]
            ds.SOPInstanceUID, ds.InstanceNumber = f"1.2.3.{i}", str(i + 1)
            ds.ImagePositionPatient = [0, 0, float(i)]
            many += files(tmp_path / f"in{n}", [ds])
        command = [sys.executable, "-c", CHAIN, str(tmp_path / f"in{n}"), str(scratch)]
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env={"PYTHONPATH": str(REPOSITORY)},
            check=True,
            capture_output=True,
            text=True,
        )
        peaks.append(float(done.stdout))
    decoded_mb = 270 * 256 * 256 * 2 / 2**20
    assert decoded_mb > 30, "or this proves nothing"
    assert peaks[1] - peaks[0] < 8, f"{peaks[0]:.0f} MB for 30 slices, {peaks[1]:.0f} MB for 300"
