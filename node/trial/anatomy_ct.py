"""A chest, as Hounsfield units: body wall, bones, mediastinum and lungs from the aortic arch to the heart.

Coordinates in mm: +x to the patient's left, +y to the back, +z to the head; the carina lies at z = 0. The
proportions are those of an adult man with raised arms, varied a little by the seed. HU without contrast
medium: blood 40, muscle 55, fat -95, lung about -870, cortical bone 900.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from node.trial.shapes import FAR, Field, Tube, ellipse, pick, smooth_min, superellipse

AIR, FAT, WATER, BLOOD, MUSCLE = -1000.0, -97.0, 0.0, 42.0, 56.0
LUNG = -872.0

Keyed = tuple[tuple[float, float, float, float, float, float], ...]
"""Rows of (z, x, y, half width, half height, angle): an organ's outline at some heights."""

HEART: Keyed = (
    (-104, 22, -30, 60, 40, -0.45),
    (-76, 19, -27, 64, 45, -0.45),
    (-54, 12, -29, 57, 41, -0.42),
    (-40, 6, -34, 48, 35, -0.35),
    (-30, 2, -38, 38, 27, -0.20),
    (-22, 0, -38, 26, 16, 0.0),
)
LEFT_ATRIUM: Keyed = (
    (-78, 4, 8, 16, 8, 0.0),
    (-66, 5, 7, 33, 17, 0.0),
    (-46, 5, 6, 37, 17, 0.0),
    (-36, 5, 6, 30, 13, 0.0),
    (-29, 5, 6, 8, 4, 0.0),
)
CHAMBERS: tuple[Keyed, ...] = (  # right atrium, right ventricle and its outflow, left ventricle, left auricle
    (
        (-100, -31, -18, 26, 30, 0.3),
        (-60, -34, -26, 23, 28, 0.3),
        (-45, -32, -36, 19, 22, 0.5),
        (-31, -28, -42, 10, 12, 0.5),
    ),
    (
        (-100, 14, -54, 46, 20, -0.3),
        (-62, 14, -54, 38, 19, -0.25),
        (-45, 14, -55, 28, 17, -0.15),
        (-33, 16, -48, 18, 16, 0.0),
    ),
    (
        (-100, 46, -22, 33, 30, -0.5),
        (-72, 44, -20, 33, 31, -0.5),
        (-58, 40, -22, 27, 24, -0.4),
        (-46, 37, -24, 9, 9, 0.0),
    ),
    ((-52, 47, -14, 8, 12, -0.4), (-42, 45, -16, 12, 17, -0.4), (-30, 41, -16, 7, 12, -0.2)),
)
ANTERIOR_FAT: Keyed = (
    (-90, -4, -62, 22, 20, 0.0),
    (-30, -4, -54, 20, 26, 0.1),
    (0, -2, -50, 14, 30, 0.1),
    (34, -2, -42, 22, 40, 0.0),
)
CORE: Keyed = (  # the fat that holds the pipes together: paratracheal, aortopulmonary, subcarinal
    (-100, 4, 14, 24, 22, 0.0),
    (-44, 2, 12, 34, 24, 0.0),
    (-20, 0, 4, 44, 27, 0.0),
    (0, -2, 2, 35, 33, 0.15),
    (16, -2, 0, 34, 32, 0.3),
    (40, -2, 0, 36, 34, 0.0),
)

WALL_AT = np.array([0, 0.08, 0.18, 0.27, 0.33, 0.40, 0.47, 0.55, 0.65, 0.74, 0.83, 0.90, 0.96, 1.0]) * np.pi
MUSCLE_MM = np.array([22, 25, 27, 32, 36, 34, 24, 17, 15, 19, 23, 19, 11, 9.5])
FAT_MM = np.array([6, 9, 11, 11, 11, 12, 13, 13, 14, 14, 15, 16, 15, 13])
PLANES = (  # fat between muscles: distance from the pleura at (from, to) of the angle, and half thickness
    (0.02, 0.24, 17.5, 19.5, 0.9),
    (0.12, 0.30, 11.5, 12.0, 0.7),
    (0.22, 0.42, 26.5, 29.5, 1.0),
    (0.36, 0.62, 12.0, 11.0, 0.8),
    (0.42, 0.56, 18.5, 15.0, 0.8),
    (0.68, 0.90, 13.5, 14.5, 1.1),
)
RIB_GAP_MM = 23.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wall:
    """Where each pixel lies in the body wall: ``out`` mm outside the pleura, ``turn`` from the back (0) over
    the side to the front (pi), the same on both sides."""

    out: Field
    turn: Field


@dataclass(frozen=True, slots=True, kw_only=True)
class Chest:
    """One patient: what the seed varies, and the pipes of the mediastinum."""

    width: float
    depth: float
    fat: float
    muscle: float
    rib_phase: float
    disc_phase: float
    aorta: Tube
    veins: tuple[Tube, ...]
    arteries: tuple[Tube, ...]
    airways: tuple[Tube, ...]
    oesophagus: Tube
    calcified: bool
    wobble: npt.NDArray[np.float32] = field(repr=False)

    @classmethod
    def of(cls, rng: np.random.Generator) -> Chest:
        """A patient drawn from ``rng``."""

        def vary(by: float) -> float:
            return float(1 + by * np.clip(rng.standard_normal(), -1.5, 1.5))

        return cls(
            width=124.0 * vary(0.02),
            depth=87.0 * vary(0.025),
            fat=vary(0.18),
            muscle=vary(0.05),
            rib_phase=float(rng.uniform(0, RIB_GAP_MM)),
            disc_phase=float(rng.uniform(4, 10)),
            aorta=AORTA,
            veins=VEINS,
            arteries=ARTERIES,
            airways=AIRWAYS,
            oesophagus=OESOPHAGUS,
            calcified=bool(rng.random() < 0.8),
            wobble=rng.normal(0, 1, 12).astype(np.float32),
        )

    def wall(self, x: Field, y: Field, z: float) -> Wall:
        """Body wall coordinates of points of one slice."""
        taper = 1 - 0.0016 * max(z, -20.0)
        narrow = 1 + 0.0011 * np.maximum(8.0 - y, 0)
        dx = x * narrow
        deep = self.depth * (0.5 + taper / 2) + pick(y > 4, 3.0, -1.0)
        # Rounder in front, squarer behind, where the gutters lie beside the spine.
        power = 2.2 + np.clip(y / 60, 0, 1) * 0.55
        out = superellipse(dx, y - 4.0, self.width * taper, deep, power)
        turn = np.arctan2(np.abs(x), y - 4.0).astype(np.float32)
        w = self.wobble
        side = pick(x > 0, 1.0, -1.0)
        out += (w[0] * np.sin(3 * turn + w[1]) + 0.7 * w[2] * np.sin(5 * turn + w[3])) * 0.8
        out += side * w[4] * 0.9 * np.sin(turn)
        return Wall(out=out.astype(np.float32), turn=turn)

    def organs(self, x: Field, y: Field, z: float) -> Field:
        """Signed distance to everything that keeps the lungs off the middle."""
        d = np.full(x.shape, FAR, dtype=np.float32)
        for tube in (self.aorta, *self.veins[:3], *self.arteries, *self.airways[:3], self.oesophagus):
            tube.touch(d, x, y, z, 8.0, 5.0)
        for table, grow in ((HEART, 0.0), (LEFT_ATRIUM, 1.5), (ANTERIOR_FAT, 0.0), (CORE, 0.0)):
            at = outline(table, z)
            if at is not None:
                cx, cy, a, b, turn = at
                d = smooth_min(d, ellipse(x - cx, y - cy, a + grow, b + grow, turn), 7.0)
        spine = smooth_min(ellipse(x, y - 57, 22, 18), ellipse(x, y - 84, 27, 17), 8.0)
        junction = np.maximum(np.abs(x + 2.0) - 2.0, y + 30.0)
        d = smooth_min(d, junction.astype(np.float32), 8.0)
        return smooth_min(d, spine, 8.0)

    def lungs(self, x: Field, y: Field, z: float) -> tuple[Field, Wall]:
        """Signed distance to the lungs (negative inside), and the body wall's coordinates."""
        wall = self.wall(x, y, z)
        return np.maximum(wall.out, 2.0 - self.organs(x, y, z)), wall


AORTA = Tube.of(
    (2, -22, -64, 14.5), (-10, -29, -42, 16.0), (-17, -30, -12, 16.5), (-13, -26, 12, 16.0),
    (5, -18, 27, 15.0), (25, 3, 31, 14.0), (32, 22, 25, 13.2), (31, 35, 6, 12.6), (28, 39, -22, 12.3),
    (24, 41, -62, 12.0), (16, 42, -110, 11.5),
)  # fmt: skip
ARTERIES = (  # the trunk with the left pulmonary artery, the right one, their branches to the upper lobes
    Tube.of(
        (16, -48, -42, 13.0), (17, -43, -28, 14.0), (21, -28, -17, 13.2), (34, -4, -9, 11.5),
        (50, 15, -11, 9.6), (56, 29, -27, 7.6), (56, 36, -50, 6.4),
    ),
    Tube.of(
        (18, -30, -20, 10.5), (2, -4, -22, 11.0), (-20, 0, -24, 10.6), (-42, 5, -26, 9.0),
        (-55, 15, -36, 7.4), (-57, 24, -58, 6.2),
    ),
    Tube.of((-36, 3, -20, 7.0), (-48, -2, -10, 5.6), (-56, -4, 2, 4.2)),
    Tube.of((40, -2, -8, 7.0), (50, -10, -4, 5.4), (56, -14, 6, 4.0)),
)  # fmt: skip
VEINS = (  # superior vena cava, azygos, left brachiocephalic; then the four pulmonary veins
    Tube.of((-40, -22, 44, 8.6), (-42, -16, 10, 9.2), (-42, -15, -20, 9.6), (-38, -19, -40, 11.0)),
    Tube.of(
        (-4, 41, -110, 3.4), (-5, 38, -30, 3.8), (-8, 35, 2, 4.4), (-18, 29, 9, 4.8), (-32, 10, 12, 5.0),
        (-41, -12, 9, 5.2),
    ),
    Tube.of((-38, -26, 38, 7.4), (-10, -44, 40, 7.0), (26, -38, 52, 6.6)),
    Tube.of((-26, 0, -38, 6.4), (-44, -6, -32, 5.4), (-56, -12, -24, 4.4)),
    Tube.of((-28, 10, -50, 6.8), (-46, 22, -54, 5.6), (-58, 30, -58, 4.6)),
    Tube.of((36, 2, -36, 6.4), (50, -6, -29, 5.4), (58, -14, -20, 4.4)),
    Tube.of((36, 12, -46, 6.8), (50, 24, -50, 5.6), (60, 34, -54, 4.6)),
)  # fmt: skip
AIRWAYS = (  # trachea, right and left main bronchi downwards, the bronchi to the upper lobes
    Tube.of((4, 15, 140, 8.8), (3, 15, 60, 8.8), (2, 16, 20, 8.8), (1, 18, 2, 8.6)),
    Tube.of(
        (0, 18, 5, 7.4), (-15, 18, -8, 6.9), (-31, 17, -21, 6.2), (-37, 20, -44, 4.8), (-44, 28, -70, 3.6)
    ),
    Tube.of((2, 18, 5, 6.6), (17, 20, -8, 6.0), (39, 23, -21, 5.4), (46, 35, -42, 4.2), (52, 43, -70, 3.2)),
    Tube.of((-24, 17, -15, 4.8), (-43, 13, -13, 3.7), (-58, 8, -7, 2.8)),
    Tube.of((36, 22, -20, 5.0), (50, 9, -25, 3.9), (61, -3, -21, 2.9)),
)  # fmt: skip
OESOPHAGUS = Tube.of(
    (6, 30, 140, 6.2), (7, 31, 20, 6.6), (6, 30, -22, 6.2), (9, 31, -60, 7.4), (14, 28, -110, 7.4)
)  # fmt: skip
NODES = (  # lymph nodes (x, y, z, short half axis): pre- and paratracheal, aortopulmonary, subcarinal
    (-12, 2, 12, 2.6), (-16, 0, 2, 3.2), (-8, 2, 22, 2.4), (26, -8, 14, 2.6), (34, -12, 6, 2.2),
    (-2, 22, -16, 3.6), (6, -34, 14, 2.0),
)  # fmt: skip


def outline(table: Keyed, z: float) -> tuple[float, float, float, float, float] | None:
    """The ellipse of an organ at height ``z``, None above or below it."""
    rows = np.asarray(table)
    if not rows[0, 0] <= z <= rows[-1, 0]:
        return None
    cx, cy, a, b, turn = (float(np.interp(z, rows[:, 0], rows[:, i])) for i in range(1, 6))
    return cx, cy, a, b, turn
