"""The phantoms: one seed, the same bytes; right HU; noise of the right level, colour and distribution."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from node.trial.noise import QuantumNoise
from tests.phantoms import Phantom, ct_phantom, mr_phantom, small_ct, small_mr, write_series


@pytest.fixture(scope="module")
def chest() -> Phantom:
    return ct_phantom(3, 5, 256, spacing_mm=8.0)


@pytest.fixture(scope="module")
def brain() -> Phantom:
    return mr_phantom(3, 5, 128, sequence="T2", spacing_mm=8.0)


def value_at(p: Phantom, x: float, y: float, z: float, radius_mm: float = 2.5) -> float:
    """Mean of the truth within a small disc about a point of the patient."""
    k = round(p.towards * (z - p.origin_mm[2]) / p.spacing_mm[0])
    line = np.arange(p.truth.shape[1]) * p.spacing_mm[1]
    near = np.hypot(p.origin_mm[0] + line[None, :] - x, p.origin_mm[1] + line[:, None] - y) < radius_mm
    return float(p.truth[k][near].mean())


def stored(ds: Dataset) -> np.ndarray:
    kind = "<i2" if ds.PixelRepresentation else "<u2"
    return np.frombuffer(ds.PixelData, dtype=kind).reshape(ds.Rows, ds.Columns)


def test_same_seed_same_bytes() -> None:
    one, other = ct_phantom(5, 2, 64), ct_phantom(5, 2, 64)
    assert one.noisy.tobytes() == other.noisy.tobytes()
    assert one.truth.dtype == one.noisy.dtype == np.float32
    assert ct_phantom(6, 2, 64).truth.tobytes() != one.truth.tobytes()
    one, other = mr_phantom(5, 2, 64), mr_phantom(5, 2, 64)
    assert one.noisy.tobytes() == other.noisy.tobytes()
    assert mr_phantom(6, 2, 64).truth.tobytes() != one.truth.tobytes()


@pytest.mark.parametrize("make", [small_ct, small_mr])
def test_salt_changes_uids_and_nothing_else(make) -> None:
    one, other = make(2, 3, salt="monday"), make(2, 3, salt="tuesday")
    uids = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
    for a, b in zip(one, other, strict=True):
        assert a.PixelData == b.PixelData
        for keyword in uids:
            assert a[keyword].value != b[keyword].value
            del a[keyword], b[keyword]
        assert a == b


def test_other_pixels_never_go_under_an_old_uid() -> None:
    variants = [
        small_ct(1), small_ct(1, noise_hu=60.0), small_ct(1, signed=False), small_ct(1, 5),
        small_mr(1), small_mr(2), small_mr(1, 6, 80), small_mr(1, sequence="T2"), small_mr(1, partial=0.7),
    ]  # fmt: skip
    uids = [str(ds.SOPInstanceUID) for series in variants for ds in series]
    assert len(set(uids)) == len(uids)
    assert len({str(series[0].SeriesInstanceUID) for series in variants}) == len(variants)


@pytest.mark.parametrize("make", [small_ct, small_mr])
def test_one_regular_series(make) -> None:
    series = make(4, 6)
    assert len({str(ds.SeriesInstanceUID) for ds in series}) == 1
    assert [int(ds.InstanceNumber) for ds in series] == [1, 2, 3, 4, 5, 6]
    z = [float(ds.ImagePositionPatient[2]) for ds in series]
    assert np.ptp(np.diff(z)) < 1e-3
    assert all(str(ds.SOPInstanceUID).startswith("2.25.") and ds.SOPInstanceUID.is_valid for ds in series)
    assert "ImagesInAcquisition" not in series[0]
    assert {int(ds.ImagesInAcquisition) for ds in make(4, 6, promise=True)} == {6}
    assert str(series[0].PatientName).startswith("Phantom^")


def test_hounsfield_units_of_known_places(chest: Phantom) -> None:
    assert value_at(chest, 2, 15.5, 18) == pytest.approx(-990, abs=15)  # trachea
    assert value_at(chest, 29, 38, -14) == pytest.approx(42, abs=6)  # descending aorta
    assert value_at(chest, -17, -30, -14) == pytest.approx(42, abs=6)  # ascending aorta
    lung = chest.truth[(chest.truth > -950) & (chest.truth < -780)]
    assert np.median(lung) == pytest.approx(-870, abs=20)
    assert chest.truth.max() > 600  # cortical bone
    assert chest.truth[:, 2, chest.truth.shape[2] // 2] == pytest.approx(-1000, abs=1)


def test_ct_noise_has_level_colour_and_direction(chest: Phantom) -> None:
    noise = chest.noisy - chest.truth
    n = noise.shape[1]
    middle = noise[:, n // 2 - 24 : n // 2 + 24, n // 2 - 24 : n // 2 + 24]
    assert middle.std() == pytest.approx(chest.notes["noise_hu"], rel=0.35)
    assert abs(float(middle.mean())) < 3.0
    corner = noise[:, 20:40, 20:40]
    assert corner.std() < 0.6 * middle.std()
    power = (np.abs(np.fft.fft2(middle - middle.mean(axis=(1, 2), keepdims=True))) ** 2).mean(axis=0)
    f = np.fft.fftfreq(48)
    radius = np.hypot(f[:, None], f[None, :])
    low, peak, high = (
        power[(radius > a) & (radius < b)].mean() for a, b in ((0.01, 0.04), (0.1, 0.18), (0.4, 0.5))
    )
    assert low < 0.6 * peak
    assert high < 0.2 * peak


def test_noise_of_long_paths_is_stronger_and_lies_along_them() -> None:
    size, pixel = 128, 3.0
    line = (np.arange(size) - (size - 1) / 2) * pixel
    inside = np.hypot(line[None, :] / 170, line[:, None] / 100) < 1
    water = np.where(inside, 0.0, -1000.0).astype(np.float32)
    model = QuantumNoise(size, pixel)
    rng = np.random.default_rng(1)
    profiles = model.strength(water)
    runs = [model.sample(rng.standard_normal((size, size), dtype=np.float32), profiles) for _ in range(8)]
    middle = np.stack(runs)[:, 44:84, 44:84]
    assert middle.std() > 2 * np.stack(runs)[:, :12, :12].std()
    power = (np.abs(np.fft.fft2(middle)) ** 2).mean(axis=0)
    f = np.fft.fftfreq(40)
    radius, steep = np.hypot(f[:, None], f[None, :]), np.arctan2(np.abs(f)[:, None], np.abs(f)[None, :])
    band = (radius > 0.06) & (radius < 0.3)
    # Streaks along x: the power lies along the frequency axis of y.
    assert power[band & (steep > 1.2)].mean() > 2 * power[band & (steep < 0.35)].mean()


def test_padding_is_kept_for_padding() -> None:
    for ds in small_ct(1, 2):
        a = stored(ds)
        outside = a == ds.PixelPaddingValue
        assert int(ds.PixelPaddingValue) == -2000
        assert outside[0, 0]
        assert not outside[48, 48]
        assert 0.18 < outside.mean() < 0.24  # a circle in a square
        assert a[~outside].min() >= 0
    for ds in small_ct(1, 2, signed=False):
        a = stored(ds)
        outside = a == 0
        assert (int(ds.BitsStored), int(ds.PixelPaddingValue)) == (12, 0)
        assert 0.18 < outside.mean() < 0.24


def test_mr_noise_is_rician(brain: Phantom) -> None:
    sigma = brain.notes["noise"]
    air = brain.noisy[:, :10, :10]
    assert air.mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.1)  # Rayleigh
    bright = brain.truth > 6 * sigma
    assert (brain.noisy - brain.truth)[bright].std() == pytest.approx(sigma, rel=0.1)
    # Zero-filling correlates it along y only.
    noise = (brain.noisy - brain.truth)[:, 30:90, 40:90]
    along = [float((noise[:, 1:] * noise[:, :-1]).mean()), float((noise[:, :, 1:] * noise[:, :, :-1]).mean())]
    assert along[0] > along[1] + 0.05 * sigma**2


def test_contrasts_differ() -> None:
    t1, t2 = (mr_phantom(3, 5, 128, sequence=s, spacing_mm=8.0) for s in ("T1", "T2"))
    ventricle, white = (12.5, 9, 22), (24, -24, 22)
    assert value_at(t1, *ventricle) < 0.4 * value_at(t1, *white)
    assert value_at(t2, *ventricle) > 2 * value_at(t2, *white)


def test_the_truth_has_the_same_geometry_and_less_noise() -> None:
    for noisy, clean in zip(small_ct(7, 3), small_ct(7, 3, noise_free=True), strict=True):
        assert noisy.SOPInstanceUID == clean.SOPInstanceUID
        assert noisy.ImagePositionPatient == clean.ImagePositionPatient
        assert noisy.PixelData != clean.PixelData


def test_written_series_reads_back(tmp_path) -> None:
    series = small_mr(1, 3)
    paths = write_series(series, tmp_path / "mr")
    assert [p.name for p in paths] == ["IM0001.dcm", "IM0002.dcm", "IM0003.dcm"]
    for ds, path in zip(series, paths, strict=True):
        back = dcmread(path)
        assert back.PixelData == ds.PixelData
        assert back.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
