"""Noise-free brain MR painted from label maps: any contrast, orientation, thickness and pixel size.

Thick slices average several planes through the map (:mod:`training.simulate.planes`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from engines.base import Floats
from training.errors import DataError
from training.simulate.abstract import phantom
from training.simulate.details import add_lesions, add_vessels
from training.simulate.fields import MATRICES, Painted, finished, textures
from training.simulate.planes import ORIENTATIONS, extent, frame_of, memberships
from training.simulate.tissues import BRAIN, INDEX, TISSUES, draw_contrast, lookup

__all__ = ["MATRICES", "ORIENTATIONS", "Painted", "paint", "phantom", "read_labels"]

N_TEXTURES = 5


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
        When the map is not 3-D, has negative numbers or no brain.
    """
    if labels.ndim != 3:
        raise DataError(f"a label map has 3 axes, not {labels.ndim}")
    if labels.min() < 0:
        raise DataError(f"labels are numbers from 0, not {int(labels.min())}")
    matrix = int(rng.choice(MATRICES)) if matrix is None else matrix
    orientation = (
        str(rng.choice(list(ORIENTATIONS), p=(0.5, 0.25, 0.25))) if orientation is None else orientation
    )
    pixel = float(np.clip(np.exp(rng.normal(np.log(200.0 / matrix), 0.22)), 0.4, 1.2))
    thickness = float(np.exp(rng.uniform(np.log(0.8), np.log(5.0))))
    step = thickness * float(rng.choice((1.0, 1.1, 1.2)))
    spacing = (step, pixel, pixel)
    table = lookup(max(int(labels.max()), 1023))
    frame = frame_of(extent(labels, table), voxel_mm, orientation, matrix * pixel, rng)
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
        share += memberships(labels, table, at, sharpness) / np.float32(planes)
    fields = textures(shape, spacing, rng, N_TEXTURES)
    _fatten(share.reshape(*shape, -1), pixel, fields[2], rng)

    signal = contrast.signal
    # Texture as fine as a pixel looks like noise: a truth with much of it would teach to keep noise.
    grain = rng.exponential(0.008, (N_TEXTURES, len(TISSUES))) * np.linspace(0.4, 1.4, N_TEXTURES)[:, None]
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
