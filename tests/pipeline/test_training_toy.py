"""Training is really run: from nothing to a denoiser that the node can load, on a drawn anatomy, in a minute.

It is judged on phantoms of another generator than the one it learned from, through the engine's front door,
guards and all.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from engines.base import Params, Volume  # noqa: E402
from engines.catalog import Catalog  # noqa: E402
from engines.classical import phantoms  # noqa: E402
from tests.training_samples import shards  # noqa: E402
from training import fit  # noqa: E402
from training.__main__ import main  # noqa: E402
from training.export import export, write_card  # noqa: E402
from training.recipe import load  # noqa: E402

META = ("recipe", "recipe_sha256", "split_sha256", "trained_on", "licence", "checkpoint_sha256")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine ``ct-toy``, trained by the command that a person would use."""
    root = tmp_path_factory.mktemp("toy")
    shards(root / "data", n=24, matrix=192)
    told = ["--data", str(root / "data"), "--runs", str(root / "runs"), "--threads", "1"]
    assert main([*told, "fit", "toy", "--quiet"]) == 0
    recipe = load("toy")
    network = fit.finished(root / "runs" / "toy" / fit.BEST, recipe)
    done = export(
        network,
        root / "zoo" / "ct-toy",
        name="ct-toy",
        meta=dict.fromkeys(META, "toy"),
        unit="HU",
        sigma_range=(5.0, 100.0),
    )
    write_card(
        done,
        version="1.0.0",
        title="Toy",
        family="cnn",
        modalities=["CT"],
        bound=200.0,
        trained_on="drawn anatomy",
        evaluated="in this test",
        intended_use="this test",
        licence="Apache-2.0",
        lock=16,
    )
    return root / "zoo"


def volume(made: phantoms.Phantom) -> Volume:
    n = len(made.noisy)
    return Volume(
        values=made.noisy,
        spacing_mm=(1.0, 0.7, 0.7),
        unit="HU",
        valid=np.ones(made.noisy.shape, np.bool_),
        contiguous=np.ones(n, np.bool_),
        step=np.ones(n, np.float32),
    )


@pytest.mark.slow
def test_it_beats_its_input_by_six_decibels(zoo: Path) -> None:
    engine = Catalog.default([zoo]).load("ct-toy", threads=1)
    gains = []
    for kind in ("chest", "abdomen", "head"):
        made = phantoms.ct(404, kind=kind, sigma=35.0, cutoff=0.33, shape=(3, 256, 256))
        out = engine.enhance(volume(made), Params(strength=1.0)).volume.values
        body = made.truth > -950
        before, after = (np.square((v - made.truth)[body]).mean() for v in (made.noisy, out))
        gains.append(10 * np.log10(before / after))
    assert np.mean(gains) > 6, gains
    assert min(gains) > 3, gains
