"""Noise-free brain MR painted from label maps: any contrast, orientation, thickness and pixel size.

A label map is a staircase of 1 mm voxels; a slice is painted from *memberships* instead: the labels around
each sample point, blurred over one voxel, interpolated, and sharpened again, class by class, so that edges
are smooth curves that may be sharper than a voxel. Thick slices average several such planes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, maximum_filter
from scipy.sparse import csr_array

from engines.base import Floats
from training.errors import DataError
from training.simulate.details import add_lesions, add_vessels
from training.simulate.fields import finished, textures
from training.simulate.tissues import BRAIN, INDEX, TISSUES, draw_contrast, lookup

MATRICES = (192, 224, 256, 288, 320, 384)
ORIENTATIONS: dict[str, tuple[tuple[int, int], ...]] = {
    "axial": ((0, 1), (1, 1), (2, 1)),
    "sagittal": ((2, 1), (0, -1), (1, 1)),
    "coronal": ((1, 1), (0, -1), (2, 1)),
}
"""Axis and sign in the label map of a slice's normal, its rows and its columns."""

N_TEXTURES = 5
CORNERS = tuple(product((0, 1), repeat=3))
AROUND = tuple(product((-1, 0, 1), repeat=3))
SIDE = 0.2
"""Weight of each neighbour voxel along an axis when labels are blurred; thin sheets survive it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Painted:
    """A noise-free stack.

    Attributes
    ----------
    values
        float32 (z, y, x), air 0, the 99th percentile of positive voxels 1.
    spacing_mm
        Between slice centres, rows and columns.
    contrast
        What it looks like, for records.
    """

    values: Floats
    spacing_mm: tuple[float, float, float]
    contrast: str


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError:
        raise DataError(
            "label maps need nibabel, which is not installed", hint="pip install 'luminode[training]'"
        ) from None
    return nibabel


def read_labels(path: Path) -> tuple[npt.NDArray[np.int16], tuple[float, float, float]]:
    """Return a NIfTI label map as :func:`paint` wants it: z to the head, y to the back, x to the left.

    Returns
    -------
    labels
        (z, y, x)
    voxel_mm
        Voxel size along z, y and x.

    Raises
    ------
    DataError
        When the file is not there or is no 3-D NIfTI image.
    """
    nibabel = _nibabel()
    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        values = np.asarray(image.dataobj)
    except (OSError, nibabel.filebasedimages.ImageFileError) as error:
        raise DataError(f"{path.name} cannot be read as NIfTI: {error}") from error
    if values.ndim != 3:
        raise DataError(f"{path.name} has {values.ndim} axes; a label map has 3")
    sizes = [float(v) for v in image.header.get_zooms()[:3]]
    labels = np.ascontiguousarray(values.astype(np.int16).transpose(2, 1, 0)[:, ::-1, ::-1])
    return labels, (sizes[2], sizes[1], sizes[0])


def _rotation(rng: np.random.Generator, degrees: float) -> Floats:
    """A small random rotation (3, 3)."""
    a, b, c = np.deg2rad(rng.uniform(-degrees, degrees, 3))
    turn = np.eye(3)
    for i, j, angle in ((0, 1, a), (0, 2, b), (1, 2, c)):
        plane = np.eye(3)
        plane[[i, j], [i, j]] = np.cos(angle)
        plane[i, j], plane[j, i] = -np.sin(angle), np.sin(angle)
        turn = turn @ plane
    return np.asarray(turn, dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """Where samples lie in the label map: ``origin + step[0] z + step[1] y + step[2] x`` voxels, bent."""

    origin: Floats
    step: Floats
    waves: Floats
    phases: Floats
    swing: Floats

    def at(self, z: Floats, y: Floats, x: Floats) -> Floats:
        """Voxel coordinates (3, z, y, x) of samples at these mm."""
        z, y, x = z[:, None, None], y[None, :, None], x[None, None, :]
        out = np.empty((3, z.shape[0], y.shape[1], x.shape[2]), dtype=np.float32)
        for axis in range(3):
            s = self.step[axis]
            out[axis] = self.origin[axis] + s[0] * z + s[1] * y + s[2] * x
        bend = [
            self.swing[k] * np.sin(np.tensordot(self.waves[k], out, axes=1) + self.phases[k])
            for k in range(6)
        ]
        for axis in range(3):
            out[axis] += bend[2 * axis] + bend[2 * axis + 1]
        return out


def _extent(labels: npt.NDArray[np.integer], table: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """First and last voxel of the brain along each axis, looked at every third voxel."""
    coarse = table[labels[::3, ::3, ::3]]
    inside = np.argwhere((coarse >= BRAIN[0]) & (coarse <= BRAIN[-1]))
    if len(inside) == 0:
        raise DataError(
            "the label map has no brain", hint="labels are the numbers of FreeSurfer's colour table"
        )
    return (3 * inside.min(axis=0)).astype(np.float32), (3 * inside.max(axis=0)).astype(np.float32)


def _frame(
    extent: tuple[Floats, Floats],
    voxel_mm: tuple[float, float, float],
    orientation: str,
    fov_mm: float,
    rng: np.random.Generator,
) -> _Frame:
    first, last = extent
    voxel = np.asarray(voxel_mm, dtype=np.float32)
    basis = np.zeros((3, 3), dtype=np.float32)
    for column, (axis, sign) in enumerate(ORIENTATIONS[orientation]):
        basis[axis, column] = sign
    zoom = rng.uniform(0.87, 1.15) * rng.uniform(0.94, 1.06, 3)
    step = _rotation(rng, 10.0) @ (np.diag(zoom) @ basis) / voxel[:, None]
    origin = (first + last) / 2
    normal = ORIENTATIONS[orientation][0][0]
    origin[normal] = rng.uniform(first[normal] + 0.08 * (last - first)[normal], last[normal] - 4)
    # A small field of view looks at any part of the head, a large one has the head in its middle.
    loose = max(10.0, 0.5 * (190.0 - fov_mm))
    for axis, _ in ORIENTATIONS[orientation][1:]:
        origin[axis] += rng.uniform(-loose, loose) / voxel[axis]
    length = rng.uniform(50.0, 140.0, 6)
    direction = rng.normal(size=(6, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return _Frame(
        origin=origin.astype(np.float32),
        step=np.asarray(step, dtype=np.float32),
        waves=np.asarray(2 * np.pi / length[:, None] * direction * voxel, dtype=np.float32),
        phases=rng.uniform(0, 2 * np.pi, 6).astype(np.float32),
        swing=np.asarray(
            0.12 * rng.uniform(0, 1, 6) * length / (2 * np.pi) / voxel.repeat(2), dtype=np.float32
        ),
    )


def _memberships(
    labels: npt.NDArray[np.integer],
    table: npt.NDArray[np.uint8],
    at: Floats,
    sharpness: float,
) -> Floats:
    """Share of each tissue (samples, tissues) at voxel coordinates (3, samples); outside the map is air."""
    size = np.asarray(labels.shape)
    inside = np.all((at >= 1) & (at < (size - 3)[:, None]), axis=0)
    out = np.zeros((at.shape[1], len(TISSUES)), dtype=np.float32)
    out[:, 0] = 1
    if not inside.any():
        return out
    low = np.floor(at[:, inside].min(axis=1)).astype(int) - 1
    high = np.floor(at[:, inside].max(axis=1)).astype(int) + 3
    tissue = table[labels[low[0] : high[0], low[1] : high[1], low[2] : high[2]]]
    strides = np.array([tissue.shape[1] * tissue.shape[2], tissue.shape[2], 1])
    seen = maximum_filter(tissue, size=4).ravel()
    where = np.flatnonzero(inside)
    local = at[:, where] - low[:, None].astype(np.float32)
    base = local.astype(np.int32)
    flat = (base * strides[:, None]).sum(axis=0)
    kept = seen[flat] > 0
    where, flat, part = where[kept], flat[kept], (local - base)[:, kept]
    if where.size == 0:
        return out
    corners = np.stack([flat + int(np.dot(c, strides)) for c in CORNERS], axis=1)
    weights = np.ones(corners.shape, dtype=np.float32)
    for k, c in enumerate(CORNERS):
        for axis in range(3):
            weights[:, k] *= part[axis] if c[axis] else 1 - part[axis]
    used = np.zeros(tissue.size, dtype=bool)
    used[corners.ravel()] = True
    nodes = np.flatnonzero(used)
    row = np.cumsum(used, dtype=np.int32) - 1
    around = [nodes + int(np.dot(o, strides)) for o in AROUND]
    present = np.unique(tissue)
    column = np.zeros(len(TISSUES), dtype=np.int64)
    column[present] = np.arange(present.size)
    compact = column[tissue.ravel()]
    blurred = np.zeros(nodes.size * present.size, dtype=np.float32)
    start = np.arange(nodes.size) * present.size
    for o, node in zip(AROUND, around, strict=True):
        blurred[start + compact[node]] += np.float32(np.prod([SIDE if d else 1 - 2 * SIDE for d in o]))
    pick = csr_array(
        (weights.ravel(), row[corners.ravel()], np.arange(0, weights.size + 1, len(CORNERS))),
        shape=(where.size, nodes.size),
    )
    share = pick @ blurred.reshape(nodes.size, present.size)
    share = np.maximum(share, 0) ** np.float32(sharpness)
    share /= share.sum(axis=1, keepdims=True)
    filled = np.zeros((where.size, len(TISSUES)), dtype=np.float32)
    filled[:, present] = share
    out[where] = filled
    return out


def _fatten(share: Floats, pixel_mm: float, field: Floats, rng: np.random.Generator) -> None:
    """Split soft tissue (z, y, x, tissues) in place: fat under the skin and in lobules, muscle below."""
    rim = share[..., INDEX["skin"]] + 0.5 * share[..., INDEX["air"]]
    near = gaussian_filter(rim, (0, 4.0 / pixel_mm, 4.0 / pixel_mm))
    fat = 1 / (1 + np.exp(-(near - rng.uniform(0.08, 0.2) + 0.015 * field) / 0.012))
    soft = share[..., INDEX["soft"]].copy()
    share[..., INDEX["fat"]] += soft * fat
    share[..., INDEX["soft"]] = soft * (1 - fat)


def paint(
    labels: npt.NDArray[np.integer],
    voxel_mm: tuple[float, float, float],
    rng: np.random.Generator,
    *,
    n_slices: int = 3,
    matrix: int | None = None,
    orientation: str | None = None,
) -> Painted:
    """Paint a stack of neighbour slices from a whole-head label map.

    Parameters
    ----------
    labels
        (z, y, x) numbers of FreeSurfer's colour table, axes as :func:`read_labels` gives them.
    voxel_mm
        Voxel size along z, y and x.
    rng
        Draws everything else: contrast, geometry, deformation, texture, lesions, vessels, shading.
    n_slices
        Slices of the stack.
    matrix
        Rows and columns; drawn from 192 to 384 when None.
    orientation
        A key of ``ORIENTATIONS``; drawn when None.

    Returns
    -------
    Painted
        float32 (n_slices, matrix, matrix), scaled.

    Raises
    ------
    DataError
        When the map is not 3-D or has no brain.
    """
    if labels.ndim != 3:
        raise DataError(f"a label map has 3 axes, not {labels.ndim}")
    matrix = int(rng.choice(MATRICES)) if matrix is None else matrix
    orientation = (
        str(rng.choice(list(ORIENTATIONS), p=(0.5, 0.25, 0.25))) if orientation is None else orientation
    )
    pixel = float(np.clip(np.exp(rng.normal(np.log(200.0 / matrix), 0.22)), 0.4, 1.2))
    thickness = float(np.exp(rng.uniform(np.log(0.8), np.log(5.0))))
    step = thickness * float(rng.choice((1.0, 1.1, 1.2)))
    spacing = (step, pixel, pixel)
    table = lookup(max(int(labels.max()), 1023))
    frame = _frame(_extent(labels, table), voxel_mm, orientation, matrix * pixel, rng)
    contrast = draw_contrast(rng)

    centred = ((np.arange(matrix) - (matrix - 1) / 2) * pixel).astype(np.float32)
    slices = ((np.arange(n_slices) - (n_slices - 1) / 2) * step).astype(np.float32)
    planes = int(np.clip(round(thickness / 1.2), 1, 3))
    shape = (n_slices, matrix, matrix)
    sharpness = float(rng.uniform(1.3, 3.0))
    share = np.zeros((n_slices * matrix * matrix, len(TISSUES)), dtype=np.float32)
    for k in range(planes):
        offset = np.float32(thickness * ((k + 0.5) / planes - 0.5))
        at = frame.at(slices + offset, centred, centred).reshape(3, -1)
        share += _memberships(labels, table, at, sharpness) / np.float32(planes)
    fields = textures(shape, spacing, rng, N_TEXTURES)
    _fatten(share.reshape(*shape, -1), pixel, fields[2], rng)

    signal = contrast.signal
    # Texture as fine as a pixel looks like noise: a truth with much of it would teach to keep noise.
    grain = rng.exponential(0.012, (N_TEXTURES, len(TISSUES))) * np.linspace(0.4, 1.4, N_TEXTURES)[:, None]
    grain[:, BRAIN[-1] + 1 : INDEX["fat"]] *= 2.0
    grain[:, [INDEX["csf"], INDEX["eye"], INDEX["skin"]]] *= 0.3
    grain = np.minimum(grain, 0.1)
    mixed = share @ np.vstack([signal, signal * grain]).T.astype(np.float32)
    values = mixed[:, 0].reshape(shape)
    for k in range(N_TEXTURES):
        values = values + fields[k] * mixed[:, k + 1].reshape(shape)
    brain = share[:, list(BRAIN)].sum(axis=1).reshape(shape)
    values = add_vessels(values, brain, spacing, thickness, rng)
    values = add_lesions(values, brain, fields[1], spacing, rng)
    if orientation != "axial":
        # Coils end at the neck, and so do label maps: fade before the cut.
        low = frame.at(slices, centred, centred)[0] * np.float32(voxel_mm[0]) - 3
        bottom = float(np.flatnonzero(labels.any(axis=(1, 2)))[0] * voxel_mm[0])
        values = values * np.clip((low - bottom) / np.float32(rng.uniform(15, 45)), 0, 1)
    values = np.where(share[:, 0].reshape(shape) > 0.999, np.float32(0), values)
    return Painted(
        values=finished(np.asarray(values, dtype=np.float32), rng),
        spacing_mm=spacing,
        contrast=f"{orientation} {contrast.name}",
    )
