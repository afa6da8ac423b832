"""Painted heads and abstract phantoms: scaled, smooth at edges, neighbours alike, every draw another picture."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.dicom_samples import corpus
from training.errors import DataError
from training.simulate.abstract import KINDS, phantom
from training.simulate.details import add_lesions
from training.simulate.fields import scaled, textures
from training.simulate.heads import MATRICES, ORIENTATIONS, paint, read_labels
from training.simulate.tissues import BRAIN, INDEX, TISSUES, draw_contrast, lookup

VOXEL = (2.0, 2.0, 2.0)


@cache
def head() -> np.ndarray:
    """Nested ellipsoids of 2 mm: scalp, fat, bone, fluid, cortex, white matter with folds, ventricle."""
    z, y, x = (np.arange(n, dtype=np.float32) - n / 2 + 0.5 for n in (96, 112, 96))
    r = np.sqrt((z[:, None, None] / 40) ** 2 + (y[None, :, None] / 50) ** 2 + (x[None, None, :] / 40) ** 2)
    folds = 0.03 * np.sin(z[:, None, None]) * np.sin(y[None, :, None]) * np.sin(x[None, None, :])
    labels = np.zeros(r.shape, dtype=np.int16)
    for radius, label in ((1.0, 511), (0.96, 507), (0.9, 515), (0.83, 24), (0.79, 3)):
        labels[r < radius] = label
    labels[r + folds < 0.68] = 2
    labels[r < 0.15] = 4
    return labels


@pytest.mark.parametrize("seed", range(6))
def test_a_painted_stack_is_scaled_and_finite(seed: int) -> None:
    painted = paint(head(), VOXEL, np.random.default_rng(seed), matrix=192)
    values = painted.values
    assert values.shape == (3, 192, 192)
    assert values.dtype == np.float32
    assert values.min() >= 0
    assert np.isfinite(values).all()
    assert float(np.quantile(values[values > 0], 0.99)) == pytest.approx(1.0, rel=0.01)
    assert painted.contrast.split()[0] in ORIENTATIONS
    assert 0.8 <= painted.spacing_mm[0] <= 6.0
    assert 0.4 <= painted.spacing_mm[1] == painted.spacing_mm[2] <= 1.2


def test_same_seed_same_picture_and_other_seed_another() -> None:
    one, same, other = (paint(head(), VOXEL, np.random.default_rng(s), matrix=192).values for s in (1, 1, 2))
    assert np.array_equal(one, same)
    assert float(np.corrcoef(one[1].ravel(), other[1].ravel())[0, 1]) < 0.95


def test_matrix_and_number_of_slices_are_as_asked_or_drawn() -> None:
    assert paint(head(), VOXEL, np.random.default_rng(0), n_slices=1, matrix=96).values.shape == (1, 96, 96)
    assert paint(head(), VOXEL, np.random.default_rng(0)).values.shape[1] in MATRICES


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_neighbour_slices_belong_together(orientation: str) -> None:
    values = paint(head(), VOXEL, np.random.default_rng(7), matrix=192, orientation=orientation).values
    assert float(np.corrcoef(values[0].ravel(), values[1].ravel())[0, 1]) > 0.7
    assert not np.array_equal(values[0], values[1])


def test_air_is_dark_and_the_head_is_not() -> None:
    seen = []
    for seed in range(8):
        values = paint(head(), VOXEL, np.random.default_rng(seed), matrix=192, orientation="axial").values
        if not values[1, :3].any():
            seen.append(float(values[1, 60:130, 60:130].mean()))
    assert len(seen) >= 2
    assert min(seen) > 0.05


def test_edges_are_no_staircase() -> None:
    """A 2 mm map painted at 0.6 mm: along a smooth contour, values change in small steps."""
    values = paint(head(), VOXEL, np.random.default_rng(3), matrix=288, orientation="axial").values[1]
    steps = np.abs(np.diff(values, axis=1))
    assert float((steps > 0.6).mean()) < 1e-3
    head_only = values[:, 1:] > 0.05
    assert float((steps[head_only] > 1e-4).mean()) > 0.95


def test_lesions_stay_in_the_brain_and_within_half_of_its_signal() -> None:
    values = np.ones((3, 128, 128), dtype=np.float32)
    brain = np.zeros_like(values)
    brain[:, 30:100, 30:100] = 1
    field = textures((3, 128, 128), (3.0, 0.7, 0.7), np.random.default_rng(0), 2)[1]
    changed = 0
    for seed in range(12):
        out = add_lesions(values, brain, field, (3.0, 0.7, 0.7), np.random.default_rng(seed))
        assert np.array_equal(out[brain == 0], values[brain == 0])
        changed += int((np.abs(out - 1) > 0.05).any())
        assert out.max() < 1.5 + 25 * 0.5
    assert changed >= 5


def test_textures_have_unit_spread_and_grow_coarse() -> None:
    fields = textures((3, 128, 128), (1.0, 0.8, 0.8), np.random.default_rng(0), 5)
    assert fields.shape == (5, 3, 128, 128)
    assert np.allclose(fields.std(axis=(1, 2, 3)), 1, atol=1e-3)
    alike = [float(np.corrcoef(f[0, :, 1:].ravel(), f[0, :, :-1].ravel())[0, 1]) for f in fields]
    assert alike[-1] > max(alike[0], 0.95)


def test_scaled_is_at_one_and_keeps_nothing_negative() -> None:
    assert not scaled(np.full((1, 4, 4), -1.0, dtype=np.float32)).any()
    values = scaled(np.linspace(0, 50, 4096, dtype=np.float32).reshape(1, 64, 64))
    assert float(np.quantile(values[values > 0], 0.99)) == pytest.approx(1.0, rel=1e-3)


def test_contrasts_are_physics_or_random() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_contrast(rng) for _ in range(300)]
    names = {c.name for c in drawn}
    assert names == {
        "random",
        "T1 spin echo",
        "T1 spoiled GRE",
        "MPRAGE",
        "T2 TSE",
        "FLAIR",
        "PD TSE",
        "T2* GRE",
    }
    wm, gm, csf, air = (INDEX[t] for t in ("wm", "gm", "csf", "air"))
    for c in drawn:
        assert c.signal.shape == (len(TISSUES),)
        assert c.signal.min() >= 0
        assert c.signal[air] == 0
        assert float(c.signal[list(BRAIN)].max()) == pytest.approx(1)
        if c.name == "MPRAGE":
            assert c.signal[wm] > c.signal[gm] > c.signal[csf]
        if c.name == "T2 TSE":
            assert c.signal[csf] > c.signal[gm] > c.signal[wm]
        if c.name == "FLAIR":
            assert c.signal[csf] < 0.6 * c.signal[gm]
    assert 0.35 < np.mean([c.name == "random" for c in drawn]) < 0.65


def test_labels_without_a_name_are_tissue() -> None:
    table = lookup(1023)
    assert table[0] == INDEX["air"]
    assert table[2] == table[41] == INDEX["wm"]
    assert table[499] == INDEX["gm"]
    assert table[999] == INDEX["soft"]


def test_maps_without_a_brain_are_refused() -> None:
    with pytest.raises(DataError, match="no brain"):
        paint(np.full((30, 30, 30), 511, dtype=np.int16), VOXEL, np.random.default_rng(0), matrix=64)
    with pytest.raises(DataError, match="3 axes"):
        paint(np.zeros((30, 30), dtype=np.int16), VOXEL, np.random.default_rng(0), matrix=64)


def test_negative_labels_are_refused() -> None:
    with pytest.raises(DataError, match="from 0"):
        paint(head() - 1, VOXEL, np.random.default_rng(0), matrix=64)


def test_label_maps_are_read_head_up_and_face_first(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    stored = np.zeros((4, 5, 6), dtype=np.int16)
    stored[3, 4, 5] = 17
    path = tmp_path / "map.nii.gz"
    nibabel.save(nibabel.Nifti1Image(stored, np.diag([1.0, 2.0, 3.0, 1.0])), path)
    labels, voxel = read_labels(path)
    assert labels.shape == (6, 5, 4)
    assert voxel == (3.0, 2.0, 1.0)
    assert labels[5, 0, 0] == 17
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be read"):
        read_labels(tmp_path / "broken.nii.gz")


@pytest.mark.parametrize("kind", KINDS)
def test_phantoms_are_scaled_and_their_slices_belong_together(kind: str) -> None:
    drawn = [phantom(np.random.default_rng(seed), matrix=192, kind=kind) for seed in (0, 0, 1)]
    values = drawn[0].values
    assert drawn[0].contrast == f"phantom {kind}"
    assert values.shape == (3, 192, 192)
    assert values.dtype == np.float32
    assert values.min() >= 0
    assert float(np.quantile(values[values > 0], 0.99)) == pytest.approx(1.0, rel=0.01)
    assert float(np.corrcoef(values[0].ravel(), values[1].ravel())[0, 1]) > 0.5
    assert np.array_equal(values, drawn[1].values)
    assert not np.array_equal(values, drawn[2].values)
    assert len(np.unique(np.round(values[1], 2))) > 20


def test_phantoms_hold_edges_of_many_contrasts() -> None:
    values = phantom(np.random.default_rng(4), matrix=256, kind="leaves").values[1]
    steps = np.abs(np.diff(values, axis=0))
    for low, high in ((0.02, 0.05), (0.05, 0.1), (0.1, 0.2), (0.2, 0.5)):
        assert int(((steps > low) & (steps <= high)).sum()) > 100


@pytest.mark.parametrize("seed", range(3))
def test_truth_is_smoother_than_noise(seed: int) -> None:
    """What alternates from pixel to pixel is noise; a truth that has it would teach to keep noise."""
    for values in (
        paint(head(), VOXEL, np.random.default_rng(seed), matrix=192).values,
        phantom(np.random.default_rng(seed), matrix=192).values,
    ):
        finest = (
            values[:, :-1:2, :-1:2] - values[:, 1::2, :-1:2] - values[:, :-1:2, 1::2] + values[:, 1::2, 1::2]
        )
        flat = np.abs(finest[values[:, :-1:2, :-1:2] > 0.1])
        assert float(np.quantile(flat, 0.25)) < 0.004


@pytest.mark.corpus
def test_a_real_label_map_is_painted() -> None:
    pytest.importorskip("nibabel")
    folder = corpus("training", "label_maps")
    labels, voxel = read_labels(sorted(folder.glob("*.nii.gz"))[0])
    painted = paint(labels, voxel, np.random.default_rng(0), orientation="axial", matrix=256)
    assert painted.values.shape == (3, 256, 256)
    assert len(np.unique(np.round(painted.values[1], 2))) > 50
