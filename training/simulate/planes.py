"""Planes through a label map: where the samples of a slice lie, and how much of each tissue they hold.

A label map is a staircase of 1 mm voxels; a slice is painted from *memberships* instead: the labels around
each sample point, blurred over one voxel, interpolated, and sharpened again, class by class, so that edges
are smooth curves that may be sharper than a voxel.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter
from scipy.sparse import csr_array

from engines.base import Floats
from training.errors import DataError
from training.simulate.tissues import BRAIN, TISSUES

ORIENTATIONS: dict[str, tuple[tuple[int, int], ...]] = {
    "axial": ((0, 1), (1, 1), (2, 1)),
    "sagittal": ((2, 1), (0, -1), (1, 1)),
    "coronal": ((1, 1), (0, -1), (2, 1)),
}
"""Axis and sign in the label map of a slice's normal, its rows and its columns."""

CORNERS = tuple(product((0, 1), repeat=3))
AROUND = tuple(product((-1, 0, 1), repeat=3))
SIDE = 0.2
"""Weight of each neighbour voxel along an axis when labels are blurred; thin sheets survive it."""


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
class Frame:
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


def extent(labels: npt.NDArray[np.integer], table: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """First and last voxel of the brain along each axis, looked at every third voxel."""
    coarse = table[labels[::3, ::3, ::3]]
    inside = np.argwhere((coarse >= BRAIN[0]) & (coarse <= BRAIN[-1]))
    if len(inside) == 0:
        raise DataError(
            "the label map has no brain", hint="labels are the numbers of FreeSurfer's colour table"
        )
    return (3 * inside.min(axis=0)).astype(np.float32), (3 * inside.max(axis=0)).astype(np.float32)


def frame_of(
    reach: tuple[Floats, Floats],
    voxel_mm: tuple[float, float, float],
    orientation: str,
    fov_mm: float,
    rng: np.random.Generator,
) -> Frame:
    """Draw a slab: place, small rotation, zoom, and a smooth bend that never folds (strain below 0.25).

    Parameters
    ----------
    reach
        As :func:`extent` gives it.
    voxel_mm
        Voxel size of the map along z, y and x.
    orientation
        A key of ``ORIENTATIONS``.
    fov_mm
        Side of the field of view: small ones look at any part of the head.
    """
    first, last = reach
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
    return Frame(
        origin=origin.astype(np.float32),
        step=np.asarray(step, dtype=np.float32),
        waves=np.asarray(2 * np.pi / length[:, None] * direction * voxel, dtype=np.float32),
        phases=rng.uniform(0, 2 * np.pi, 6).astype(np.float32),
        swing=np.asarray(
            0.12 * rng.uniform(0, 1, 6) * length / (2 * np.pi) / voxel.repeat(2), dtype=np.float32
        ),
    )


def memberships(
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
