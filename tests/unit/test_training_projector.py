"""Projector and filtered back projection against analytic sinograms of ellipses."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch.nn.functional import max_pool2d  # noqa: E402

from training.errors import DataError  # noqa: E402
from training.simulate.projector import (  # noqa: E402
    Geometry,
    gaussian,
    project,
    ramp,
    reconstruct,
    tabulated,
)

# x, y, half axes (mm), turn (rad), per mm: a body of water, a bone, a lung and a small dense insert.
ELLIPSES = (
    (0.0, 0.0, 150.0, 110.0, 0.0, 0.02),
    (40.0, 20.0, 30.0, 20.0, 0.5, 0.004),
    (-60.0, -30.0, 12.0, 25.0, 1.0, -0.015),
    (10.0, -70.0, 6.0, 6.0, 0.0, 0.02),
)
SIZE, PIXEL = 256, 1.4

PARALLEL = Geometry(n_views=360, n_detectors=513, detector_mm=1.0, offset=0.25)
ARC = Geometry(
    kind="equiangular",
    n_views=600,
    n_detectors=513,
    detector_mm=1.8,
    source_to_isocentre_mm=570,
    source_to_detector_mm=1040,
    offset=0.25,
    first_angle=0.3,
)
FLAT = Geometry(
    kind="flat",
    n_views=600,
    n_detectors=513,
    detector_mm=1.8,
    source_to_isocentre_mm=570,
    source_to_detector_mm=1040,
)
EVERY = pytest.mark.parametrize("geometry", [PARALLEL, ARC, FLAT], ids=lambda g: g.kind)


def picture(fine: int = 4):
    """Ellipses on the pixel grid, each pixel the mean over fine x fine points."""
    c = (torch.arange(SIZE * fine) - (SIZE * fine - 1) / 2) * PIXEL / fine
    x, y = c[None], c[:, None]
    image = torch.zeros(SIZE * fine, SIZE * fine)
    for cx, cy, a, b, turn, value in ELLIPSES:
        u = (x - cx) * math.cos(turn) + (y - cy) * math.sin(turn)
        v = (y - cy) * math.cos(turn) - (x - cx) * math.sin(turn)
        image += value * ((u / a) ** 2 + (v / b) ** 2 <= 1)
    return image.view(SIZE, fine, SIZE, fine).mean((1, 3))


def rays(geometry: Geometry):
    """(views, detectors): angle and distance of the normal of each ray, from the geometry's words alone."""
    where = (
        torch.arange(geometry.n_detectors) - (geometry.n_detectors - 1) / 2 + geometry.offset
    ) * geometry.detector_mm
    view = torch.arange(geometry.n_views)[:, None] / geometry.n_views
    if geometry.kind == "parallel":
        return view * math.pi + geometry.first_angle + 0 * where, where[None] + 0 * view
    gamma = where / geometry.source_to_detector_mm
    if geometry.kind == "flat":
        gamma = torch.atan(gamma)
    turn = view * 2 * math.pi + geometry.first_angle + gamma
    return turn, geometry.source_to_isocentre_mm * torch.sin(gamma)[None] + 0 * view


def analytic(geometry: Geometry):
    """Line integrals of the ellipses (Kak & Slaney, section 3.1)."""
    theta, t = rays(geometry)
    total = torch.zeros_like(t)
    for cx, cy, a, b, turn, value in ELLIPSES:
        shifted = t - cx * torch.cos(theta) - cy * torch.sin(theta)
        wide = (a * torch.cos(theta - turn)) ** 2 + (b * torch.sin(theta - turn)) ** 2
        total += value * 2 * a * b * torch.sqrt((wide - shifted**2).clamp(min=0)) / wide
    return total[None]


def flat_places(image):
    """Pixels whose surroundings (6 mm) are all the same."""
    high, low = max_pool2d(image[None, None], 9, 1, 4), -max_pool2d(-image[None, None], 9, 1, 4)
    return (high - low)[0, 0] < 1e-7


@EVERY
def test_projections_are_line_integrals(geometry):
    exact = analytic(geometry)
    found = project(picture()[None], geometry, PIXEL)
    assert float((found - exact).norm() / exact.norm()) < 0.005
    assert float(found.sum() / exact.sum()) == pytest.approx(1, abs=5e-4)


@EVERY
def test_reconstructions_of_analytic_projections_are_right_within_a_thousandth(geometry):
    image = picture()
    found = reconstruct(analytic(geometry), geometry, (SIZE, SIZE), PIXEL, window=gaussian(0.3))[0]
    flat = flat_places(image)
    for value in (0.02, 0.024, 0.005):
        where = flat & ((image - value).abs() < 1e-6)
        assert int(where.sum()) > 50
        assert float(found[where].mean()) == pytest.approx(value, abs=0.02 * 0.003)
    inside = flat & ((image - 0.02).abs() < 1e-6)
    assert float((found - image)[inside].std()) < 0.02 * 0.005
    assert abs(float(found[flat & (image == 0)].mean())) < 0.02 * 0.002


@EVERY
def test_round_trip(geometry):
    image = picture()
    found = reconstruct(project(image[None], geometry, PIXEL), geometry, (SIZE, SIZE), PIXEL)[0]
    flat = flat_places(image) & (image > 0.001)
    assert float(found[flat].sum() / image[flat].sum()) == pytest.approx(1, abs=0.003)


def test_a_point_comes_back_where_it_was():
    image = torch.zeros(1, 64, 96)
    image[0, 12, 71] = 1.0
    for kind in ("parallel", "equiangular", "flat"):
        geometry = Geometry(
            kind=kind,
            n_views=180,
            n_detectors=161,
            detector_mm=1.5 if kind != "parallel" else 0.75,
            source_to_isocentre_mm=300,
            source_to_detector_mm=600,
        )
        found = reconstruct(project(image, geometry, 1.0), geometry, (64, 96), 1.0)[0]
        assert divmod(int(found.argmax()), 96) == (12, 71)


def test_offset_of_a_slice_has_no_bias():
    # abs(f), sampled, would lose the mean: a wide disc would come out too low.
    exact = Geometry(n_views=180, n_detectors=257, detector_mm=1.0)
    chord = 2 * torch.sqrt((110.0**2 - exact.positions() ** 2).clamp(min=0))
    found = reconstruct(chord.expand(1, 180, -1), exact, (64, 64), 1.0)
    assert float(found.mean()) == pytest.approx(1, abs=0.002)


def test_window_is_the_gain_of_the_frequencies():
    geometry = Geometry(n_views=4, n_detectors=256, detector_mm=1.0)
    rows = torch.randn(1, 4, 256, generator=torch.Generator().manual_seed(1))
    half = reconstruct(rows, geometry, (32, 32), 1.0, window=tabulated([0.0, 1.0], [0.5, 0.5]))
    torch.testing.assert_close(half, 0.5 * reconstruct(rows, geometry, (32, 32), 1.0))
    window = tabulated([0.0, 0.2, 0.4], [1.0, 0.5, 0.1])
    found = window(torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.9]))
    torch.testing.assert_close(found, torch.tensor([1, 0.75, 0.5, 0.3, 0.1, 0.1], dtype=torch.float64))


def test_ramp_sums_to_nearly_nothing():
    taps = ramp(4096, 1.0)
    assert float(taps[0]) == 0.25
    assert 0 < float(taps.sum()) < 2e-4


@given(
    a=st.floats(-3, 3),
    b=st.floats(-3, 3),
    seed=st.integers(0, 99),
    kind=st.sampled_from(["parallel", "flat"]),
)
def test_both_ways_are_linear(a, b, seed, kind):
    geometry = Geometry(
        kind=kind,
        n_views=12,
        n_detectors=25,
        detector_mm=1.0,
        source_to_isocentre_mm=50,
        source_to_detector_mm=50,
    )
    u, v = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    p, q = project(u, geometry, 1.0), project(v, geometry, 1.0)
    torch.testing.assert_close(project(a * u + b * v, geometry, 1.0), a * p + b * q, atol=2e-4, rtol=1e-4)
    found = reconstruct(a * p + b * q, geometry, (16, 16), 1.0)
    alone = [reconstruct(s, geometry, (16, 16), 1.0) for s in (p, q)]
    torch.testing.assert_close(found, a * alone[0] + b * alone[1], atol=2e-4, rtol=1e-4)


def test_slices_of_a_batch_do_not_meet():
    geometry = Geometry(n_views=12, n_detectors=25, detector_mm=1.0)
    images = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(2))
    together = reconstruct(project(images, geometry, 1.0), geometry, (16, 16), 1.0)
    alone = reconstruct(project(images[1:2], geometry, 1.0), geometry, (16, 16), 1.0)
    torch.testing.assert_close(together[1:2], alone)


def test_what_cannot_be_is_refused():
    with pytest.raises(DataError, match="fan beam"):
        Geometry(kind="flat", n_views=10, n_detectors=10, detector_mm=1.0)
    with pytest.raises(DataError, match="no scan"):
        Geometry(n_views=0, n_detectors=10, detector_mm=1.0)
    geometry = Geometry(n_views=10, n_detectors=10, detector_mm=1.0)
    with pytest.raises(DataError, match="sinogram"):
        reconstruct(torch.zeros(1, 10, 11), geometry, (8, 8), 1.0)
