"""What an engine is: the types and the one protocol that every engine of the catalogue meets.

An engine works in two passes, so that memory is bounded by slabs and not by the series:

1. ``survey`` looks at slabs of slices and returns figures per slice (noise, scale, body). Surveys of
   consecutive slabs are joined with :func:`join`.
2. ``enhance`` takes a slab, the survey of the *whole* stack, and where in the stack the slab lies. The
   slab carries up to ``card.neighbours`` extra slices at either side; only ``keep`` comes back.

Law: slabs of any size give the bytes of one slab (tests/laws.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Mask: TypeAlias = npt.NDArray[np.bool_]
Unit: TypeAlias = Literal["HU", "arbitrary"]
Family: TypeAlias = Literal["cnn", "gan", "autoencoder", "classical", "identity"]
Modality: TypeAlias = Literal["CT", "MR"]


NEIGHBOUR_MM = 3.0
"""Slices further apart than this are no neighbours to an engine: they show other anatomy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """Slices of one stack: same orientation, matrix and contrast, in order of position.

    Attributes
    ----------
    values
        float32 (z, y, x), in HU for CT, in rescaled arbitrary units for MR.
    spacing_mm
        (z, y, x); z is the distance between slice positions, 0 where there is one slice.
    unit
        ``HU`` or ``arbitrary``.
    valid
        bool (z, y, x), False where there is padding or nothing was reconstructed: such voxels are
        never looked at and never changed.
    contiguous
        bool (z,), ``contiguous[i]`` is True if slice i+1 is a true neighbour of slice i (no gap, regular
        spacing). The last value is ignored. Engines use no neighbour over a gap.
    step
        The width of one stored unit in ``unit`` (|Rescale Slope|), per slice float32 (z,): what rounding
        costs.
    """

    values: Floats
    spacing_mm: tuple[float, float, float]
    unit: Unit
    valid: Mask
    contiguous: Mask
    step: Floats

    @property
    def shape(self) -> tuple[int, int, int]:
        z, y, x = self.values.shape
        return (z, y, x)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The sidecar of an engine: who it is, what it may be given, what it promises.

    Attributes
    ----------
    sigma_range
        Noise (standard deviation, in ``unit``; for MR as a fraction of the series scale) inside which the
        engine was trained or tuned. Outside it the engine refuses or passes through.
    receptive_field
        Radius in pixels inside a slice that one output pixel depends on.
    alignment
        In-plane sizes are padded to a multiple of this.
    neighbours
        Slices at either side that one output slice depends on.
    bound
        |out - in| <= strength * min(bound_sigmas * sigma, bound): the absolute bound, in ``unit``
        (MR: fraction of the series scale). Where ``scale`` is 2 it is |out - interpolated| <= strength *
        bound: detail is no noise, and ``bound_sigmas`` says nothing of it.
    scale
        1: an image of the same matrix comes out. 2: twice the rows and columns, interpolated by zero
        filling (engines/sinc.py), and to that a learned detail added. The first pixel stays where it
        is, pixels lie half as far apart.
    weights_sha256
        Digest of the weights (ONNX fp32 file), or of the parameters of a classical engine.
    trained_on, evaluated, intended_use
        Free text for people; they go into the provenance.
    """

    name: str
    version: str
    family: Family
    modalities: tuple[Modality, ...]
    unit: Unit
    sigma_range: tuple[float, float]
    receptive_field: int
    alignment: int
    neighbours: int
    bound_sigmas: float
    bound: float
    weights_sha256: str
    scale: int = 1
    title: str = ""
    runtime: str = "numpy"
    default_strength: float = 0.6
    trained_on: str = ""
    evaluated: str = ""
    intended_use: str = ""
    not_for: str = ""
    licence: str = "Apache-2.0"
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """What an admin may turn. ``strength`` in [0, 1]; 0 gives the stored bytes back, from an engine of
    ``scale`` 2 the interpolated slice, in which every second sample of every second line is stored."""

    strength: float
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Figures per slice, float32 (z,) each: noise (standard deviation in ``unit``; NaN where the slice
    has nothing to measure), a robust high intensity (99th percentile of valid voxels), the share of
    voxels that are valid, and the mean spatial frequency of the noise in cycles per pixel (NaN as sigma)."""

    sigma: Floats
    high: Floats
    share: Floats
    frequency: Floats

    def __len__(self) -> int:
        return int(self.sigma.shape[0])


def join(surveys: Sequence[Survey]) -> Survey:
    """Join surveys of consecutive slabs into that of the whole stack."""
    return Survey(
        sigma=np.concatenate([s.sigma for s in surveys]),
        high=np.concatenate([s.high for s in surveys]),
        share=np.concatenate([s.share for s in surveys]),
        frequency=np.concatenate([s.frequency for s in surveys]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceFigures:
    """What became of one slice, in ``unit``.

    Attributes
    ----------
    reason
        Why it was left as it was, or "".
    largest, mean
        Largest and mean change.
    noise_before, noise_after, cfr
        As in :class:`Enhancement`; NaN where the slice was not looked at.
    error
        ``reconstruction_error``, None from engines that have none.
    """

    reason: str = ""
    largest: float = 0.0
    mean: float = 0.0
    noise_before: float = float("nan")
    noise_after: float = float("nan")
    cfr: float = float("nan")
    error: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Enhancement:
    """What came out.

    ``volume`` holds the kept slices only; from an engine of ``scale`` 2 with twice the rows and columns and
    half their spacing. ``figures`` are floats in ``unit``: ``noise_before``, ``noise_after`` (means over a
    few of the enhanced slices, NaN where there is none), ``mean_change``, ``largest_change``, over the
    kept slices; ``cfr``, the mean frequency of the noise after over before (near 1: the texture is kept;
    low: it has become coarse); ``skipped`` counts slices that were passed through unchanged, with the
    reasons in ``notes``. With ``scale`` 2 changes are those of the interpolated slice, and noise is measured on the
    samples that lie where the stored ones lie.

    ``reconstruction_error`` is told by autoencoders: the largest over the slices of what the decoder cannot
    draw beyond noise (:func:`engines.restore.reconstruction_error`), HU or a fraction of the series scale.

    ``slices`` tells the same of each kept slice; ``notes`` beside their reasons are of the whole stack.
    """

    volume: Volume
    card: Card
    params: Params
    runtime: str
    device: str
    seconds: float
    figures: Mapping[str, float]
    notes: tuple[str, ...] = ()
    slices: tuple[SliceFigures, ...] = ()


class Engine(Protocol):
    """An engine: prepare + run + guard + restore. Pure: same input, same bytes."""

    @property
    def card(self) -> Card: ...

    def survey(self, volume: Volume) -> Survey:
        """Figures per slice of one slab; independent of how a stack is cut into slabs."""
        ...

    def enhance(
        self,
        volume: Volume,
        params: Params,
        survey: Survey | None = None,
        *,
        first: int = 0,
        keep: slice | None = None,
    ) -> Enhancement:
        """Enhance a slab.

        Parameters
        ----------
        volume
            The slab, neighbours included.
        survey
            Of the whole stack; None means that the slab is the whole stack.
        first
            Index in the stack of the slab's slice 0.
        keep
            Which slices of the slab come back; None means all.

        Raises
        ------
        engines.errors.EngineError
            See engines/errors.py for what the caller should do.
        """
        ...
