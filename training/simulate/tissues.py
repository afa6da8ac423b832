"""Tissues of the head and their MR signal: relaxation times, label numbers, contrasts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engines.base import Floats

TISSUES = (
    "air", "wm", "gm", "csf", "thalamus", "caudate", "putamen", "pallidum", "brainstem", "cerebellar wm",
    "cerebellar gm", "white lesion", "vein", "artery", "eye", "soft", "mucosa", "muscle", "skin", "bone",
    "marrow", "fat",
)  # fmt: skip
INDEX = {name: i for i, name in enumerate(TISSUES)}
BRAIN = tuple(range(INDEX["wm"], INDEX["white lesion"] + 1))

RELAXATION: dict[str, tuple[float, float, float]] = {
    "air": (1000, 50, 0.0),
    "wm": (780, 75, 0.70),
    "gm": (1250, 95, 0.82),
    "csf": (4200, 1600, 1.00),
    "thalamus": (1080, 82, 0.77),
    "caudate": (1200, 88, 0.81),
    "putamen": (1150, 80, 0.80),
    "pallidum": (950, 62, 0.74),
    "brainstem": (900, 80, 0.73),
    "cerebellar wm": (820, 78, 0.71),
    "cerebellar gm": (1300, 96, 0.82),
    "white lesion": (1300, 140, 0.85),
    "vein": (1550, 60, 0.85),
    "artery": (1650, 150, 0.85),
    "eye": (3800, 900, 0.98),
    "soft": (1050, 45, 0.72),
    "mucosa": (1300, 110, 0.80),
    "muscle": (1050, 42, 0.72),
    "skin": (700, 40, 0.55),
    "bone": (500, 4, 0.18),
    "marrow": (400, 65, 0.60),
    "fat": (320, 75, 0.92),
}
"""T1 in ms, T2 in ms, proton density against water: between the values usual at 1.5 T and 3 T."""

_LABELS: dict[str, tuple[int, ...]] = {
    "air": (0, 517),
    "wm": (2, 41, 85, 192, 250, 251, 252, 253, 254, 255, 512, 530),
    "gm": (3, 17, 18, 19, 26, 27, 42, 53, 54, 55, 58, 59, 136, 137, 163, 164),
    "csf": (4, 5, 14, 15, 24, 31, 43, 44, 63, 72),
    "thalamus": (9, 10, 48, 49),
    "caudate": (11, 50),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "brainstem": (16, 28, 60),
    "cerebellar wm": (7, 46),
    "cerebellar gm": (8, 47),
    "white lesion": (25, 57, 77, 78, 79),
    "vein": (514,),
    "artery": (30, 62, 502),
    "eye": (506,),
    "soft": (507,),
    "muscle": (508,),
    "mucosa": (509,),
    "skin": (511,),
    "bone": (515,),
    "marrow": (516,),
}
"""Label numbers of FreeSurfer's colour table, which the public whole-head maps use."""


def lookup(highest: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Return the tissue index of each label from 0 to ``highest``; numbers not in the table are grey matter
    below 500 and soft tissue from there."""
    table = np.full(highest + 1, INDEX["gm"], dtype=np.uint8)
    table[500:] = INDEX["soft"]
    for name, numbers in _LABELS.items():
        for number in numbers:
            if number <= highest:
                table[number] = INDEX[name]
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """Signal of each tissue, in the order of TISSUES, and what the sequence is called."""

    name: str
    signal: Floats


def _relaxation(rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """Relaxation of one patient: field strength moves all T1 together, each tissue spreads by itself."""
    t1, t2, pd = (np.array(column, dtype=np.float32) for column in zip(*RELAXATION.values(), strict=True))
    n = len(TISSUES)
    t1 = t1 * np.exp(rng.normal(0.05, 0.12) + rng.normal(0, 0.05, n))
    t2 = t2 * np.exp(rng.normal(0.0, 0.08) + rng.normal(0, 0.06, n))
    return t1, t2, pd * np.exp(rng.normal(0, 0.03, n))


def _sequence(rng: np.random.Generator) -> tuple[str, Floats]:
    """Textbook signal equations (Bernstein, Handbook of MRI Pulse Sequences, 2004), times in ms."""
    t1, t2, pd = _relaxation(rng)
    kind = ("T1 spin echo", "T1 spoiled GRE", "MPRAGE", "T2 TSE", "FLAIR", "PD TSE", "T2* GRE")[
        int(rng.integers(7))
    ]
    if kind in ("T1 spin echo", "T2 TSE", "PD TSE"):
        tr, te = {
            "T1 spin echo": (rng.uniform(400, 700), rng.uniform(8, 20)),
            "T2 TSE": (rng.uniform(2800, 6500), rng.uniform(75, 125)),
            "PD TSE": (rng.uniform(2000, 4000), rng.uniform(10, 35)),
        }[kind]
        signal = pd * (1 - np.exp(-tr / t1)) * np.exp(-te / t2)
    elif kind in ("T1 spoiled GRE", "T2* GRE"):
        early = kind == "T1 spoiled GRE"
        tr, te = (
            (rng.uniform(6, 40), rng.uniform(2, 6)) if early else (rng.uniform(400, 900), rng.uniform(12, 28))
        )
        angle = np.deg2rad(rng.uniform(15, 35))
        e1 = np.exp(-tr / t1)
        signal = pd * np.sin(angle) * (1 - e1) / (1 - np.cos(angle) * e1) * np.exp(-te / (0.6 * t2))
    else:
        flair = kind == "FLAIR"
        tr = rng.uniform(8000, 10000) if flair else rng.uniform(2000, 2600)
        te = rng.uniform(90, 140) if flair else rng.uniform(2, 5)
        null = t1[INDEX["csf"]] * np.log(2 / (1 + np.exp(-tr / t1[INDEX["csf"]])))
        ti = null * rng.uniform(0.93, 1.05) if flair else rng.uniform(950, 1200)
        signal = pd * np.abs(1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1)) * np.exp(-te / t2)
    spin_echo = kind in ("T1 spin echo", "T2 TSE", "FLAIR", "PD TSE")
    signal[INDEX["artery"]] *= rng.uniform(0.03, 0.3) if spin_echo else rng.uniform(1.0, 2.5)
    signal[INDEX["vein"]] *= rng.uniform(0.1, 0.8) if spin_echo else rng.uniform(0.8, 1.5)
    if rng.random() < 0.3:
        signal[[INDEX["fat"], INDEX["marrow"]]] *= rng.uniform(0.05, 0.25)
    return kind, np.asarray(signal, dtype=np.float32)


def draw_contrast(rng: np.random.Generator) -> Contrast:
    """Draw a contrast: by the equations of a sequence, or (half of them) a random grey value per tissue.

    Random contrasts after Billot et al., SynthSeg, Medical Image Analysis 86 (2023) 102789.
    """
    if rng.random() < 0.5:
        name, signal = _sequence(rng)
    else:
        name, signal = "random", rng.uniform(0.05, 1.0, len(TISSUES)).astype(np.float32)
        if rng.random() < 0.6:
            signal[INDEX["bone"]] = rng.uniform(0.01, 0.15)
    signal[INDEX["air"]] = 0
    # Fat of some sequences is several times as bright as the brain; coils and windows make up for that.
    brain = float(signal[list(BRAIN)].max())
    signal = np.where(signal > 1.3 * brain, 1.3 * brain + 0.25 * (signal - 1.3 * brain), signal)
    return Contrast(name=name, signal=np.asarray(signal / brain, dtype=np.float32))
