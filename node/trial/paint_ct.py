"""How a chest is painted, slice by slice: body wall, bones, mediastinum, airways, table.

Each function lays one part over what is already on the canvas; the order of the calls is that of
:func:`node.trial.phantoms.ct_phantom`.
"""

from __future__ import annotations

import numpy as np

from node.trial.anatomy_ct import (
    BLOOD,
    CHAMBERS,
    FAT,
    FAT_MM,
    HEART,
    LEFT_ATRIUM,
    MUSCLE,
    MUSCLE_MM,
    NODES,
    PLANES,
    RIB_GAP_MM,
    WALL_AT,
    Chest,
    Wall,
    outline,
)
from node.trial.shapes import FAR, Canvas, Field, cover, ellipse, pick, smooth_min, superellipse


def paint_wall(canvas: Canvas, chest: Chest, everywhere: Wall, z: float, field_: Field) -> Field:
    """Skin, fat, muscles, ribs and scapulae; returns the share of each pixel outside the body.

    ``field_`` is a smooth random field of unit variance that breaks up the muscles.
    """
    ring = (everywhere.out > -3) & (everywhere.out < 68)
    c, grain = canvas.some(ring), field_[ring]
    wall = Wall(out=everywhere.out[ring], turn=everywhere.turn[ring])
    out, turn = wall.out, wall.turn
    muscle = np.interp(turn, WALL_AT, MUSCLE_MM * chest.muscle).astype(np.float32)
    fat = np.interp(turn, WALL_AT, FAT_MM * chest.fat).astype(np.float32)
    muscle += grain * 0.5
    skin = out - muscle - fat
    e = c.edge
    c.paint(cover(skin, e), 18.0)
    c.paint(cover(skin + 1.9, e), FAT + 3 * grain)
    strands = np.clip(1 - np.abs(grain + 0.4) * 7, 0, 1) * 0.16
    c.paint(cover(skin + 3.0, e) * strands, 0.0)
    flesh = MUSCLE + 5 * grain - 85 * np.clip((grain - 1.5) * 1.4, 0, 1)
    c.paint(cover(out - muscle, e), flesh.astype(np.float32))
    for a, b, at_a, at_b, half in PLANES:
        here = np.flatnonzero((turn > a * np.pi) & (turn < b * np.pi) & (np.abs(out - (at_a + at_b) / 2) < 8))
        s = (turn[here] / np.pi - a) / (b - a)
        width = half * (1.4 * (1 - (2 * s - 1) ** 4) - 0.4)
        sheet = np.abs(out[here] - (at_a + s * (at_b - at_a)) - grain[here] * 1.1) - width
        c.values[here] += cover(sheet, e) * 0.9 * (FAT - c.values[here])
    c.paint(cover(np.abs(out - 1.6) - 0.7, e) * 0.5, FAT)
    _paint_ribs(c, chest, wall, z)
    _paint_scapulae(c, wall, z)
    canvas.put(ring, c)
    outside = (everywhere.out > 0).astype(np.float32)
    outside[ring] = cover(-skin, e)
    return outside


def _paint_ribs(canvas: Canvas, chest: Chest, everywhere: Wall, z: float) -> None:
    """Ribs fall from back to front; a slice cuts each obliquely, cartilage joins them to the sternum."""
    near = everywhere.out < 14
    c, wall = canvas.some(near), Wall(out=everywhere.out[near], turn=everywhere.turn[near])
    s = wall.turn / np.pi
    u = np.clip((s - 0.06) / 0.76, 0, 1)
    fall = 96.0 * u * (0.82 + 0.18 * u)
    fall -= 70.0 * np.clip((s - 0.82) / 0.2, 0, 1)
    phase = chest.rib_phase + pick(c.x > 0, 1.6, 0.0)
    dz = np.mod(z + fall - phase, RIB_GAP_MM) - (RIB_GAP_MM / 2)
    thick = 4.1 - 0.7 * np.abs(s - 0.35)
    deep = wall.out - 6.2 + 1.6 * np.clip(s - 0.8, 0, 1) * 8
    rib = ellipse(dz, deep / (thick / 3.9), 6.4, 3.9)
    aside = np.clip((np.abs(c.x) - 33) / 2, 0, 1)
    e = c.edge
    bone = aside * np.clip((0.825 - s) * 40, 0, 1)
    fat = cover(rib - 1.1, e) * aside * (s < 0.82)
    c.paint(fat * 0.55, FAT)
    c.paint(cover(rib, e) * bone, 720.0)
    c.paint(cover(rib + 1.35, e * 1.3) * bone, 170.0)
    gristle = aside * np.clip((s - 0.815) * 40, 0, 1)
    c.paint(cover(rib, e) * gristle, 105.0)
    shell = cover(np.abs(rib + 0.9) - 0.5, e) * gristle
    c.paint(shell * np.clip(np.sin(dz * 2.1 + s * 60), 0, 1) * 0.5, 420.0)
    canvas.put(near, c)


def paint_sternum(c: Canvas, chest: Chest, z: float) -> None:
    """Body of the sternum, under thin fat, with its marrow."""
    y = 4.0 - chest.depth * (1.5 - 0.0008 * max(z, -20)) / 1.5 - 4.6
    half = float(np.interp(z, [-60, 0, 20, 40], [17, 15, 18, 24]))
    w = c.window(0, y, half + 6, 12)
    x, yy = c.x[w], c.y[w] - y - 0.006 * c.x[w] ** 2
    d = superellipse(x, yy, half, 6.4, 3.2)
    c.paint(cover(d - 1.4, c.edge), FAT, w)
    c.paint(cover(d, c.edge), 560.0, w)
    c.paint(cover(d + 1.5, c.edge * 1.3), 120.0, w)


def _paint_scapulae(canvas: Canvas, everywhere: Wall, z: float) -> None:
    """Blades with a thick lateral border, between the ribs and the muscles behind them."""
    near = (
        (everywhere.out > 8)
        & (everywhere.out < 36)
        & (everywhere.turn > 0.15 * np.pi)
        & (everywhere.turn < 0.5 * np.pi)
    )
    c, wall = canvas.some(near), Wall(out=everywhere.out[near], turn=everywhere.turn[near])
    s = wall.turn / np.pi
    low = float(np.interp(z, [-85, -60, 30], [0.315, 0.285, 0.235]))
    high = float(np.interp(z, [-85, -60, 30], [0.330, 0.385, 0.425]))
    mid, half = (low + high) / 2, (high - low) / 2
    u = (s - mid) / half
    along = np.maximum(np.abs(u) - 1, 0) * (half * np.pi * 115)
    border = np.clip((u - 0.45) / 0.5, 0, 1)
    thick = 1.7 + 3.1 * border**2 + 0.5 * np.clip(-u - 0.6, 0, 1)
    bow = 20.5 + 4.6 * u - 1.2 * u * u
    d = np.hypot(np.maximum(along, 0), wall.out - bow) - thick
    d = np.where(np.abs(u) < 2, d, FAR).astype(np.float32)
    c.paint(cover(d - 1.0, c.edge) * 0.4, FAT)
    c.paint(cover(d, c.edge), 760.0)
    c.paint(cover(d + 1.4, c.edge * 1.3), 210.0)
    canvas.put(near, c)


def paint_spine(c: Canvas, chest: Chest, z: float, grain: Field, fine: Field) -> None:
    """Vertebra or disc, canal with cord, arch, processes and rib heads, by the height within the segment."""
    t = np.mod(z - chest.disc_phase, RIB_GAP_MM) / RIB_GAP_MM  # 0 and 1: middle of a disc
    off = min(t, 1 - t) * RIB_GAP_MM  # mm from the middle of the disc
    body = float(np.clip((off - 1.6) / 1.6, 0, 1))
    e = c.edge
    w = c.window(0, 74, 62, 44)
    x, y = c.x[w], c.y[w]
    g = grain[w]
    waist = 1.0 - 0.07 * float(np.clip((off - 3) / 6, 0, 1))
    vertebra = smooth_min(
        ellipse(x, y - 56, 17.5 * waist, 14.5 * waist),
        ellipse(x, y - 62, 18.0 * waist, 9.5),
        6.0,
    )
    canal = ellipse(x, y - 78, 9.2, 8.0)
    vertebra = np.maximum(vertebra, -canal + 0.5)
    # The neural arch: pedicles in the upper half of the segment, laminae and the spinous process below.
    pedicle = float(np.clip(1 - abs(t - 0.70) / 0.22, 0, 1) ** 0.5)
    lamina = float(np.clip(1 - abs(t - 0.42) / 0.50, 0, 1) ** 0.5)
    arch = np.full(x.shape, FAR, dtype=np.float32)
    ax = np.abs(x)

    def bar(p: tuple[float, float], q: tuple[float, float], r0: float, r1: float) -> Field:
        dx, dy = q[0] - p[0], q[1] - p[1]
        u = np.clip(((ax - p[0]) * dx + (y - p[1]) * dy) / (dx * dx + dy * dy), 0, 1)
        d: Field = np.hypot(ax - p[0] - u * dx, y - p[1] - u * dy) - (r0 + u * (r1 - r0))
        return d.astype(np.float32)

    if pedicle > 0:
        arch = np.minimum(arch, bar((12.5, 66), (13.5, 80), 3.6 * pedicle, 3.9 * pedicle))
        arch = np.minimum(arch, bar((14, 81), (33, 88), 4.6 * pedicle, 3.6 * pedicle))
    if lamina > 0:
        arch = np.minimum(arch, bar((13.5, 80), (1.5, 89.5), 3.4 * lamina, 3.3 * lamina))
        arch = np.minimum(arch, bar((0, 89.5), (0, 92 + 14 * lamina), 3.4 * lamina, 2.6 * lamina))
    facet = bar((14, 80), (15.5, 86), 4.4, 4.0)
    arch = smooth_min(arch, facet, 2.0)
    c.paint(cover(ellipse(x, y - 74, 22, 20), e * 4) * 0.5, FAT, w)
    foramen = bar((12, 74), (24, 74), 4.5, 4.0)
    c.paint(cover(foramen, e) * (1 - pedicle), FAT, w)
    c.paint(cover(bar((17, 73.5), (22, 74), 2.4, 2.6), e) * (1 - pedicle), 30.0, w)
    disc = 88.0 + 6 * g
    marrow = 160.0 + 10 * g + 26 * fine[w]
    c.paint(cover(vertebra, e), disc.astype(np.float32), w)
    rim = 380.0
    c.paint(cover(vertebra, e) * body, rim, w)
    plate = float(np.clip(1 - abs(off - 3.4) / 1.7, 0, 1))
    c.paint(
        cover(vertebra + 1.1, e * 1.4) * (body * (1 - 0.75 * plate)),
        marrow.astype(np.float32),
        w,
    )
    c.paint(cover(arch, e), 640.0, w)
    c.paint(cover(arch + 1.5, e * 1.4), 240.0, w)
    # Rib necks come to the bodies at the height of the discs.
    near = float(np.clip(1 - off / 7.0, 0, 1))
    if near > 0:
        neck = bar((19.5, 68), (36, 87), 4.6 * near, 4.0 * near)
        c.paint(cover(neck, e), 620.0, w)
        c.paint(cover(neck + 1.4, e * 1.4), 190.0, w)
    c.paint(cover(canal, e), -35.0, w)
    c.paint(cover(canal + 1.2, e), 14.0, w)
    c.paint(cover(ellipse(x, y - 77.5, 5.0, 3.9), e), 38.0, w)


def paint_mediastinum(c: Canvas, chest: Chest, wall: Wall, z: float, grain: Field) -> None:
    """Fat, heart, great vessels, oesophagus and nodes."""
    e = c.edge
    c.values[wall.out < -3] = FAT
    w = c.window(0, 4, 140, 104)
    c.paint(cover(wall.out[w] + 0.3, e), FAT + 5 * grain[w], w)
    w = c.window(0, -8, 84, 84)
    x, y, g = c.x[w], c.y[w], grain[w]
    strands = np.clip(1 - np.abs(g) * 6, 0, 1) * 0.2
    c.paint(strands * cover(wall.out[w] + 2, e), 10.0, w)
    at = outline(HEART, z)
    if at is not None:
        cx, cy, a, b, turn = at
        sac = ellipse(x - cx, y - cy, a, b, turn)
        c.paint(cover(np.abs(sac + 1.2) - 0.45, e) * 0.7, 25.0, w)
        c.paint(cover(sac + 2.2, e), FAT, w)
        for table in CHAMBERS:
            part = outline(table, z)
            if part is not None:
                cx, cy, a, b, turn = part
                d = ellipse(x - cx, y - cy, a, b, turn) + g * 0.9
                c.paint(cover(d, e), MUSCLE - 6.0, w)
                c.paint(cover(d + 4.0, e * 3), BLOOD, w)
    at = outline(LEFT_ATRIUM, z)
    if at is not None:
        cx, cy, a, b, turn = at
        d = ellipse(x - cx, y - cy, a, b, turn) + g * 0.7
        c.paint(cover(d, e), BLOOD, w)
    for tube in (*chest.veins, *chest.arteries):
        d = tube.distance(x, y, z, 1.0) + g * 0.35
        c.paint(cover(d, e), BLOOD, w)
    d = chest.aorta.distance(x, y, z, 2.0) + g * 0.25
    c.paint(cover(d - 0.9, e) * 0.7, FAT, w)
    c.paint(cover(d, e), 50.0, w)
    c.paint(cover(d + 1.6, e), BLOOD, w)
    if chest.calcified:
        plaque = np.abs(d + 0.8) - 0.8
        place = np.clip((np.cos(np.arctan2(y - 20, x - 30) * 5 + z * 0.45) - 0.95) * 25, 0, 1) * (y > 12)
        c.paint(cover(plaque, e) * place.astype(np.float32), 480.0, w)
    d = chest.oesophagus.distance(x, y * 1.25 - 7.7, z, 1.0) + g * 0.5
    c.paint(cover(d, e), 38.0, w)
    c.paint(cover(d + 5.6, e), -420.0, w)
    for i, (nx, ny, nz, r) in enumerate(NODES):
        rz = r * r - (z - nz) ** 2
        if rz > 0.3:
            c.ellipse(nx, ny, 1.5 * rz**0.5, rz**0.5, 44.0, angle=0.5 * i)


def paint_airways(c: Canvas, chest: Chest, z: float) -> None:
    """Trachea and main bronchi: wall and air. After the lungs, so that the hila keep their walls."""
    w = c.window(0, 14, 70, 50)
    x, y = c.x[w], c.y[w]
    wall, lumen = (np.full(x.shape, FAR, dtype=np.float32) for _ in range(2))
    for tube in chest.airways:
        d = tube.distance(x, y, z, 3.0)
        lumen = np.minimum(lumen, d)
        wall = np.minimum(wall, d - 0.9 - 0.35 * float(tube.radii.max() > 8))
    # The back of the trachea is a flat membrane.
    flat = np.maximum(lumen, y - 23.2) if z > 6 else lumen
    c.paint(cover(wall, c.edge), 30.0, w)
    c.paint(cover(flat, c.edge), -995.0, w)


def paint_table(c: Canvas, outside: Field) -> None:
    """A curved couch with thin carbon shells and foam, and the pad on which the patient lies."""
    w = c.window(0, 120, 220, 62)
    x, y, free = c.x[w], c.y[w], outside[w]
    top = 121.0 - x**2 / (2 * 540.0)
    pad = np.maximum(np.abs(y - top + 5) - 5.5, np.abs(x) - 196)
    c.paint(cover(pad, c.edge * 2) * free, -955.0, w)
    thick = 25.0 * np.clip(1 - (x / 214) ** 4, 0, 1)
    depth = y - top
    core = np.maximum(np.abs(depth - thick / 2) - thick / 2, np.abs(x) - 212)
    c.paint(cover(core, c.edge) * free, -935.0, w)
    shell = np.maximum(np.minimum(np.abs(depth), np.abs(depth - thick)) - 0.75, np.abs(x) - 212)
    c.paint(cover(shell, c.edge) * free, -190.0, w)
