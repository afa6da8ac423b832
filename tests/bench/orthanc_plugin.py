"""Orthanc with its Python plugin as an enhancing node, as its users build one: on a stable series a trivial filter.

Needs Debian's orthanc-python, python3-numpy and python3-pydicom.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.bench.receivers import Receiver
from tests.bench.site import WITHIN_S, clear, remove, send
from tests.peers import StoreScp, free_port, program, wait_until

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancPython.so")
SETTINGS = ["env", "-u", "PYTHONPATH", "PATH=/usr/sbin:/usr/bin:/bin"]
"""The plugin takes the Python that comes first on the path: Debian's, which has its modules."""

SCRIPT = """
import io, json, uuid
import numpy as np, orthanc, pydicom

ours = set()

def uid():
    return "2.25." + str(uuid.uuid4().int)

def filtered(blob, series):
    ds = pydicom.dcmread(io.BytesIO(blob))
    values = ds.pixel_array
    wide = np.pad(values.astype(np.float32), 1, mode="edge")
    rows, columns = values.shape
    mean = sum(wide[i:i + rows, j:j + columns] for i in range(3) for j in range(3)) / 9
    ds.PixelData = np.rint(mean).astype(values.dtype).tobytes()
    ds.SeriesInstanceUID, ds.SOPInstanceUID = series, uid()
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    out = io.BytesIO()
    ds.save_as(out, write_like_original=False)
    return out.getvalue()

def changed(change, level, resource):
    if change != orthanc.ChangeType.STABLE_SERIES or resource in ours:
        return
    series, made = uid(), []
    for instance in json.loads(orthanc.RestApiGet("/series/" + resource))["Instances"]:
        blob = filtered(orthanc.GetDicomForInstance(instance), series)
        told = json.loads(orthanc.RestApiPost("/instances", blob))
        ours.add(told["ParentSeries"])
        made.append(told["ID"])
    orthanc.RestApiPost("/modalities/pacs/store", json.dumps({"Resources": made, "Synchronous": True}))

orthanc.RegisterOnChangeCallback(changed)
"""


def missing() -> str:
    """Why it cannot be measured here; empty if it can."""
    if program("Orthanc") is None:
        return "Orthanc is not installed"
    if not PLUGIN.exists():
        return "its Python plugin is not installed (Debian: orthanc-python)"
    tried = subprocess.run(
        [*SETTINGS, "python3", "-c", "import numpy, pydicom"], capture_output=True, check=False
    )
    return (
        ""
        if tried.returncode == 0
        else "its Python has no numpy or pydicom (Debian: python3-numpy, python3-pydicom)"
    )


def turn(folder: Path, files: Sequence[Path], stable_age: int, pace: float) -> float:
    """Seconds from the last C-STORE response to the last filtered instance in a storescp."""
    folder.mkdir()
    with ExitStack() as stack:
        pacs = StoreScp(folder / "pacs", "+xa", ae_title="PACS")
        stack.callback(pacs.stop)
        port = free_port()
        (folder / "plugin.py").write_text(SCRIPT)
        (folder / "orthanc.json").write_text(
            json.dumps({
                "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "index"),
                "Plugins": [str(PLUGIN)], "PythonScript": str(folder / "plugin.py"), "StableAge": stable_age,
                "DicomAet": "ORTHANC", "DicomPort": port, "DicomCheckCalledAet": False, "HttpPort": free_port(),
                "DicomModalities": {"pacs": ["PACS", "127.0.0.1", pacs.port]}, "RemoteAccessAllowed": False,
                "AuthenticationEnabled": False,
            })
        )  # fmt: skip
        peer = Receiver(
            [*SETTINGS, "TCP_NODELAY=1", program("Orthanc") or "Orthanc", str(folder / "orthanc.json")],
            port, folder, ae_title="ORTHANC",
        )  # fmt: skip
        stack.callback(peer.stop)
        answered = send(port, "ORTHANC", files, pace=pace)
        wait_until(lambda: _whole(pacs, len(files)), WITHIN_S, "Orthanc sent what it made", every_s=0.1)
        last = max(clear(pacs))
    remove([path for path in (folder / "storage").rglob("*") if path.is_file()])
    return last - answered[-1]


def _whole(pacs: StoreScp, n: int) -> bool:
    there = list(pacs.folder.iterdir())
    return len(there) >= n and time.time() - max(path.stat().st_mtime for path in there) > 0.5
