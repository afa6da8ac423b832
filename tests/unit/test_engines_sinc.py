"""Zero filling: exact for what k-space holds, quiet at borders; detail keeps to where no sample was taken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.sinc import complement, doubled, repeated

SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 70))


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 1000))
def test_every_second_sample_has_its_bits(shape: tuple[int, int], seed: int) -> None:
    values = np.random.default_rng(seed).normal(0, 900, shape).astype(np.float32)
    made = doubled(values)
    assert (made.shape, made.dtype) == ((2 * shape[0], 2 * shape[1]), np.float32)
    assert np.ascontiguousarray(made[::2, ::2]).tobytes() == values.tobytes()
    assert np.isfinite(made).all()


def waves(scale: int, n: int = 96) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """A few waves below the Nyquist frequency of the coarse grid, sampled ``scale`` times as densely."""
    y, x = np.meshgrid(np.arange(n * scale) / scale, np.arange(n * scale) / scale, indexing="ij")
    return np.asarray(
        100 * np.cos(0.9 * y + 0.3) + 70 * np.sin(1.7 * x) + 50 * np.cos(2.2 * x - 1.3 * y) + 40
    )


def test_what_is_below_the_nyquist_frequency_is_found_between_the_samples() -> None:
    made, truth = doubled(waves(1).astype(np.float32)), waves(2)
    inner = (slice(40, -40), slice(40, -40))
    assert np.abs(made - truth)[inner].max() < 1.5
    linear = np.repeat(np.repeat(waves(1), 2, 0), 2, 1)
    assert np.abs(linear - truth)[inner].max() > 50


def test_a_slope_does_not_ring_from_its_border() -> None:
    """Left and right border differ by 2000: without the mirror every pixel near them would swing by dozens."""
    slope = np.tile(np.linspace(-1000, 1000, 128, dtype=np.float32), (32, 1))
    made = doubled(slope)
    wanted = np.interp(np.arange(256) / 2, np.arange(128), slope[0])
    assert np.abs(made - wanted)[:, 2:-2].max() < 1
    assert np.abs(made - wanted)[:, :-1].max() < 4


def test_a_constant_stays_one() -> None:
    assert np.abs(doubled(np.full((33, 20), -1000, np.float32)) + 1000).max() < 1e-3


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 1000))
def test_complement_takes_the_acquired_frequencies_out_and_only_these(
    shape: tuple[int, int], seed: int
) -> None:
    n_rows, n_columns = 2 * shape[0], 2 * shape[1]
    detail = np.random.default_rng(seed).normal(0, 50, (n_rows, n_columns)).astype(np.float32)
    made = complement(detail)
    before, after = np.fft.fft2(detail.astype(np.float64)), np.fft.fft2(made.astype(np.float64))
    ky, kx = (np.abs(np.fft.fftfreq(n) * n).round() for n in (n_rows, n_columns))
    acquired = (ky[:, None] <= shape[0] // 2) & (kx[None, :] <= shape[1] // 2)
    room = 1e-4 * np.sqrt(n_rows * n_columns) * 50
    assert np.abs(after[acquired]).max() < room
    assert np.abs((after - before)[~acquired]).max(initial=0.0) < room
    assert np.abs(complement(made) - made).max() < 1e-3


def test_what_was_interpolated_holds_nothing_beyond() -> None:
    """The interpolated slice and its detail share next to no frequency; periods differ by the mirrored border."""
    values = np.random.default_rng(4).normal(0, 20, (128, 128)).astype(np.float32)
    y, x = np.hanning(128)[:, None], np.hanning(128)[None, :]
    made = doubled((values * y * x).astype(np.float32))
    assert complement(made).std() < 0.02 * made.std()


def test_repeated() -> None:
    assert repeated(np.array([[True, False]])).tolist() == [[True, True, False, False]] * 2


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 64)])
def test_the_smallest_slices(shape: tuple[int, int]) -> None:
    assert doubled(np.ones(shape, np.float32)) == pytest.approx(np.ones((2 * shape[0], 2 * shape[1])))
