"""NIfTI files: reoriented to RAS, the slice axis first, scaled, one volume each.

The values are scaled by ``scl_slope`` and ``scl_inter``. The first axis of what is returned is the one that
was cut into slices: ``dim_info`` says which, else the one whose spacing is clearly the largest, else the one
nearest to head-foot. Both other axes keep the RAS order, the last one first: an axial slice is (anterior, right).
"""

from __future__ import annotations

import gzip
import io
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engines.base import Unit, Volume
from training.data.dicom import AIR_HU, OUTSIDE_HU
from training.errors import DataError

ENDINGS: Final = (".nii", ".nii.gz")
CLEARLY: Final = 1.1
"""By this factor the slice spacing must be above the next one to tell which axis is the slices'."""
HEADER_BYTES: Final = 540
"""Of NIfTI-2; that of NIfTI-1 has 348."""
LARGEST_BYTES: Final = 4 << 30
PLANES: Final = ("sagittal", "coronal", "axial")


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """How a file lies: which axes and signs make it RAS, and which axis is the slices'.

    ``shape`` and ``spacing_mm`` are (z, y, x) of what is returned.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    plane: str
    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    oriented: bool


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError:
        raise DataError(
            "NIfTI files need nibabel, which is not installed", hint="pip install 'luminode[training]'"
        ) from None
    return nibabel


def _header(raw: bytes, name: str) -> Any:
    nibabel = _nibabel()
    for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return kind.from_fileobj(io.BytesIO(raw), check=True)
        except Exception as error:  # nibabel raises many types on bytes that are no header
            reason = type(error).__name__
    raise DataError(f"{name}: not a NIfTI file ({reason})", hint="take the file out of the folder")


def geometry(raw: bytes, name: str) -> Geometry:
    """Read the geometry from the first :data:`HEADER_BYTES` of an uncompressed file.

    Raises
    ------
    DataError
        Not NIfTI, or not one volume of plain numbers.
    """
    header = _header(raw, name)
    nibabel = _nibabel()
    shape = tuple(int(n) for n in header.get_data_shape())
    if len(shape) > 3 and any(n > 1 for n in shape[3:]):
        raise DataError(
            f"{name}: {len(shape)} dimensions {shape}: a series of volumes (diffusion, function, contrast)",
            hint="training takes one volume a file: split it, or take the file out of the folder",
        )
    shape = shape[:3]
    if len(shape) != 3 or min(shape) < 1:
        raise DataError(f"{name}: shape {shape} is no volume", hint="take the file out of the folder")
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise DataError(
            f"{name}: its voxels are no plain numbers ({dtype})", hint="convert it, or take it out"
        )
    if int(np.prod(shape, dtype=np.int64)) * 4 > LARGEST_BYTES:
        raise DataError(
            f"{name}: {shape} voxels are too many to read at once", hint="cut it into smaller volumes"
        )
    affine = header.get_best_affine()
    zooms = np.abs(np.array(header.get_zooms()[:3], float))
    oriented = bool(int(header["qform_code"]) > 0 or int(header["sform_code"]) > 0)
    if not np.isfinite(affine).all() or not np.isfinite(zooms).all() or (zooms <= 0).any():
        raise DataError(f"{name}: its voxel sizes make no sense", hint="correct the header")
    codes = nibabel.io_orientation(affine)
    if np.isnan(codes).any():
        raise DataError(f"{name}: its axes cannot be told apart", hint="correct the affine in the header")
    source = [int(np.flatnonzero(codes[:, 0] == axis)[0]) for axis in range(3)]
    spacing = np.array([zooms[axis] for axis in source])
    cut = _slices_along(spacing, header.get_dim_info()[2], source)
    rest = [axis for axis in (2, 1, 0) if axis != cut]
    order = [source[cut], *(source[axis] for axis in rest)]
    return Geometry(
        shape=(shape[order[0]], shape[order[1]], shape[order[2]]),
        spacing_mm=(float(spacing[cut]), float(spacing[rest[0]]), float(spacing[rest[1]])),
        plane=PLANES[cut],
        order=(order[0], order[1], order[2]),
        flips=(bool(codes[order[0], 1] < 0), bool(codes[order[1], 1] < 0), bool(codes[order[2], 1] < 0)),
        oriented=oriented,
    )


def _slices_along(spacing: npt.NDArray[np.float64], told: int | None, source: list[int]) -> int:
    """Return the RAS axis that was cut into slices."""
    if told is not None and int(told) in source:
        return source.index(int(told))
    widest = int(np.argmax(spacing))
    second = float(np.sort(spacing)[1])
    return widest if spacing[widest] >= CLEARLY * second else 2


def head(path: Path) -> bytes:
    """Return the first bytes of a file, uncompressed."""
    try:
        with path.open("rb") as stream:
            if path.name.endswith(".gz"):
                with gzip.open(stream) as packed:
                    return packed.read(HEADER_BYTES)
            return stream.read(HEADER_BYTES)
    except (OSError, EOFError, zlib.error):
        return b""


def unpack(raw: bytes, name: str) -> bytes:
    """Gunzip where the bytes are gzip's, up to :data:`LARGEST_BYTES`.

    Raises
    ------
    DataError
        Cut short, damaged, or larger than that.
    """
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as packed:
            unpacked = packed.read(LARGEST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{name}: damaged or cut short ({type(error).__name__})", hint="copy or download the file again"
        ) from error
    if len(unpacked) > LARGEST_BYTES:
        raise DataError(f"{name}: larger than 4 GiB when unpacked", hint="take the file out of the folder")
    return unpacked


def decode(raw: bytes, name: str, unit: Unit) -> Volume:
    """Make a volume of the bytes of a file.

    Parameters
    ----------
    raw
        The whole file, packed or not.
    unit
        What the values are; HU below -1500 and values that are no numbers are marked invalid.

    Raises
    ------
    DataError
        As :func:`geometry`; or the file is damaged.
    """
    nibabel = _nibabel()
    unpacked = unpack(raw, name)
    lie = geometry(unpacked[:HEADER_BYTES], name)
    header = _header(unpacked[:HEADER_BYTES], name)
    kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = kind.from_bytes(unpacked)
            stored = np.asarray(image.dataobj, dtype=np.float32)
            slope = 0.0 if header.get_data_dtype().kind == "f" else abs(float(image.dataobj.slope))
    except Exception as error:  # nibabel raises many types on damaged files
        raise DataError(
            f"{name}: its voxels cannot be read ({type(error).__name__})",
            hint="copy or download the file again",
        ) from error
    values = np.ascontiguousarray(
        np.flip(
            np.transpose(stored.reshape(stored.shape[:3]), lie.order),
            axis=tuple(axis for axis, flipped in enumerate(lie.flips) if flipped),
        )
    )
    outside = ~np.isfinite(values)
    if unit == "HU":
        outside |= values <= OUTSIDE_HU
    values[outside] = AIR_HU if unit == "HU" else 0.0
    contiguous = np.ones(lie.shape[0], bool)
    contiguous[-1] = False
    return Volume(
        values=values,
        spacing_mm=lie.spacing_mm,
        unit=unit,
        valid=~outside,
        contiguous=contiguous,
        step=np.full(lie.shape[0], slope, np.float32),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NiftiSource:
    """Reads one volume; ``read`` gives the bytes (of a file, or of a member of a tar)."""

    read: Callable[[], bytes] = field(repr=False)
    name: str = field(repr=False)
    unit: Unit

    def load(self) -> Volume:
        """Read, scale and reorient."""
        try:
            raw = self.read()
        except OSError as error:
            raise DataError(f"{self.name}: {type(error).__name__}", hint="index the folder again") from None
        return decode(raw, self.name, self.unit)
