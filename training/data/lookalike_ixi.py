"""A look-alike of IXI: tars by contrast, and the table of subjects with its missing and repeated ids.

=======  ====  =====================================================================
subject  site  in the table
=======  ====  =====================================================================
2        Guys  once
12       HH    twice, with the same age
35       IOP   not at all
50       Guys  twice, with ages far apart and with both sexes
51       HH    twice, one row without an age
52       IOP   once, with an age of 0
=======  ====  =====================================================================
"""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import struct
import tarfile
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

SUBJECTS: Final = {2: "Guys", 12: "HH", 35: "IOP", 50: "Guys", 51: "HH", 52: "IOP"}
TABLE: Final[tuple[tuple[float | str, ...], ...]] = (
    ("IXI_ID", "SEX_ID (1=m, 2=f)", "HEIGHT", "WEIGHT", "AGE"),
    (2.0, 2.0, 164.0, 58.0, 35.8),
    (12.0, 1.0, 175.0, 70.0, 68.2),
    (12.0, 1.0, 175.0, 70.0, 68.2),
    (50.0, 1.0, 180.0, 82.0, 40.5),
    (50.0, 2.0, 160.0, 60.0, 61.0),
    (51.0, 2.0, 0.0, 0.0, 52.1),
    (51.0, 2.0, 0.0, 0.0, ""),
    (52.0, 1.0, 170.0, 71.0, 0.0),
)
CORNER: Final = 900.0
"""Intensity of the mark that lies right, front and top in every image."""
_HEAD: Final = (24, 30, 18)
"""Voxels of a head along right, front, top."""


def ixi(root: Path, *, table: Literal["xls", "csv", "none"] = "csv", unpacked: bool = False) -> Path:
    """Write the look-alike into ``root``; return it.

    Parameters
    ----------
    table
        How the table is written.
    unpacked
        T1 also as files in a folder, as after unpacking the tar.
    """
    root.mkdir(parents=True, exist_ok=True)
    for contrast in ("T1", "T2", "PD", "DTI"):
        with tarfile.open(root / f"IXI-{contrast}.tar", "w") as tar:
            for number, site in SUBJECTS.items():
                last = "DTI-00" if contrast == "DTI" else contrast
                name = f"IXI{number:03d}-{site}-{800 + number:04d}-{last}.nii.gz"
                packed = image(number, contrast)
                member = tarfile.TarInfo(name)
                member.size = len(packed)
                tar.addfile(member, io.BytesIO(packed))
                if unpacked and contrast == "T1":
                    (root / "IXI-T1").mkdir(exist_ok=True)
                    (root / "IXI-T1" / name).write_bytes(packed)
    if table == "csv":
        with (root / "IXI.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows(TABLE)
    if table == "xls":
        (root / "IXI.xls").write_bytes(xls(TABLE))
    return root


def head(number: int, contrast: str) -> npt.NDArray[np.float32]:
    """Return a head, float32 (right, front, top), with :data:`CORNER` in its last voxel."""
    right, front, top = (np.linspace(-1, 1, n) for n in _HEAD)
    inside = right[:, None, None] ** 2 + front[None, :, None] ** 2 + top[None, None, :] ** 2 < 0.8
    rng = np.random.default_rng([number, *contrast.encode()])
    grain = gaussian_filter(rng.standard_normal(_HEAD), 0.8)
    values = 400.0 * inside + 60.0 * np.abs(grain)
    values[-1, -1, -1] = CORNER
    return np.asarray(values, np.float32)


def image(number: int, contrast: str) -> bytes:
    """Return a gzipped NIfTI file: T1 in sagittal slices stored back, top, right; the others in axial ones.

    Stored values are integers with a slope of 0.5.
    """
    nibabel: Any = importlib.import_module("nibabel")
    values = head(number, contrast)
    if contrast == "T1":
        stored = values.transpose(1, 2, 0)[::-1]
        spacing = (0.94, 0.94, 1.2)
        affine = np.array([[0, 0, 1.2, 0], [-0.94, 0, 0, 27], [0, 0.94, 0, 0], [0, 0, 0, 1.0]])
    else:
        stored = values[::-1]
        spacing = (0.94, 0.94, 1.25)
        affine = np.array([[-0.94, 0, 0, 22], [0, 0.94, 0, 0], [0, 0, 1.25, 0], [0, 0, 0, 1.0]])
    made = nibabel.Nifti1Image(np.round(stored * 2).astype(np.int16), affine)
    made.header.set_zooms(spacing)
    made.header.set_slope_inter(0.5, 0.0)
    # nibabel writes the header's slope only into files that it scales itself
    raw = bytearray(made.to_bytes())
    struct.pack_into("<ff", raw, 112, 0.5, 0.0)
    return gzip.compress(bytes(raw), mtime=0)


# a legacy Excel file ------------------------------------------------------------------------------
def _record(kind: int, payload: bytes) -> bytes:
    return struct.pack("<HH", kind, len(payload)) + payload


def _text(text: str, width: str) -> bytes:
    return struct.pack(width, len(text)) + b"\0" + text.encode("latin-1")


def xls(rows: tuple[tuple[float | str, ...], ...]) -> bytes:
    """Return a minimal .xls with one sheet ``Table``: BIFF8 records ([MS-XLS]) in a compound file ([MS-CFB])."""
    cells = b""
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            place = struct.pack("<HHH", y, x, 0)
            if isinstance(cell, str):
                cells += _record(0x204, place + _text(cell, "<H")) if cell else b""
            else:
                cells += _record(0x203, place + struct.pack("<d", cell))
    start = _record(0x809, struct.pack("<HHHHII", 0x600, 0x05, 0, 0, 0, 0)) + _record(
        0x42, struct.pack("<H", 1200)
    )
    name = _text("Table", "<B")
    sheet_at = len(start) + 4 + 6 + len(name) + 4
    book = start + _record(0x85, struct.pack("<IBB", sheet_at, 0, 0) + name) + _record(0x0A, b"")
    book += _record(0x809, struct.pack("<HHHHII", 0x600, 0x10, 0, 0, 0, 0)) + cells + _record(0x0A, b"")
    return _compound(book)


def _compound(stream: bytes) -> bytes:
    """Wrap a stream ``Workbook``: header, one sector of the allocation table, one of the directory, the stream."""
    n_sectors = max(-(-len(stream) // 512), 8)  # shorter ones would go into the mini stream
    free, end = 0xFFFFFFFF, 0xFFFFFFFE
    chain = [0xFFFFFFFD, end, *range(3, 2 + n_sectors), end]
    table = struct.pack("<128I", *chain, *[free] * (128 - len(chain)))
    header = (
        bytes.fromhex("d0cf11e0a1b11ae1") + b"\0" * 16
        + struct.pack("<HHHHH6x", 0x3E, 3, 0xFFFE, 9, 6)
        + struct.pack("<IIIIIIIII", 0, 1, 1, 0, 4096, end, 0, end, 0)
        + struct.pack("<109I", 0, *[free] * 108)
    )  # fmt: skip

    def entry(name: str, kind: int, child: int, first: int, size: int) -> bytes:
        spelled = (name + "\0").encode("utf-16-le") if name else b""
        links = struct.pack("<III", free, free, child)
        return spelled.ljust(64, b"\0") + struct.pack("<HBB", len(spelled), kind, 1) + links + b"\0" * 36 + (
            struct.pack("<IQ", first, size)
        )  # fmt: skip

    padded = stream.ljust(n_sectors * 512, b"\0")
    directory = entry("Root Entry", 5, 1, end, 0) + entry("Workbook", 2, free, 2, len(padded))
    directory += entry("", 0, free, 0, 0) * 2
    return header + table + directory + padded
