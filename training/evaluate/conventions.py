"""What a figure means: window, mask, rounding, and the card that is printed with it.

The same pair of images has a PSNR of 42.7 dB or of 26.7 dB, depending on nothing but the data range. So no
figure of this project stands without its :class:`MetricCard`, and all figures are made here, one way:

- images are mapped by a :class:`Window` to 0..1, so the data range R of every metric is 1;
- only pixels inside a mask of the *reference* count (air around the body flatters everything);
- what is measured is what would be written: rounded to stored integers;
- per slice first (in dB), then the mean per patient, then over patients (training/evaluate/averaging.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.filters import threshold_otsu

from training.errors import DataError
from training.evaluate.averaging import Estimate

Values = npt.NDArray[np.floating[Any]]
Doubles = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

BODY_HU = -500.0
"""Above this is body (or table, which the opening and the largest component leave out)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A map of values to 0..1.

    Attributes
    ----------
    name
        For people.
    low, high
        Values that become 0 and 1, in the image's unit.
    clip
        Whether values beyond are cut off, as on a screen. MR is not cut (fastMRI's convention).
    """

    name: str
    low: float
    high: float
    clip: bool = True

    @property
    def width(self) -> float:
        """The data range in the image's unit."""
        return self.high - self.low

    def apply(self, values: Values) -> Doubles:
        """Return the values as 0..1, float64."""
        scaled = (np.asarray(values, np.float64) - self.low) / self.width
        return np.clip(scaled, 0.0, 1.0) if self.clip else scaled


def level_width(name: str, level: float, width: float) -> Window:
    """Return a CT window as a radiologist says it: level and width in HU."""
    return Window(name=name, low=level - width / 2, high=level + width / 2)


CHEST = level_width("chest L-600 W1500", -600, 1500)
SOFT = level_width("soft tissue L50 W400", 50, 400)
BRAIN = level_width("brain L40 W80", 40, 80)
FULL = Window(name="full range 4095", low=-1024.0, high=3071.0)

WINDOWS = {"chest": CHEST, "soft": SOFT, "brain": BRAIN, "full": FULL}
"""The windows of CT, as in ldctbench (Eulig et al., Med Phys 51(12), 2024), and the whole range of 12 bits."""


def volume_window(reference: Values) -> Window:
    """Return the window of an MR volume: 0 to the largest value of the *volume*, never per slice (fastMRI).

    Raises
    ------
    DataError
        Nothing in the volume is above zero.
    """
    top = float(np.max(reference))
    if not np.isfinite(top) or top <= 0:
        raise DataError("the reference holds no signal", hint="an MR volume needs values above zero")
    return Window(name="MR, 0 to the volume's maximum", low=0.0, high=top, clip=False)


_DISK = np.hypot(*np.mgrid[-2:3, -2:3]) <= 2.3


def _body(raw: Mask) -> Mask:
    """Open within slices, keep the largest part of the volume, fill holes within slices."""
    opened = np.stack([ndimage.binary_opening(s, _DISK) for s in raw])
    labels, n = ndimage.label(opened, np.ones((3, 3, 3)))
    if n == 0:
        return np.zeros_like(raw)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest = labels == int(np.argmax(sizes))
    return np.stack([ndimage.binary_fill_holes(_without_scraps(s)) for s in largest])


def _without_scraps(raw: Mask) -> Mask:
    """Drop parts of a slice below a tenth of its largest: head holders hang on the head in some other slice."""
    labels, n = ndimage.label(raw)
    if n < 2:
        return raw
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray((sizes >= 0.1 * sizes.max())[labels])


def body_mask(values: Values) -> Mask:
    """Find the body in CT: HU > -500, opened, largest part, filled (so lungs are inside).

    Parameters
    ----------
    values
        (z, y, x) in HU; give the reference, so that all methods are measured on the same pixels.

    Returns
    -------
    Mask
        bool (z, y, x).
    """
    return _body(_stack(values) > BODY_HU)


def foreground_mask(values: Values) -> Mask:
    """Find the head in MR: Otsu's threshold on the root of the volume, closed, filled, opened, largest part.

    On the root, because bright fat would otherwise be one class and all else the other.
    Source: N. Otsu, IEEE Trans SMC 9(1), 1979.
    """
    stack = _stack(values)
    root = np.sqrt(np.maximum(stack, 0))
    if float(root.min()) == float(root.max()):
        return np.zeros(stack.shape, np.bool_)
    bright = root > threshold_otsu(root)  # type: ignore[no-untyped-call]
    # The scalp first, as a closed ring: else the dark skull parts it from the brain, and the larger one stays.
    filled = [
        ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(s, 2), _DISK))[2:-2, 2:-2] for s in bright
    ]
    return _body(np.stack(filled))


def _stack(values: Values) -> Values:
    if values.ndim != 3:
        raise DataError(f"a stack (z, y, x) is needed, not {values.ndim} axes")
    return values


def as_written(
    values: Values,
    *,
    slope: float = 1.0,
    intercept: float = 0.0,
    limits: tuple[int, int] = (-32768, 32767),
) -> npt.NDArray[np.float32]:
    """Return what a viewer will see: rounded half to even to stored integers, clipped, rescaled (PS3.3 C.11.1).

    Parameters
    ----------
    slope, intercept
        Rescale Slope and Intercept: value = slope * stored + intercept.
    limits
        Smallest and largest stored integer.
    """
    stored = np.clip(np.rint((np.asarray(values, np.float64) - intercept) / slope), *limits)
    return np.asarray(stored * slope + intercept, np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricCard:
    """What a figure was made of. It is printed with every figure.

    Attributes
    ----------
    figure
        Such as ``PSNR``, with its unit: ``PSNR dB``.
    domain
        Which images, such as ``CT chest, quarter dose, sharp kernel``.
    window
        Name of the window.
    data_range
        R, in the image's unit.
    mask
        Which pixels count: ``body``, ``MR foreground``, ``all``.
    dimensions
        ``2-D`` (per slice) or ``3-D``.
    averaging
        In which order.
    rounding
        What was rounded before measuring.
    reference
        What it was compared with: a truth without noise, or a noisy full dose.
    n_patients, n_slices
        How many.
    estimate
        The mean over patients and its interval.
    """

    figure: str
    domain: str
    window: str
    data_range: float
    mask: str
    reference: str
    n_patients: int
    n_slices: int
    estimate: Estimate
    dimensions: str = "2-D"
    averaging: str = "slice, then patient mean, then mean over patients"
    rounding: str = "stored integers"

    def line(self) -> str:
        """Return the card on one line."""
        e = self.estimate
        spread = f"[{e.low:.4g}, {e.high:.4g}] ({e.level:.0%} bootstrap over patients)"
        if e.n < 2:  # of one value it would have no width, and look as if all were known
            spread = "(of one patient: no interval)"
        return (
            f"{self.figure} {e.mean:.4g} {spread}; "
            f"{self.domain}; window {self.window}, R {self.data_range:g}; mask {self.mask}; {self.dimensions}; "
            f"{self.averaging}; {self.rounding}; against {self.reference}; "
            f"{self.n_patients} patients, {self.n_slices} slices"
        )
