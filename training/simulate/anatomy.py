"""Seeded synthetic CT without noise: chests, abdomens, heads, limbs, and abstract pictures of everything else.

No part of it is a patient's. It is drawn to hold what a denoiser gets wrong: textured soft tissue, lesions of a
few HU, vessels of less than a pixel in lung, septa in fat, trabeculae, cortex folds, gas, metal-bright spots.
Contrasts, sizes, sharpness and slice distances are drawn far wider than scanners have them (domain
randomisation), since what is learned must hold on anatomy that nobody drew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from training.simulate.shapes import Canvas, Floats, share

KINDS = ("chest", "abdomen", "head", "limb", "abstract")


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """A noise-free stack.

    Attributes
    ----------
    values
        float32 (z, y, x), HU within -1024 and 3071.
    spacing_mm
        (z, y, x).
    kind
        One of :data:`KINDS`.
    """

    values: Floats
    spacing_mm: tuple[float, float, float]
    kind: str


def draw(
    rng: np.random.Generator,
    *,
    kind: str | None = None,
    n_slices: int = 3,
    matrix: int = 512,
    texture: float = 1.0,
) -> Truth:
    """Draw one stack.

    Parameters
    ----------
    kind
        None draws one, too.
    matrix
        Rows and columns.
    texture
        Of tissues, as a share of what is drawn by default (3 to 17 HU everywhere, far more than parenchyma has). All
        but it is the same, whatever it is.
    """
    chosen = kind or str(rng.choice(KINDS, p=[0.24, 0.24, 0.2, 0.08, 0.24]))
    fov = {"head": (200, 280), "limb": (120, 260), "chest": (260, 420), "abdomen": (280, 440)}
    low, high = fov.get(chosen, (200, 420))
    pixel = float(rng.uniform(low, high)) / matrix
    step = float(np.exp(rng.uniform(np.log(0.5), np.log(4.0))))
    canvas = Canvas(shape=(n_slices, matrix, matrix), pixel_mm=pixel, step_mm=step, rng=rng, textured=texture)
    PAINTERS[chosen](canvas)
    values = canvas.values
    # The sharpness of a kernel: blur, and for sharp ones the overshoot that they have at edges.
    blur = float(rng.uniform(0.0, 0.9))
    if blur > 0.2:
        values = gaussian_filter(values, (0, blur, blur))
    if rng.random() < 0.35:
        values = values + float(rng.uniform(0.1, 0.7)) * (values - gaussian_filter(values, (0, 1.2, 1.2)))
    return Truth(
        values=np.clip(values, -1024, 3071).astype(np.float32),
        spacing_mm=(step, pixel, pixel),
        kind=chosen,
    )


def _torso(c: Canvas) -> tuple[Floats, Floats]:
    """Skin, fat with septa, muscle wall with striations; returns the inside of the wall and its distance."""
    rng, h = c.rng, c.half_mm
    rx, ry = h * rng.uniform(0.78, 1.02), h * rng.uniform(0.55, 0.8)
    slow = c.field(25, 150)
    at = (0.0, float(rng.normal(0, 5)), float(rng.normal(0, 8)))
    d = c.distance(at, (1e4, ry, rx), ragged=slow, ragged_mm=3.0, power=float(rng.uniform(2.0, 2.6)))
    fat = float(rng.uniform(-120, -85))
    c.fill(share(d, c.soft), float(rng.uniform(10, 60)))
    c.fill(share(d + rng.uniform(1, 2.5), c.soft), fat + 6 * c.texture(1.5, 20, 0.5))
    inside = share(d + 2.5, c.soft)
    c.septa(inside, float(rng.uniform(-60, 20)), c.field(3, 30), float(rng.uniform(0.08, 0.28)))
    layer = float(rng.choice([rng.uniform(4, 12), rng.uniform(8, 45)]))
    wall = d + layer + 2.0 * c.field(10, 60)
    muscle = share(wall, c.soft)
    c.fill(muscle, float(rng.uniform(40, 75)) + 3 * c.texture(1.2, 12))
    c.septa(muscle, float(rng.uniform(-70, 10)), c.field(3, 25), float(rng.uniform(0.04, 0.2)))
    thick = float(rng.uniform(8, 22))
    return share(wall + thick, c.soft), np.asarray(wall + thick, np.float32)


def _spine(c: Canvas, back: float) -> None:
    rng = c.rng
    at = (0.0, back, float(rng.normal(0, 4)))
    grain = c.field(0.7, float(rng.uniform(1.5, 4)))
    size = float(rng.uniform(14, 22))
    d = c.distance(at, (1e4, 0.8 * size, size), ragged=c.field(4, 25), ragged_mm=1.0)
    c.bone(d, float(rng.uniform(0.8, 2.5)), float(rng.uniform(350, 900)), float(rng.uniform(90, 320)), grain)
    for side in (-1, 1):
        d = c.distance((0, back + 1.3 * size, side * 0.9 * size), (1e4, 5, 12), angle=side * 0.5)
        c.bone(d, 1.5, float(rng.uniform(500, 1100)), float(rng.uniform(150, 400)), grain)
    c.fill(share(c.distance((0, back + size * 1.15, at[2]), (1e4, 7, 8)), c.soft), float(rng.uniform(10, 35)))


def _ribs(c: Canvas, wall: Floats) -> None:
    """Ribs: where a band around the wall meets a field that comes and goes along it."""
    rng = c.rng
    along = c.field(18, 60)
    d = np.maximum(np.abs(wall - 4.0) - float(rng.uniform(2.5, 5)), (0.6 - along) * 9)
    c.bone(
        d,
        float(rng.uniform(0.7, 1.8)),
        float(rng.uniform(500, 1300)),
        float(rng.uniform(60, 300)),
        c.field(0.8, 3),
    )


def _vessels(
    c: Canvas, where: Floats, n: int, value: tuple[float, float], radius: tuple[float, float]
) -> None:
    rng = c.rng
    rows, columns = np.nonzero(where[where.shape[0] // 2] > 0.5)
    if rows.size == 0:
        return
    for _ in range(n):
        i = int(rng.integers(rows.size))
        r = float(np.exp(rng.uniform(np.log(radius[0]), np.log(radius[1]))))
        length = float(r * rng.uniform(4, 30))
        at = (float(c.y[0, rows[i], 0]), float(c.x[0, 0, columns[i]]))
        c.tube(float(rng.uniform(*value)), r, min(length, 120.0), at, where)


def _lesions(c: Canvas, where: Floats, n: int, contrast: float, radius: tuple[float, float]) -> None:
    """Round or ragged lesions, brighter or darker than what they lie in."""
    rng = c.rng
    rows, columns = np.nonzero(where[where.shape[0] // 2] > 0.9)
    for _ in range(n if rows.size else 0):
        i = int(rng.integers(rows.size))
        r = float(np.exp(rng.uniform(np.log(radius[0]), np.log(radius[1]))))
        at = (float(rng.normal(0, c.step_mm)), float(c.y[0, rows[i], 0]), float(c.x[0, 0, columns[i]]))
        radii = (r, r * float(rng.uniform(0.6, 1)), r)
        d = c.distance(at, radii, angle=float(rng.uniform(0, 3.1)))
        if rng.random() < 0.4:
            d = d + 0.3 * r * c.field(max(1.0, 0.4 * r), 2 * r + 2)
        soft = c.soft if rng.random() < 0.6 else float(rng.uniform(1, 3)) * c.soft
        c.values += share(d, soft) * where * float(rng.choice([-1, 1]) * rng.uniform(0.15, 1) * contrast)


def _chest(c: Canvas) -> None:
    rng, h = c.rng, c.half_mm
    inside, wall = _torso(c)
    c.fill(inside, float(rng.uniform(-110, 50)) + 5 * c.texture(3, 30))
    lungs = np.zeros_like(c.values)
    for side in (-1, 1):
        at = (0.0, float(rng.normal(-5, 8)), side * h * float(rng.uniform(0.36, 0.46)))
        radii = (1e4, h * float(rng.uniform(0.36, 0.55)), h * float(rng.uniform(0.26, 0.36)))
        d = c.distance(
            at, radii, angle=side * float(rng.uniform(-0.1, 0.25)), ragged=c.field(15, 80), ragged_mm=4
        )
        lungs = np.maximum(lungs, share(np.maximum(d, wall), c.soft))
    air = float(rng.uniform(-920, -760))
    c.fill(lungs, air + float(rng.uniform(4, 35)) * c.texture(0.8, float(rng.uniform(4, 25)), 0.5))
    if rng.random() < 0.5:  # emphysema, ground glass
        cloud = share(0.9 - c.field(8, 60), 0.2)
        c.values += lungs * cloud * float(rng.choice([-60.0, rng.uniform(60, 350)]))
    c.septa(lungs, float(rng.uniform(-700, -500)), c.field(12, 90), float(rng.uniform(0.04, 0.12)))
    if rng.random() < 0.35:  # fibrosis, lobular septa
        c.septa(lungs, float(rng.uniform(-750, -400)), c.field(3, 12), float(rng.uniform(0.08, 0.32)))
    _vessels(c, lungs, int(rng.integers(60, 150)), (-350, 70), (0.25, 1.2))
    _vessels(c, lungs, int(rng.integers(10, 40)), (0, 80), (1.0, 4.5))
    for _ in range(int(rng.integers(0, 8))):  # bronchi
        r = float(rng.uniform(0.8, 3.5))
        y, x = float(rng.uniform(-0.4, 0.4)) * h, float(rng.choice([-1, 1]) * rng.uniform(0.2, 0.55)) * h
        d = c.distance((0, y, x), (20, r, r * float(rng.uniform(1, 3))), angle=float(rng.uniform(0, 3)))
        c.fill(share(d - 0.35 * r, c.soft) * lungs, -150.0)
        c.fill(share(d, c.soft) * lungs, -980.0)
    _lesions(c, lungs, int(rng.integers(0, 7)), 900.0, (0.8, 10))
    blood = float(rng.choice([rng.uniform(35, 55), rng.uniform(120, 400)]))
    heart = c.distance(
        (0, 0.05 * h, 0.08 * h), (1e4, h * rng.uniform(0.15, 0.32), h * rng.uniform(0.18, 0.34))
    )
    middle = share(heart + 3 * c.field(10, 50), c.soft) * inside
    c.fill(middle, float(rng.uniform(35, 90)) + 3 * c.texture(2, 20))
    _vessels(c, middle, int(rng.integers(2, 9)), (blood - 15, blood + 15), (3, 14))
    _lesions(c, middle, int(rng.integers(0, 4)), 40.0, (1, 8))
    _spine(c, 0.42 * h)
    _ribs(c, wall)
    if rng.random() < 0.5:
        c.fill(share(c.distance((0, -0.05 * h, 0.02 * h), (1e4, 8, 9)), c.soft), -990.0)


def _abdomen(c: Canvas) -> None:
    rng, h = c.rng, c.half_mm
    inside, wall = _torso(c)
    fat = float(rng.uniform(-115, -80))
    c.fill(inside, fat + 6 * c.texture(2, 25))
    c.septa(inside, float(rng.uniform(-60, 30)), c.field(4, 30), float(rng.uniform(0.08, 0.32)))
    _vessels(c, inside, int(rng.integers(10, 60)), (20, 200), (0.4, 4))
    base = float(rng.uniform(35, 130))
    for _ in range(int(rng.integers(3, 8))):
        at = (0.0, float(rng.uniform(-0.35, 0.3)) * h, float(rng.uniform(-0.6, 0.6)) * h)
        radii = (
            float(rng.uniform(20, 90)),
            h * float(rng.uniform(0.1, 0.4)),
            h * float(rng.uniform(0.1, 0.4)),
        )
        d = c.distance(at, radii, angle=float(rng.uniform(0, 3)), ragged=c.field(10, 70), ragged_mm=5)
        organ = share(np.maximum(d, wall), c.soft)
        level = base + float(rng.normal(0, 25))
        c.fill(organ, level + float(rng.uniform(0.5, 5)) * c.texture(1.2, float(rng.uniform(6, 30)), 0.5))
        if rng.random() < 0.4:  # cortex and medulla
            inner = share(d + float(rng.uniform(4, 12)) + 3 * c.field(4, 20), 2 * c.soft)
            c.values += organ * inner * float(rng.uniform(-70, 40))
        lit = float(rng.uniform(-20, 140))
        _vessels(c, organ, int(rng.integers(3, 25)), (level + lit - 5, level + lit + 5), (0.4, 5))
        _lesions(c, organ, int(rng.integers(0, 6)), float(rng.choice([8.0, 20.0, 50.0])), (1, 14))
    for _ in range(int(rng.integers(2, 9))):  # bowel
        at = (0.0, float(rng.uniform(-0.4, 0.25)) * h, float(rng.uniform(-0.6, 0.6)) * h)
        r = float(rng.uniform(7, 28))
        d = c.distance(at, (2 * r, r, r * float(rng.uniform(1, 2))), angle=float(rng.uniform(0, 3)))
        d = np.maximum(d + 2 * c.field(5, 25), wall)
        c.fill(share(d, c.soft), float(rng.uniform(20, 90)))
        filled = share(d + float(rng.uniform(1.5, 4)), c.soft)
        what = float(rng.choice([-950.0, rng.uniform(0, 40), rng.uniform(100, 400)]))
        c.fill(filled, what + 8 * c.texture(1, 8))
        if rng.random() < 0.5:
            gas = filled * share(np.asarray(c.y - at[1] + rng.uniform(-0.3, 0.5) * r, np.float32), c.soft)
            c.fill(gas, -970.0)
    _spine(c, 0.38 * h)
    if rng.random() < 0.5:
        _ribs(c, wall)
    if rng.random() < 0.3:
        _lesions(c, inside, 3, 900.0, (0.5, 2.5))


def _head(c: Canvas) -> None:
    rng, h = c.rng, c.half_mm
    ry, rx = h * rng.uniform(0.78, 0.95), h * rng.uniform(0.62, 0.8)
    d = c.distance(
        (0, 0, 0), (1e4, ry, rx), ragged=c.field(30, 120), ragged_mm=2.5, power=rng.uniform(2, 2.4)
    )
    c.fill(share(d, c.soft), float(rng.uniform(20, 60)))
    c.fill(share(d + 2, c.soft), float(rng.uniform(-100, 40)) + 8 * c.texture(2, 20))
    scalp, bone = float(rng.uniform(4, 10)), float(rng.uniform(3.5, 9))
    skull = d + scalp + 1.0 * c.field(15, 60)
    c.bone(
        np.maximum(skull, -(skull + bone)),
        float(rng.uniform(0.8, 2.2)),
        float(rng.uniform(800, 1800)),
        float(rng.uniform(200, 700)),
        c.field(0.8, 4),
    )
    inner = skull + bone
    brain = share(inner + 0.8, c.soft)
    csf = float(rng.uniform(0, 14))
    white, grey = float(rng.uniform(22, 32)), float(rng.uniform(5, 14))
    folds = c.field(6, float(rng.uniform(25, 60))) + 0.6 * c.field(12, 80)
    c.fill(brain, white + 0.8 * c.texture(1.5, 15, 0.5))
    depth = share(-(inner + rng.uniform(18, 40)), 4.0)
    cortex = share(0.4 - np.abs(folds) + 0.5 * (1 - depth), 0.15)
    c.values += brain * cortex * grey
    c.septa(brain * depth, csf, folds, float(rng.uniform(0.08, 0.48)))
    for side in (-1, 1):
        at = (0.0, float(rng.normal(-4, 8)), side * float(rng.uniform(5, 16)))
        v = c.distance(at, (25, float(rng.uniform(10, 30)), float(rng.uniform(3, 9))), angle=side * 0.25)
        c.fill(share(v + 1.2 * c.field(5, 25), 1.5 * c.soft) * brain, csf)
        n = c.distance((0, at[1] + 6, side * 24), (30, 14, 7), angle=side * 0.3)
        c.values += share(n, 2 * c.soft) * brain * float(rng.uniform(2, 10))
    _lesions(c, brain, int(rng.integers(0, 7)), float(rng.choice([6.0, 12.0, 40.0])), (1, 16))
    if rng.random() < 0.4:
        _lesions(c, brain, 4, 300.0, (0.4, 2))
    _vessels(c, brain, int(rng.integers(0, 14)), (40, float(rng.choice([60, 250]))), (0.4, 2))
    if rng.random() < 0.3:  # base of the skull: air cells, petrous bone, orbits
        cells = share(c.field(3, 12) - 0.2, 0.2) * share(np.abs(inner) - 15, 3.0)
        c.fill(cells * share(c.distance((0, 0.3 * h, 0), (1e4, 0.25 * h, 0.3 * h)), 2.0), -950.0)
        dense = share(c.distance((0, 0.1 * h, rng.choice([-1, 1]) * 0.35 * h), (1e4, 14, 30)), c.soft)
        c.fill(dense, float(rng.uniform(900, 2000)) + 250 * c.field(1, 6))


def _limb(c: Canvas) -> None:
    rng, h = c.rng, c.half_mm
    inside, _ = _torso(c)
    _vessels(c, inside, int(rng.integers(4, 20)), (30, 300), (0.6, 4))
    for _ in range(int(rng.integers(1, 4))):
        at = (0.0, float(rng.uniform(-0.3, 0.3)) * h, float(rng.uniform(-0.45, 0.45)) * h)
        r = float(rng.uniform(7, 26))
        d = c.distance(at, (1e4, r, r * float(rng.uniform(0.8, 1.5))), ragged=c.field(6, 30), ragged_mm=1.5)
        marrow = float(rng.choice([-60.0, rng.uniform(80, 500)]))
        c.bone(
            d,
            float(rng.uniform(0.7, 6)),
            float(rng.uniform(600, 1900)),
            marrow,
            c.field(0.6, rng.uniform(1.5, 5)),
        )
    _lesions(c, inside, int(rng.integers(0, 5)), 40.0, (1, 12))


def _abstract(c: Canvas) -> None:
    """Dead leaves of any contrast and texture, discs of a few HU, bar patterns, lines."""
    rng, h = c.rng, c.half_mm
    ground = float(rng.choice([-1000.0, -900.0, -100.0, rng.uniform(0, 100), 40.0]))
    c.fill(np.ones_like(c.values), ground + float(rng.uniform(0, 10)) * c.texture(1, 40, 0.7))
    levels = float(rng.choice([15.0, 60.0, 300.0, 900.0]))
    for _ in range(int(rng.integers(15, 90))):
        r = float(np.exp(rng.uniform(np.log(1.0), np.log(0.5 * h))))
        at = (float(rng.normal(0, r)), float(rng.uniform(-h, h)), float(rng.uniform(-h, h)))
        radii = (r * float(rng.uniform(0.7, 20)), r * float(rng.uniform(0.2, 1)), r)
        d = c.distance(at, radii, angle=float(rng.uniform(0, 3.1)), power=float(rng.choice([2.0, 2.0, 6.0])))
        level = float(np.clip(ground + rng.normal(0, levels), -1000, 2500))
        c.fill(share(d, c.soft * float(rng.choice([1, 1, 3]))), level)
    if rng.random() < 0.7:
        grain = c.texture(float(rng.uniform(0.8, 3)), float(rng.uniform(4, 40)), float(rng.uniform(0, 1)))
        c.values += float(rng.uniform(1, 25)) * grain * share(c.field(15, 90), 0.2)
    everywhere = np.ones_like(c.values)
    _lesions(c, everywhere, int(rng.integers(5, 25)), float(rng.choice([6.0, 15.0, 40.0])), (1, 12))
    _vessels(c, everywhere, int(rng.integers(5, 40)), (ground - levels, ground + levels), (0.3, 3))
    if rng.random() < 0.4:  # bars, as in a resolution insert
        pitch = float(rng.uniform(1.5, 6)) * c.pixel_mm
        turn = float(rng.uniform(0, 3.1))
        wave = np.sign(np.sin(2 * np.pi / pitch * (c.x * np.cos(turn) + c.y * np.sin(turn)))) * np.ones_like(
            c.z
        )
        box = share(
            c.distance((0, rng.uniform(-h, h) / 2, rng.uniform(-h, h) / 2), (1e4, 18, 18), power=6), c.soft
        )
        c.values += box * np.asarray(wave, np.float32) * float(rng.uniform(20, 400))
    if rng.random() < 0.3:
        c.septa(everywhere, ground + levels, c.field(5, 40), float(rng.uniform(0.04, 0.2)))


PAINTERS: Mapping[str, Callable[[Canvas], None]] = {
    "chest": _chest,
    "abdomen": _abdomen,
    "head": _head,
    "limb": _limb,
    "abstract": _abstract,
}
