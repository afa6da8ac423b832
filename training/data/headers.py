"""What a DICOM header says that training needs: is this a slice that a scanner measured, where, and of what kind.

Only the attributes named here are read; names, dates, institutions and free text never leave the file, except
Series Description where a data set defines it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from engines.base import Mask, Modality

CT_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.2"
MR_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.4"
PHILIPS_B_FACTOR: Final = 0x20011003

_KEYWORDS: Final = (
    "SOPClassUID SOPInstanceUID SeriesInstanceUID StudyInstanceUID PatientID Modality ImageType Manufacturer "
    "SeriesDescription SamplesPerPixel PhotometricInterpretation Rows Columns NumberOfFrames BitsAllocated "
    "PixelSpacing ImagePositionPatient ImageOrientationPatient SliceThickness InstanceNumber RescaleSlope "
    "RescaleIntercept RescaleType ConvolutionKernel Exposure KVP EchoTime EchoNumbers RepetitionTime InversionTime "
    "FlipAngle ScanningSequence MagneticFieldStrength DiffusionBValue DiffusionGradientOrientation "
    "TemporalPositionIdentifier BurnedInAnnotation LossyImageCompression FrameOfReferenceUID"
)
_TAGS: Final = [*map(Tag, _KEYWORDS.split()), Tag(PHILIPS_B_FACTOR)]

_WORDS: Final = (
    (r"LOCALI[SZ]ER|SCOUT|TOPOGRAM|SURVIEW|SURVEY|PILOT|SOM\d+ TOP", "a localizer"),
    (r"SCREEN ?SAVE|SCREEN|DOSE|EXAM SUMMARY|SOM\d+ PROT", "a page or saved screen"),
    (r"MIP|MINIP|MIN ?IP|VRT|SSD|MPVR|PROJECTION IMAGE|VOLREN.*", "a projection or rendering of a volume"),
    (r"MPR|CPR|REFORMATTED", "a reformat of a volume"),
    (r"MOSAIC|VFRAME|TILED", "tiles of many slices in one image"),
    (r"SUBTRACT(ED|ION)?|DIFFERENCE|SUB", "a difference of images"),
    (r"E?ADC|FA|CBF|CBV|MTT|TTP|.* MAP|MAP|T1 MAP|T2 MAP", "a calculated map"),
    (r"P|PHASE|REAL|IMAGINARY|R|I|PHASE MAP", "a phase, real or imaginary image"),
)
_BARS: Final = tuple((re.compile(words), reason) for words, reason in _WORDS)


@contextmanager
def quietly() -> Iterator[None]:
    """Keep what pydicom warns of to ourselves: such words may quote a path or a value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read(path: Path) -> Dataset:
    """Read what is needed of a header, pixels left on disk; identity that only the file meta has is taken in."""
    with quietly():
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
    for keyword in ("SOPInstanceUID", "SOPClassUID"):
        if not values(header, keyword):
            setattr(header, keyword, header.file_meta.get(f"MediaStorage{keyword}", ""))
    return header


def series(header: Dataset) -> str:
    """Return the Series Instance UID; where a de-identifier emptied it, the Frame of Reference UID stands for it."""
    return "".join(values(header, "SeriesInstanceUID") or values(header, "FrameOfReferenceUID"))


def values(header: Dataset, keyword: str) -> list[str]:
    """Return the values of an attribute as text, none where it is absent or empty."""
    found: Any = header.get(keyword)
    if found is None or found == "":
        return []
    if isinstance(found, (list, pydicom.multival.MultiValue)):
        return [str(v).strip() for v in found]
    return [str(found).strip()]


def number(header: Dataset, keyword: str) -> float | None:
    """Return the first value as a finite number, None where there is none."""
    for text in values(header, keyword)[:1]:
        try:
            value = float(text)
        except ValueError:
            return None
        return value if np.isfinite(value) else None
    return None


def modality(header: Dataset) -> Modality:
    """CT or MR; other modalities never come here, see :func:`objection`."""
    return "CT" if values(header, "Modality") == ["CT"] else "MR"


def objection(header: Dataset) -> str:
    """Say why an image is no slice to train on, or return an empty string.

    By what the attributes are defined to say (PS3.3 C.7.6.1, C.7.6.3, C.8.2.1, C.8.3.1), never by a file's name.
    """
    told = values(header, "Modality")
    if told not in (["CT"], ["MR"]):
        return "neither CT nor MR"
    sop_class = "".join(values(header, "SOPClassUID"))
    if sop_class not in ("", CT_IMAGE, MR_IMAGE):
        return "not a single-frame CT or MR image (secondary capture, multi-frame, raw data ...)"
    for token in values(header, "ImageType"):
        words = token.upper().replace("_", " ")
        for pattern, reason in _BARS:
            if pattern.fullmatch(words):
                return reason
    if number(header, "SamplesPerPixel") not in (None, 1.0):
        return "a colour image"
    if values(header, "PhotometricInterpretation") not in ([], ["MONOCHROME2"]):
        return "not MONOCHROME2"
    if (number(header, "NumberOfFrames") or 1) > 1:
        return "a multi-frame object"
    if values(header, "BurnedInAnnotation") == ["YES"]:
        return "text is burned in"
    if values(header, "LossyImageCompression") == ["01"]:
        return "compressed with loss, its noise is not the scanner's"
    return _measured(header) or _placed(header)


def _measured(header: Dataset) -> str:
    if values(header, "Modality") == ["CT"]:
        if number(header, "RescaleSlope") in (None, 0.0) or number(header, "RescaleIntercept") is None:
            return "CT without Rescale Slope and Intercept, no Hounsfield units"
        if values(header, "RescaleType") not in ([], ["HU"], ["US"]):
            return "CT whose values are no Hounsfield units"
        return ""
    b_value = number(header, "DiffusionBValue") or 0.0
    if b_value > 0 or PHILIPS_B_FACTOR in header:
        return "a diffusion image"
    if "EP" in values(header, "ScanningSequence"):
        return "an echo planar image"
    return ""


def _placed(header: Dataset) -> str:
    if not series(header) or not values(header, "SOPInstanceUID"):
        return "without Series or SOP Instance UID"
    position = values(header, "ImagePositionPatient")
    orientation = values(header, "ImageOrientationPatient")
    if len(position) != 3 or len(orientation) != 6:
        return "without position or orientation"
    row, column = np.array([float(v) for v in orientation]).reshape(2, 3)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(n - 1) for n in lengths) > 1e-2 or abs(row @ column) > 1e-2:
        return "its orientation is no pair of perpendicular unit vectors"
    if len(values(header, "PixelSpacing")) != 2 or min(spacing(header)) <= 0:
        return "without pixel spacing"
    if not number(header, "Rows") or not number(header, "Columns"):
        return "without pixels"
    return ""


def spacing(header: Dataset) -> tuple[float, float]:
    """(y, x) in mm: Pixel Spacing is row spacing, then column spacing (PS3.3 10.7.1.3)."""
    y, x = (float(v) for v in header.PixelSpacing)
    return y, x


def axes(header: Dataset) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return unit vectors along a row, along a column, and along the normal (their cross product)."""
    row, column = np.array([float(v) for v in header.ImageOrientationPatient]).reshape(2, 3)
    return row, column, np.cross(row, column)


def rescale(header: Dataset) -> tuple[float, float]:
    """(slope, intercept), 1 and 0 where an MR image has none."""
    slope = number(header, "RescaleSlope")
    return (slope if slope else 1.0), number(header, "RescaleIntercept") or 0.0


def group(header: Dataset) -> tuple[object, ...]:
    """What all slices of one stack share, the series first."""
    orientation = tuple(round(float(v), 3) + 0.0 for v in header.ImageOrientationPatient)
    direction = tuple(round(float(v), 3) for v in values(header, "DiffusionGradientOrientation"))
    return (
        series(header),
        orientation,
        (int(header.Rows), int(header.Columns)),
        tuple(round(v, 4) for v in spacing(header)),
        round(number(header, "SliceThickness") or 0.0, 2),
        tuple(values(header, "ConvolutionKernel")),
        round(number(header, "EchoTime") or 0.0, 3),
        tuple(values(header, "EchoNumbers")),
        round(number(header, "InversionTime") or 0.0, 1),
        tuple(values(header, "TemporalPositionIdentifier")),
        direction,
    )


def patient(header: Dataset) -> tuple[str, str]:
    """(what tells this patient from others, what to note about it). Only its hash may be kept."""
    for keyword, note in (
        ("PatientID", ""),
        (
            "StudyInstanceUID",
            "no patient ID: the study stands for the patient, so two of one patient look like two",
        ),
        ("FrameOfReferenceUID", "no patient ID and no study: the frame of reference stands for the patient"),
    ):
        text = "".join(values(header, keyword))
        if text:
            return text, note
    return series(header), "no patient ID and no study: the series stands for the patient"


def padding(header: Dataset, stored: npt.NDArray[Any]) -> Mask:
    """Where stored values are Pixel Padding Value, or lie between it and Pixel Padding Range Limit (C.7.5.1.1.2).

    Scanners write the value with the wrong sign (63536 for -2000): it is compared modulo 2 to the bits allocated.
    """
    value = number(header, "PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    limit = number(header, "PixelPaddingRangeLimit")
    signed = number(header, "PixelRepresentation") == 1.0
    bits = int(number(header, "BitsAllocated") or 16)
    low, high = sorted(_wrap(v, bits, signed) for v in (value, value if limit is None else limit))
    return (stored >= low) & (stored <= high)


def _wrap(value: float, bits: int, signed: bool) -> int:
    whole = int(value) % (1 << bits)
    return whole - (1 << bits) if signed and whole >= 1 << (bits - 1) else whole


# domains ------------------------------------------------------------------------------------------
_VENDORS: Final = (
    ("GE", r"\bGE\b|GENERAL ELECTRIC"),
    ("Siemens", r"SIEMENS"),
    ("Philips", r"PHILIPS|MARCONI|PICKER"),
    ("Toshiba", r"TOSHIBA|CANON"),
    ("UIH", r"\bUIH\b|UNITED IMAGING"),
    ("Hitachi", r"HITACHI|FUJI"),
)
_KERNELS: Final = (
    (
        "sharp",
        r"LUNG|BONE.*|EDGE|DETAIL\+|[BUH](?:[lrfvmcd])?(?:5[5-9]|[6-9]\d).*|FC(?:5\d|8\d|3\d)|[DLE]|Y[A-D]",
    ),
    ("soft", r"SOFT|SMOOTH|[BUHJI](?:[lrfvmcd])?[12]\d.*|FC0\d|[A]|UA|EA"),
    ("standard", r"STANDARD|STD\+?|DETAIL|[BUHJI](?:[lrfvmcd])?(?:[34]\d|5[0-4]).*|FC1\d|[BC]|U[BC]|EB"),
)
"""By the makers' names; sharpness grows with the number at Siemens, with the letter at Philips."""


def _first_match(table: tuple[tuple[str, str], ...], text: str, flags: int, *, whole: bool) -> str:
    for name, pattern in table:
        if (re.fullmatch if whole else re.search)(pattern, text, flags):
            return name
    return ""


def vendor(header: Dataset) -> str:
    """Name the maker, ``other`` for one not in the table, ``unknown`` where nothing is said."""
    told = " ".join(values(header, "Manufacturer"))
    if not told:
        return "unknown"
    return _first_match(_VENDORS, told, re.IGNORECASE, whole=False) or "other"


def kernel(header: Dataset) -> str:
    """``soft``, ``standard`` or ``sharp`` by the maker's name of the kernel, else ``unknown``."""
    told = values(header, "ConvolutionKernel")
    return _first_match(_KERNELS, told[0], 0, whole=True) or "unknown" if told else "unknown"


def _step(value: float | None, steps: tuple[tuple[float, str], ...], above: str) -> str:
    if value is None or value <= 0:
        return "unknown"
    return next((name for limit, name in steps if value <= limit), above)


def thickness(header: Dataset) -> str:
    """``thin`` up to 1.25 mm, ``medium`` up to 3 mm, ``thick``."""
    return _step(number(header, "SliceThickness"), ((1.25, "thin"), (3.0, "medium")), "thick")


def dose(header: Dataset) -> str:
    """``low`` up to 60 mAs (lung screening), ``middle`` up to 160, ``high``; by Exposure, whatever the kV."""
    return _step(number(header, "Exposure"), ((60.0, "low"), (160.0, "middle")), "high")


def contrast(header: Dataset) -> str:
    """T1, T2, PD, FLAIR or ``other`` by repetition, echo and inversion time; ``unknown`` without them."""
    tr, te, ti = (number(header, k) for k in ("RepetitionTime", "EchoTime", "InversionTime"))
    sequence = values(header, "ScanningSequence")
    if tr is None or te is None:
        return "unknown"
    if "IR" in sequence and ti is not None and ti >= 1500 and te >= 60:
        return "FLAIR"
    if "GR" in sequence and te <= 15 and tr <= 3000:
        return "T1"
    if tr <= 1200:
        return "T1" if te <= 35 else "other"
    if te >= 60:
        return "T2"
    return "PD" if te <= 40 and tr >= 1500 else "other"


def domains(header: Dataset, kind: Modality) -> dict[str, str]:
    """Return the domains of a stack: maker and thickness, and what belongs to the modality."""
    common = {"vendor": vendor(header), "thickness": thickness(header)}
    if kind == "CT":
        return {**common, "kernel": kernel(header), "dose": dose(header)}
    field = _step(
        number(header, "MagneticFieldStrength"), ((1.2, "below 1.5 T"), (1.9, "1.5 T"), (3.5, "3 T")), "high"
    )
    return {**common, "contrast": contrast(header), "field": field}
