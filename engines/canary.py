"""A question whose answer is known: what an engine is asked before it serves its first series.

Three slices that were made once (``canaries/ct.npz``, ``mr.npz``), and for each engine what its reference runtime
made of the middle one. A process whose device, driver, library or memory is broken in a way that raises no error
answers wrongly, and is found out before a patient's image is. An engine without a kept answer (a site's own) is
compared with its reference runtime at once, and where it runs on that, with itself.

``python -m engines.canary`` asks every shipped engine, keeps the answers, and seals the cards (engines/card.py); a
new engine or a new version of one needs it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from engines.base import Card, Engine, Enhancement, Floats, Params, Volume
from engines.errors import CanaryRefused, DeviceLost, EngineError, OutOfMemory

FOLDER = Path(__file__).resolve().parent / "canaries"
SHAPE = (3, 128, 128)
STRENGTH = 1.0

MOST = {"HU": 0.5, "arbitrary": 0.0005}
"""Largest difference of a voxel, in HU or as a fraction of the canary's own scale."""
RMS = {"HU": 0.1, "arbitrary": 0.0001}

_STEP = 1 / 32
"""Of kept answers, in HU; MR values of the canary are of the order of a thousand and kept as finely."""

_RIM = 32
"""Pixels at each border of the question that are not compared: what is kept stays small."""


_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
"""What comes of reading a file of arrays that is not there, cut off or damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an engine made of the canary.

    Attributes
    ----------
    runtime, device
        What it ran on.
    seconds
        How long one slice took, the second time: the first call has costs of its own.
    largest, rms
        Difference from what was expected, HU or as a fraction of the canary's scale.
    against
        What it was compared with: ``kept``, ``reference`` or ``itself``.
    """

    runtime: str
    device: str
    seconds: float
    largest: float
    rms: float
    against: str


@lru_cache(maxsize=2)
def question(modality: str) -> Volume:
    """The canary of a modality, CT or MR.

    Raises
    ------
    CanaryRefused
        It cannot be read.
    """
    path = FOLDER / f"{modality.lower()}.npz"
    try:
        with np.load(path, allow_pickle=False) as kept:
            values = kept["values"].astype(np.float32)
    except _DAMAGED as e:
        raise CanaryRefused(f"the canary {path.name} cannot be read", hint="install the release again") from e
    if values.shape != SHAPE:
        raise CanaryRefused(f"the canary {path.name} is another one", hint="install the release again")
    return Volume(
        values=values,
        spacing_mm=(1.0, 0.8, 0.8),
        unit="HU" if modality == "CT" else "arbitrary",
        valid=np.ones(SHAPE, np.bool_),
        contiguous=np.ones(SHAPE[0], np.bool_),
        step=np.ones(SHAPE[0], np.float32),
    )


def prove(engine: Engine, reference: Callable[[], Engine] | None = None) -> Answer:
    """Ask an engine, and compare its answer.

    Parameters
    ----------
    reference
        Loads the same engine on its reference runtime; asked only where no answer is kept. None where this engine
        is the reference.

    Raises
    ------
    CanaryRefused
        The answer is wrong, or there is none.
    DeviceLost
        The device is in an unknown state.
    """
    card = engine.card
    got = _asked(engine)
    began = time.perf_counter()
    again = _asked(engine)
    seconds = time.perf_counter() - began
    expected, against = kept(card), "kept"
    if expected is None and reference is not None:
        expected, against = _inner(_asked(reference()), card), "reference"
    if expected is None:
        expected, against = _inner(again, card), "itself"
    largest, rms = _apart(_inner(got, card), expected, card)
    if not (largest <= MOST[card.unit] and rms <= RMS[card.unit]):  # NaN is no answer either
        unit = "HU" if card.unit == "HU" else "of the scale"
        raise CanaryRefused(
            f"{card.name} on {got.runtime} ({got.device}) answers a question of known answer wrongly: "
            f"off by {largest:.3g} {unit}, at most {MOST[card.unit]:g} is allowed",
            hint="run `python -m engines verify`; where a GPU is named, see docs/operations/troubleshooting.md",
        )
    return Answer(
        runtime=got.runtime,
        device=got.device,
        seconds=seconds,
        largest=largest,
        rms=rms,
        against=against,
    )


def _asked(engine: Engine) -> Enhancement:
    card = engine.card
    given = question(card.modalities[0])
    try:
        got = engine.enhance(given, Params(strength=STRENGTH), keep=slice(1, 2))
    except (DeviceLost, OutOfMemory):
        raise
    except EngineError as e:
        raise CanaryRefused(f"{card.name} does not answer: {e.message}", hint=e.hint) from e
    rows, columns = (card.scale * n for n in SHAPE[1:])
    if got.volume.values.shape != (1, rows, columns):
        raise CanaryRefused(f"{card.name} answers with another shape than it was asked for")
    return got


def _inner(got: Enhancement, card: Card) -> Floats:
    rim = card.scale * _RIM
    inner: Floats = got.volume.values[0, rim:-rim, rim:-rim]
    return inner


def _apart(got: Floats, expected: Floats, card: Card) -> tuple[float, float]:
    scale = 1.0
    if card.unit == "arbitrary":
        scale = float(np.percentile(question(card.modalities[0]).values, 99))
    difference = (got.astype(np.float64) - expected) / scale
    return float(np.abs(difference).max()), float(np.sqrt(np.mean(difference * difference)))


def _key(card: Card) -> str:
    """Digest of all in a card that the answer depends on."""
    told = (
        card.name, card.version, card.family, card.weights_sha256, card.bound, card.bound_sigmas, card.sigma_range,
        card.neighbours, card.scale, dict(card.parameters),
    )  # fmt: skip
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def kept(card: Card) -> Floats | None:
    """The answer that is kept for this engine as its card says it is; None if there is none."""
    path = FOLDER / f"{card.name}.npz"
    try:
        with np.load(path, allow_pickle=False) as found:
            if str(found["key"]) != _key(card):
                return None
            values: Floats = found["values"].astype(np.float32) * np.float32(_STEP)
            return values
    except _DAMAGED:
        return None


def keep(engine: Engine) -> Path:
    """Ask an engine on its reference runtime and keep its answer; returns the file."""
    card = engine.card
    values = np.rint(_inner(_asked(engine), card) / _STEP).astype(np.int32)
    path = FOLDER / f"{card.name}.npz"
    np.savez_compressed(path, values=values, key=_key(card))
    return path


def make_questions() -> None:
    """Make the canaries anew. All kept answers are void afterwards."""
    from engines.classical import phantoms

    FOLDER.mkdir(exist_ok=True)
    made = {
        "ct": phantoms.ct(5, shape=SHAPE, kind="abdomen", sigma=20.0).noisy,
        "mr": phantoms.mr(5, shape=SHAPE).noisy,
    }
    for name, noisy in made.items():
        values = np.rint(np.clip(noisy, -1024, 4095)).astype(np.int16)
        np.savez_compressed(FOLDER / f"{name}.npz", values=values)


def main() -> int:
    """Keep the answers of all shipped engines, and seal their cards."""
    from engines.card import SEAL, content
    from engines.catalog import ZOO, Catalog

    folders = sorted(p.parent for p in ZOO.glob("*/card.yaml"))
    told = {folder.name: hashlib.sha256(content(folder)).hexdigest() for folder in folders}
    (ZOO / SEAL).write_text(json.dumps(told, indent=1) + "\n")
    catalog = Catalog.default()
    if not (FOLDER / "ct.npz").exists():
        make_questions()
    for name in catalog.names():
        keep(catalog.load(name, avoid=catalog.accelerated()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
