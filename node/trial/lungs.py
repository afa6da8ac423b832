"""Lungs: branching vessels and bronchi that fill them, parenchyma, fissures, nodules.

The trees are grown by the volume-filling rule of Tawhai et al. (Ann Biomed Eng 2000): a branch goes part of
the way to the centre of the tissue that it serves, the tissue is cut in two, and so on; radii follow a power
law upwards from the smallest twigs.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from node.trial.anatomy_ct import LUNG, Chest
from node.trial.shapes import Field, cover, pick

Vector = npt.NDArray[np.float64]

TWIG_MM = 0.47
POWER = 2.55


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A straight piece of a tree from ``start`` to ``end`` (x, y, z in mm), with its radius at both ends."""

    start: Vector
    end: Vector
    r0: float
    r1: float
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodule:
    """A nodule: where (mm), how large, what it adds. ``share`` below 1 makes ground glass."""

    x: float
    y: float
    z: float
    radius: float
    value: float
    share: float
    spiky: float


ROOTS = {  # side, lobe: hilum (x, y, z), first direction, radius there
    "artery": {
        ("R", "upper"): ((-56, -4, 2), (-0.6, -0.3, 0.7), 4.4),
        ("R", "middle"): ((-57, 16, -42), (-0.6, -0.7, -0.4), 4.4),
        ("R", "lower"): ((-57, 24, -58), (-0.3, 0.5, -0.8), 6.0),
        ("L", "upper"): ((56, -14, 6), (0.6, -0.4, 0.5), 4.2),
        ("L", "lingula"): ((57, 22, -20), (0.7, -0.7, -0.3), 4.2),
        ("L", "lower"): ((56, 36, -50), (0.3, 0.5, -0.8), 6.0),
    },
    "vein": {
        ("R", "upper"): ((-56, -12, -24), (-0.6, -0.5, 0.6), 4.6),
        ("R", "middle"): ((-50, -10, -40), (-0.6, -0.7, -0.4), 3.8),
        ("R", "lower"): ((-58, 30, -58), (-0.6, 0.6, -0.4), 5.0),
        ("L", "upper"): ((58, -14, -20), (0.5, -0.5, 0.7), 4.6),
        ("L", "lingula"): ((56, -10, -32), (0.6, -0.7, -0.4), 3.8),
        ("L", "lower"): ((60, 34, -54), (0.6, 0.6, -0.4), 5.0),
    },
}


def lobe(p: Vector) -> npt.NDArray[np.int64]:
    """Which lobe points (n, 3) belong to, as the index into the keys of :data:`ROOTS`."""
    x, y, z = (p[:, i].astype(np.float32) for i in range(3))
    upper = np.where(minor(x, y, z) > 0, 0, 1)
    return np.where(x < 0, 0, 3) + np.where(fissure(x, y, z) < 0, upper, 2)


def fissure(x: Field, y: Field, z: Field | float) -> Field:
    """Signed distance (about, mm) to the oblique fissure: negative in front of it."""
    lean = pick(x < 0, 37.0, 30.0) + pick(x < 0, 0.66, 0.60) * z
    bulge = 5 * np.sin(np.abs(x) / 34) + 3 * np.sin(0.6 + z / 27)
    distance: Field = ((y - lean - bulge) * 0.85).astype(np.float32)
    return distance


def minor(x: Field, y: Field, z: Field | float) -> Field:
    """Signed distance (about, mm) to the horizontal fissure: positive above it."""
    return (z + 24 - 0.10 * y - 0.05 * np.abs(x)).astype(np.float32)


def grow(
    chest: Chest, rng: np.random.Generator, low: float, high: float, detail: float = 1.0
) -> tuple[list[Branch], list[Branch]]:
    """Arteries and veins of both lungs; fine ones only where ``low`` < z < ``high`` (mm) needs them.

    ``detail`` in (0, 1] thins the twigs out, for coarse pixels that would not show them.
    """
    points = _tissue(chest, rng, low, high, detail)
    arteries = _trees("artery", points[: int(0.58 * len(points))], rng)
    veins = _trees("vein", points[int(0.52 * len(points)) :], rng)
    return arteries, veins


def _tissue(chest: Chest, rng: np.random.Generator, low: float, high: float, detail: float) -> Vector:
    """Random points in the lungs, dense in the slab that will be imaged and sparse elsewhere."""
    found: list[Vector] = []
    pitch = 4.0 if detail > 0.4 else 8.0
    more = (pitch / 4) ** 3
    line = np.arange(-132.0, 132.0, pitch, dtype=np.float32)
    for z in np.arange(-112.0, 100.0, pitch):
        dense = low - 14 < z < high + 14
        x, y = np.meshgrid(line, line[: int(len(line) * 0.86)])
        distance, _ = chest.lungs(x, y, float(z))
        dome = 18.0 * np.exp(-((x / 60) ** 2 + ((y - 10) / 60) ** 2))
        inside = (distance < -3.0) & (z < 92 - 0.004 * (x**2 + y**2)) & (z > -118 + dome)
        keep = inside & (rng.random(x.shape) < more * (0.19 * detail if dense else 0.012))
        n = int(keep.sum())
        jitter = rng.uniform(-pitch / 2, pitch / 2, (n, 3))
        found.append(np.stack([x[keep], y[keep], np.full(n, z)], axis=1) + jitter)
    points = np.concatenate(found)
    return points[rng.permutation(len(points))]


def _trees(kind: str, points: Vector, rng: np.random.Generator) -> list[Branch]:
    which = lobe(points)
    branches: list[Branch] = []
    for i, (hilum, direction, radius) in enumerate(ROOTS[kind].values()):
        served = points[which == i]
        if len(served) < 4:
            continue
        d = np.asarray(direction, dtype=np.float64)
        branches += _grow_one(np.asarray(hilum, dtype=np.float64), d / np.linalg.norm(d), served, radius, rng)
    return branches


def _grow_one(
    root: Vector, direction: Vector, points: Vector, radius: float, rng: np.random.Generator
) -> list[Branch]:
    """One tree, breadth first; radii from the count of twigs that a branch feeds."""
    total = len(points)
    scale = radius / (TWIG_MM * total ** (1 / POWER))
    out: list[Branch] = []
    todo: list[tuple[Vector, Vector, Vector, float, int]] = [(root, direction, points, radius, 0)]
    while todo:
        at, along, served, r, depth = todo.pop()
        n = len(served)
        middle = np.add.reduce(served) / n
        if n == 1:
            out += _piece(at, at + 0.9 * (middle - at), r, TWIG_MM * 0.8, depth, rng)
            continue
        spread = served - middle
        spread = spread - np.outer(spread @ along, along)
        # Cut across the direction of largest spread: one step of the power method is near enough.
        moments = spread.T @ spread
        order = (spread @ moments[int(moments.diagonal().argmax())]).argsort(kind="stable")
        for part in (served[order[: n // 2]], served[order[n // 2 :]]):
            m = len(part)
            # Towards the true size near the root, the power law near the twigs.
            blend = min(1.0, depth / 5)
            child = TWIG_MM * m ** (1 / POWER) * (scale * (1 - blend) + blend * scale**0.5)
            child = max(min(child, r), TWIG_MM * 0.8)
            step = (np.add.reduce(part) / m - at) * (0.42 + 0.1 * rng.random())
            length = math.sqrt(float(step @ step)) + 1e-9
            bend = step / length
            cos = float(bend @ along)
            if cos < 0.35:  # no sharper than about 70 degrees
                bend = bend + (0.45 - cos) * along
                bend /= math.sqrt(float(bend @ bend))
            end = at + bend * max(length, 1.6)
            out += _piece(at, end, min(r, child * 1.12), child, depth, rng)
            todo.append((end, bend, part, child, depth + 1))
    return out


def _piece(p: Vector, q: Vector, r0: float, r1: float, depth: int, rng: np.random.Generator) -> list[Branch]:
    """From ``p`` to ``q``, gently bent when long."""
    length = math.dist(p, q)
    if length < 7:
        return [Branch(start=p, end=q, r0=r0, r1=r1, depth=depth)]
    n = 2 if length < 16 else 3
    knots = [p + (q - p) * i / n for i in range(n + 1)]
    for i in range(1, n):
        knots[i] = knots[i] + rng.normal(0, 0.055 * length / n**0.5, 3)
    radii = np.linspace(r0, r1, n + 1)
    return [
        Branch(start=a, end=b, r0=float(radii[i]), r1=float(radii[i + 1]), depth=depth)
        for i, (a, b) in enumerate(itertools.pairwise(knots))
    ]


def bronchi(arteries: list[Branch]) -> list[Branch]:
    """Airways run beside the arteries that are wide enough to have a visible one."""
    out = []
    for b in arteries:
        if b.depth > 6 or b.r0 < 1.5:
            continue
        # One side for the whole tree, so that the pieces meet.
        aside = np.array([0.55 if b.start[0] < 0 else -0.55, -0.55, 0.62])
        out.append(
            Branch(
                start=b.start + aside * (1.75 * b.r0 + 0.2), end=b.end + aside * (1.75 * b.r1 + 0.2),
                r0=0.64 * b.r0, r1=0.64 * b.r1, depth=b.depth,
            )
        )  # fmt: skip
    return out


def draw(
    branches: list[Branch],
    heights: npt.NDArray[np.float64],
    line_x: Field,
    line_y: Field,
    edge: float,
    grow_mm: float = 0.0,
) -> npt.NDArray[np.uint8]:
    """Coverage (0..255) of a tree on the voxels of a stack (z, y, x).

    Parameters
    ----------
    heights
        z of the slices, in mm, equally spaced.
    line_x, line_y
        Coordinates of columns and rows.
    edge
        Width of the soft edge; a pixel.
    grow_mm
        Added to every radius.
    """
    nz, ny, nx = len(heights), len(line_y), len(line_x)
    out = np.zeros(nz * ny * nx, dtype=np.uint8)
    dz = float(heights[1] - heights[0]) if nz > 1 else 1.0
    origin = np.array([line_x[0], line_y[0], heights[0]], dtype=np.float64)
    step = np.array([line_x[1] - line_x[0], line_x[1] - line_x[0], dz], dtype=np.float64)
    starts, ends = (np.array([getattr(b, k) for b in branches]).reshape(-1, 3) for k in ("start", "end"))
    radii = np.array([(b.r0 + grow_mm, b.r1 + grow_mm) for b in branches]).reshape(-1, 2)
    reach = (radii.max(axis=1) + edge)[:, None] + np.array([0.0, 0.0, 0.2 * abs(dz)])
    one, other = (
        (np.minimum(starts, ends) - reach - origin) / step,
        (np.maximum(starts, ends) + reach - origin) / step,
    )
    lows = np.ceil(np.minimum(one, other)).astype(np.int32)
    highs = np.floor(np.maximum(one, other)).astype(np.int32) + 1
    seen = ((lows < highs) & (highs > 0) & (lows < [nx, ny, nz])).all(axis=1)
    # Branches with boxes of about the same size are drawn together.
    sizes = (np.maximum(highs - lows, 1) + 3) // 4 * 4
    sizes[:, 2] = np.maximum(highs - lows, 1)[:, 2]
    for size in np.unique(sizes[seen], axis=0):
        members = np.flatnonzero(seen & (sizes == size).all(axis=1))
        chunk = max(1, 200_000 // int(size.prod()))
        for i in range(0, len(members), chunk):
            k = members[i : i + chunk]
            local = (starts[k] - origin).astype(np.float32)
            _draw_boxes(out, (nz, ny, nx), lows[k], size, step, local, (ends - starts)[k], radii[k], edge)
    return out.reshape(nz, ny, nx)


def _draw_boxes(
    out: npt.NDArray[np.uint8],
    shape: tuple[int, int, int],
    lows: npt.NDArray[np.int32],
    size: npt.NDArray[np.int32],
    step: Vector,
    starts: Field,
    ways: Vector,
    radii: Vector,
    edge: float,
) -> None:
    """Draw m branches into the flat volume ``out``, each within its box of ``size`` (x, y, z) voxels."""
    at = [lows[:, a, None] + np.arange(size[a], dtype=np.int32) for a in range(3)]
    x, y, z = (at[a].astype(np.float32) * np.float32(step[a]) - starts[:, a, None] for a in range(3))
    d = ways.astype(np.float32)
    r = radii.astype(np.float32)
    along = (x * d[:, 0, None])[:, None, None, :] + (y * d[:, 1, None])[:, None, :, None]
    along = along + (z * d[:, 2, None])[:, :, None, None]
    length2 = ((d * d).sum(axis=1) + 1e-6)[:, None, None, None]
    t = np.clip(along / length2, 0, 1)
    # |p - t d|^2 = |p|^2 - 2 t (p d) + t^2 |d|^2
    near = (x * x)[:, None, None, :] + (y * y)[:, None, :, None] + (z * z)[:, :, None, None]
    near = near + t * (t * length2 - 2 * along)
    radius = r[:, 0, None, None, None] + t * (r[:, 1] - r[:, 0])[:, None, None, None]
    share = np.clip((radius - np.sqrt(np.maximum(near, 0))) / edge + 0.5, 0, 1) * 255
    nz, ny, nx = shape
    inside = [(a >= 0) & (a < n) for a, n in zip(at, (nx, ny, nz), strict=True)]
    keep = (
        inside[0][:, None, None, :] & inside[1][:, None, :, None] & inside[2][:, :, None, None] & (share >= 1)
    )
    flat = (at[2][:, :, None, None] * ny + at[1][:, None, :, None]) * nx + at[0][:, None, None, :]
    np.maximum.at(out, flat[keep], share[keep].astype(np.uint8))


def parenchyma(x: Field, y: Field, z: float, coarse: Field, fine: Field) -> Field:
    """HU of lung tissue without vessels: denser towards the back, patchy, with fissures."""
    value = LUNG + 0.26 * y + 9 * coarse + 9 * fine
    # A little centrilobular emphysema where the coarse field is lowest.
    value -= 60 * np.clip((-coarse - fine * 0.3 - 2.2) * 1.3, 0, 1) * np.clip((z + 40) / 40, 0, 1)
    d = fissure(x, y, z)
    value += np.exp(-((d / 0.55) ** 2)) * 190
    level = minor(x, y, z) / 1.3
    value += np.exp(-(level**2)) * 110 * (x < 0) * (d < 0)
    return value.astype(np.float32)


def add_nodules(
    value: Field, x: Field, y: Field, z: float, nodules: tuple[Nodule, ...], edge: float, grain: Field
) -> None:
    """Lay nodules into the lung's pixels ``value`` (HU, 1-D), in place."""
    for n in nodules:
        r2 = (n.radius * 1.5) ** 2 - (z - n.z) ** 2
        if r2 <= 0:
            continue
        w = np.flatnonzero((np.abs(x - n.x) < 2.2 * n.radius) & (np.abs(y - n.y) < 2.2 * n.radius))
        if len(w) == 0:
            continue
        dx, dy = x[w] - n.x, y[w] - n.y
        turn = np.arctan2(dy, dx)
        lobes = np.sin(3 * turn + n.x) * 0.5 + np.sin(5 * turn + n.y + z * 0.3) * 0.35
        spikes = np.maximum(np.sin(9 * turn + n.x + 0.5 * (z - n.z)), 0) ** 6
        radius = n.radius * (1 + 0.09 * lobes + n.spiky * spikes)
        d = (np.sqrt(dx * dx + dy * dy + ((z - n.z) ** 2)) - radius).astype(np.float32)
        share = cover(d, edge if n.share == 1 else 3.2) * n.share
        if n.share < 1:
            share = share * (1 + 0.25 * grain[w])
        value[w] += share * (n.value - value[w])


def place_nodules(
    chest: Chest,
    rng: np.random.Generator,
    heights: npt.NDArray[np.float64],
    taken: npt.NDArray[np.uint8],
    line: tuple[Field, Field],
) -> tuple[Nodule, ...]:
    """A solid, a ground-glass, a calcified and a small subpleural nodule, away from larger vessels."""
    kinds = (  # radius, value, share, how spiky, how deep under the pleura
        (4.2, 38.0, 1.0, 0.22, 14.0),
        (6.5, -60.0, 0.36, 0.0, 12.0),
        (1.9, 420.0, 1.0, 0.0, 8.0),
        (2.4, 30.0, 1.0, 0.0, 3.4),
        (3.0, 30.0, 1.0, 0.05, 10.0),
    )
    low, high = sorted((float(heights[0]), float(heights[-1])))
    placed: list[Nodule] = []
    for i, (radius, value, share, spiky, deep) in enumerate(kinds):
        for _ in range(200):
            side = -1 if i % 2 else 1
            x, y = side * rng.uniform(50, 112), rng.uniform(-62, 70)
            z = rng.uniform(low + 0.2 * (high - low), high - 0.2 * (high - low)) if high > low else low
            at = np.array([[x]], dtype=np.float32), np.array([[y]], dtype=np.float32)
            depth = -float(chest.lungs(*at, z)[0][0, 0])
            if not (abs(depth - deep) < 1.0 if deep < 5 else depth > deep):
                continue
            k = int(np.argmin(np.abs(heights - z)))
            cols = np.abs(line[0] - x) < radius + 1.5
            rows = np.abs(line[1] - y) < radius + 1.5
            patch = taken[k][np.ix_(rows, cols)]
            if patch.size and patch.mean() > 22:
                continue
            if any(abs(n.x - x) + abs(n.y - y) + abs(n.z - z) < 30 for n in placed):
                continue
            placed.append(
                Nodule(
                    x=float(x), y=float(y), z=float(z), radius=radius, value=value, share=share, spiky=spiky
                )
            )
            break
    return tuple(placed)
