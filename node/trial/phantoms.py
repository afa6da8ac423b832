"""Seeded digital phantoms: a low-dose chest CT and a noisy brain MR, with the truth under the noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from scipy import ndimage

from node.trial import anatomy_ct as ct
from node.trial import anatomy_mr as mr
from node.trial import headers, lungs
from node.trial import paint_ct as paint
from node.trial.noise import QuantumNoise, rician
from node.trial.shapes import Canvas, Field, cover, doubled, enlarged, smooth_noise

CT_FIELD_MM = 372.0
CT_CENTRE_MM = (0.0, 14.0)
MR_FIELD_MM = 232.0
MR_CENTRE_MM = (0.0, 2.0)
MR_WHITE = 320.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Phantom:
    """A series before it becomes DICOM.

    Attributes
    ----------
    truth
        Noise-free values, float32 (z, y, x): HU for CT, arbitrary units for MR. In order of Instance Number:
        CT runs from the head to the feet, MR from the feet to the head.
    noisy
        The same with noise, not yet rounded.
    valid
        bool (z, y, x): False where nothing was reconstructed.
    spacing_mm
        (z, y, x).
    origin_mm
        Centre of the first voxel of slice 0, (x, y, z), patient coordinates (L, P, H).
    towards
        +1 if z grows from slice to slice, else -1.
    notes
        What a test may look for: positions and kinds of nodules or lesions, noise level.
    """

    truth: Field
    noisy: Field
    valid: npt.NDArray[np.bool_]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    towards: int
    notes: dict[str, Any]

    def position_mm(self, index: int) -> tuple[float, float, float]:
        """Centre of the first pixel of a slice: Image Position (Patient)."""
        x, y, z = self.origin_mm
        return x, y, z + self.towards * index * self.spacing_mm[0]


def ct_phantom(
    seed: int = 1, n_slices: int = 48, size: int = 512, *, spacing_mm: float = 1.25, noise_hu: float = 45.0
) -> Phantom:
    """A low-dose chest CT.

    Parameters
    ----------
    seed
        The same seed gives the same bytes.
    n_slices, size
        Slices, and rows = columns.
    spacing_mm
        Between slices.
    noise_hu
        Noise (standard deviation) in the middle of the body.
    """
    rng = np.random.default_rng([seed, 0xC7])
    chest = ct.Chest.of(rng)
    pixel = CT_FIELD_MM / size
    top = 18.0 + max(0.0, (n_slices - 48) * spacing_mm / 3)
    heights = np.array([top - spacing_mm * i for i in range(n_slices)], dtype=np.float64)
    line: Field = (np.arange(size, dtype=np.float32) - (size - 1) / 2) * pixel
    line_x, line_y = line + CT_CENTRE_MM[0], line + CT_CENTRE_MM[1]
    arteries, veins = lungs.grow(chest, rng, float(heights[-1]), float(heights[0]), min(1.0, size / 400))
    airways = lungs.bronchi(arteries)
    edge = max(pixel, 0.55)
    vessels = lungs.draw(arteries + veins, heights, line_x, line_y, edge)
    walls = lungs.draw(airways, heights, line_x, line_y, edge, grow_mm=0.5)
    lumens = lungs.draw(airways, heights, line_x, line_y, edge)
    nodules = lungs.place_nodules(chest, rng, heights, vessels, (line_x, line_y))
    half = max(size // 2, 32)
    coarse = smooth_noise(rng, (n_slices, half, half), (2.5, 4.5 * half / 256, 4.5 * half / 256))
    tile = smooth_noise(rng, (2 * size, 2 * size), 1.3 * size / 512)
    shifts = rng.integers(0, size, (n_slices, 2))
    quantum = QuantumNoise(size, pixel)
    seeds = [np.random.default_rng([seed, 0xC7, i]) for i in range(n_slices + 1)]
    whites: list[Field] = [g.standard_normal((size, size), dtype=np.float32) for g in seeds]
    truth = np.empty((n_slices, size, size), dtype=np.float32)
    noisy = np.empty_like(truth)
    level = noise_hu / _central_noise(quantum, size)

    for i, z in enumerate(heights.tolist()):
        grain = enlarged(coarse[i], size)
        fine = tile[shifts[i, 0] : shifts[i, 0] + size, shifts[i, 1] : shifts[i, 1] + size]
        tree = _Lungs(vessel=vessels[i], wall=walls[i], lumen=lumens[i], nodules=nodules)
        truth[i] = _ct_slice(chest, z, size, pixel, grain, fine, tree)
        # Neighbouring slices share a little of their rays.
        white = (whites[i] + 0.35 * whites[i + 1]) / math.hypot(1, 0.35)
        noisy[i] = truth[i] + quantum.sample(white, quantum.strength(truth[i])) * level

    r2 = (line[None, :] ** 2 + line[:, None] ** 2) <= ((CT_FIELD_MM / 2) ** 2)
    valid = np.broadcast_to(r2, truth.shape).copy()
    return Phantom(
        truth=truth, noisy=noisy, valid=valid, spacing_mm=(spacing_mm, pixel, pixel),
        origin_mm=(float(line_x[0]), float(line_y[0]), float(heights[0])), towards=-1,
        notes={"nodules": nodules, "noise_hu": noise_hu},
    )  # fmt: skip


def _central_noise(quantum: QuantumNoise, size: int) -> float:
    """Noise of the unscaled model in the middle of 22 cm of water in air: what ``noise_hu`` refers to."""
    line = np.arange(size) - (size - 1) / 2
    disc = np.hypot(line[None, :], line[:, None]) * quantum.pixel < 110
    water = np.where(disc, 0.0, -1000.0).astype(np.float32)
    profiles = quantum.strength(water)
    return float(np.sqrt(np.mean([float(p[len(p) // 2]) ** 2 for p in profiles])))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lungs:
    """What one slice needs of the trees: coverage (0..255) by vessels, bronchial walls and bronchial air."""

    vessel: npt.NDArray[np.uint8]
    wall: npt.NDArray[np.uint8]
    lumen: npt.NDArray[np.uint8]
    nodules: tuple[lungs.Nodule, ...]


def _ct_slice(
    chest: ct.Chest, z: float, size: int, pixel: float, grain: Field, fine: Field, tree: _Lungs
) -> Field:
    """One noise-free slice in HU."""
    c = Canvas.blank(size, pixel, CT_CENTRE_MM, ct.AIR)
    if size >= 256 and size % 2 == 0:  # slowly varying fields need only every second pixel
        k = np.arange(0, size + 1, 2, dtype=np.float32) * pixel
        hx, hy = np.meshgrid(c.x[0, 0] + k, c.y[0, 0] + k)
        lung, wall = chest.lungs(hx, hy, z)
        lung = doubled(lung, size)
        wall = ct.Wall(out=doubled(wall.out, size), turn=doubled(wall.turn, size))
    else:
        lung, wall = chest.lungs(c.x, c.y, z)
    outside = paint.paint_wall(c, chest, wall, z, grain)
    paint.paint_mediastinum(c, chest, wall, z, grain)
    paint.paint_sternum(c, chest, z)
    paint.paint_spine(c, chest, z, grain, fine)
    inside = lung < c.edge
    part, depth = c.some(inside), lung[inside]
    air = lungs.parenchyma(part.x, part.y, z, -grain[inside], fine[inside])
    vessel, wall_, lumen = (t[inside].astype(np.float32) / 255 for t in (tree.vessel, tree.wall, tree.lumen))
    air += wall_ * ((-160.0) - air)
    air += vessel * np.clip((-depth - 1.0) / 5, 0.25, 1) * (ct.BLOOD - air)
    air += lumen * ((-960.0) - air)
    lungs.add_nodules(air, part.x, part.y, z, tree.nodules, c.edge, grain[inside])
    part.paint(cover(depth, c.edge), air)
    c.put(inside, part)
    paint.paint_airways(c, chest, z)
    paint.paint_table(c, outside)
    # The kernel of the reconstruction.
    out: Field = ndimage.gaussian_filter(c.values, 0.45 / pixel, mode="nearest", truncate=3.0)
    return out


def mr_phantom(
    seed: int = 1, n_slices: int = 28, size: int = 256, *, sequence: str = "T1", spacing_mm: float = 2.8,
    noise: float = 0.11, partial: float = 1.0,
) -> Phantom:  # fmt: skip
    """A brain MR, axial, with Rician noise that zero-filling has correlated.

    Parameters
    ----------
    seed
        The same seed gives the same bytes.
    n_slices, size
        Slices, and rows = columns.
    sequence
        ``T1`` or ``T2``.
    spacing_mm
        Between slices.
    noise
        Standard deviation in the real and the imaginary part, white matter being 1.
    partial
        Share of the k-space lines measured (partial Fourier, zero-filled); 1 is all.
    """
    rng = np.random.default_rng([seed, 0x317])
    head = mr.Head.of(rng, 2.0 if size > 128 else 4.0)
    tissue = mr.signal(sequence)
    pixel = MR_FIELD_MM / size
    heights = max(0.0, 38.0 - spacing_mm * (n_slices - 1) / 2) + spacing_mm * np.arange(n_slices)
    line = (np.arange(size, dtype=np.float32) - ((size - 1) / 2)) * pixel
    bias = smooth_noise(rng, (max(n_slices // 4, 2), 8, 8), (1.0, 2.0, 2.0))
    bend = rng.normal(0, 1, 6)
    clean = np.empty((n_slices, size, size), dtype=np.float32)
    noisy = np.empty_like(clean)
    u, v = np.meshgrid(line / (MR_FIELD_MM / 2), line / (MR_FIELD_MM / 2))
    for i, z in enumerate(heights.tolist()):
        thin = []
        for dz in (-0.27, 0.27):
            c = Canvas.blank(size, pixel, MR_CENTRE_MM, 0.0)
            mr.paint_head(c, head, z + dz * spacing_mm, tissue)
            thin.append(c.values)
        k = min(int(i * len(bias) / n_slices), len(bias) - 1)
        coil = 1 + 0.07 * enlarged(bias[k], size) + 0.16 * (u * u + v * v)
        sharp = (thin[0] + thin[1]) / 2 * coil
        phase = (
            0.6 * bend[0] * u
            + 0.6 * bend[1] * v
            + 0.5 * bend[2] * u * v
            + 0.4 * bend[3] * u * u
            + 0.1 * bend[4] * i / n_slices
        )
        g = np.random.default_rng([seed, 0x317, i])
        clean[i] = rician(g, sharp, phase, 0.0, (0.80, 1.0), partial)
        noisy[i] = rician(g, sharp, phase, noise, (0.80, 1.0), partial)
    return Phantom(
        truth=clean * MR_WHITE, noisy=noisy * MR_WHITE,
        valid=np.ones(clean.shape, dtype=np.bool_), spacing_mm=(spacing_mm, pixel, pixel),
        origin_mm=(float(line[0]), float(line[0]) + MR_CENTRE_MM[1], float(heights[0])), towards=1,
        notes={"lesions": head.lesions, "noise": noise * MR_WHITE, "sequence": sequence},
    )  # fmt: skip


SMALL = 128
_cached_ct = lru_cache(maxsize=8)(ct_phantom)
_cached_mr = lru_cache(maxsize=8)(mr_phantom)


def chest_ct(
    seed: int = 1, n_slices: int = 48, size: int = 512, salt: str = "", *, noise_hu: float = 45.0,
    signed: bool = True, promise: bool = False, noise_free: bool = False,
) -> list[Dataset]:  # fmt: skip
    """A low-dose chest CT as DICOM, in order of Instance Number.

    Parameters
    ----------
    seed
        Which patient and which noise; the same seed gives the same pixels.
    salt
        Goes into the UIDs only: another salt makes the same images another study.
    noise_hu
        Noise in the middle of the body.
    signed
        16 bits signed with padding -2000, or 12 of 16 bits unsigned with padding 0.
    promise
        Whether Images in Acquisition (0020,1002) tells the count; absent otherwise.
    noise_free
        The truth instead of the noisy images, in the same encoding and under the same UIDs; for tests.
    """
    make = _cached_ct if size <= SMALL else ct_phantom
    p = make(seed, n_slices, size, noise_hu=noise_hu)
    values = p.truth if noise_free else p.noisy
    key = f"{seed} {n_slices} {size} {noise_hu} {signed} {salt}"
    exam = headers.Exam(
        seed=seed, key=key, count=n_slices if promise else 0, pixel=p.spacing_mm[1], spacing=p.spacing_mm[0]
    )
    return [
        headers.ct_image(exam, values[i], p.valid[i], i, p.position_mm(i), signed=signed)
        for i in range(n_slices)
    ]


def brain_mr(
    seed: int = 1, n_slices: int = 28, size: int = 256, salt: str = "", *, sequence: str = "T1",
    noise: float = 0.11, partial: float = 1.0, promise: bool = False, noise_free: bool = False,
) -> list[Dataset]:  # fmt: skip
    """A noisy brain MR as DICOM, in order of Instance Number; parameters as for :func:`chest_ct` and
    :func:`mr_phantom`."""
    make = _cached_mr if size <= SMALL else mr_phantom
    p = make(seed, n_slices, size, sequence=sequence, noise=noise, partial=partial)
    values = p.truth if noise_free else p.noisy
    key = f"{seed} {n_slices} {size} {sequence} {noise} {partial} {salt}"
    exam = headers.Exam(
        seed=seed, key=key, count=n_slices if promise else 0, pixel=p.spacing_mm[1], spacing=p.spacing_mm[0]
    )
    return [
        headers.mr_image(exam, values[i], i, p.position_mm(i), sequence=sequence, partial=partial < 1)
        for i in range(n_slices)
    ]


def small_ct(
    seed: int = 1, n_slices: int = 6, size: int = 96, salt: str = "", **options: Any
) -> list[Dataset]:
    """A coarse chest CT, made in well under a second: for tests."""
    return chest_ct(seed, n_slices, size, salt, **options)


def small_mr(
    seed: int = 1, n_slices: int = 6, size: int = 64, salt: str = "", **options: Any
) -> list[Dataset]:
    """A coarse brain MR, made in well under a second: for tests."""
    return brain_mr(seed, n_slices, size, salt, **options)


def write_series(datasets: Sequence[Dataset], folder: Path) -> list[Path]:
    """Write each data set as a Part 10 file ``IM0001.dcm``, ... into ``folder``, which is made if absent."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, one in enumerate(datasets, start=1):
        path = folder / f"IM{i:04d}.dcm"
        one.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths
