"""Which images may be enhanced at all, whatever a rule says: one profile per modality, one table of checks.

A new modality is one :class:`ModalityProfile`. A check looks at one instance and says why not, in one
sentence for the admin, without a value of the patient's.

Mixed series
------------
A scanner may put other pictures among the slices: a localizer into an axial series, a dose page at its end,
phase beside magnitude. :func:`split` tells them apart. The slices are enhanced without the strangers if

- the strangers are no more than half: else the series is one of theirs, with odd slices in it;
- every remaining slice has a position: what holds it apart from the strangers is then more than a word;
- nothing else is wrong with any slice. A slice that cannot be processed (cut short, compressed with loss)
  refuses the whole series: without it the derived series would have a hole that nobody sees.

One instance that a Luminode made refuses the whole series, too: it is a loop, or our output in a series where
it does not belong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from pydicom.uid import UID

from node.dicom import contents, source
from node.dicom.contents import Bar, Verdict
from node.dicom.decode import can_decode
from node.model import InstanceHeader, SeriesHeader, Values


@dataclass(frozen=True, slots=True, kw_only=True)
class ModalityProfile:
    """What an engine of this modality can be given.

    Attributes
    ----------
    rescale
        Whether Rescale Slope and Intercept must be there, for values to mean anything (PS3.3 C.8.2.1).
    rescale_types
        Values of Rescale Type, in capitals, that leave the values what the engine expects (C.11.1.1.2).
    units
        Codes of Measurement Units that do (CID 83, 84).
    """

    modality: str
    sop_classes: frozenset[str]
    rescale: bool
    rescale_types: frozenset[str]
    units: frozenset[str]


PROFILES: Final[Mapping[str, ModalityProfile]] = {
    profile.modality: profile
    for profile in (
        ModalityProfile(
            modality="CT",
            sop_classes=source.CT_CLASSES,
            rescale=True,
            rescale_types=source.HOUNSFIELD_TYPES,
            units=frozenset({"[hnsf'U]"}),
        ),
        ModalityProfile(
            modality="MR",
            sop_classes=frozenset({source.MR, source.ENHANCED_MR, source.LEGACY_MR}),
            rescale=False,
            rescale_types=frozenset({"", "US", "NORMALIZED", "UNSPECIFIED", "NONE", "MAGNITUDE"}),
            units=frozenset({"1", "no units", "{no units}", "[arb'U]"}),
        ),
    )
}

_SPEAKING: Final = (
    (
        "1.2.840.10008.5.1.4.1.1.7",
        "It is a secondary capture: a picture of a screen or a page, not scanner values.",
    ),
    ("1.2.840.10008.5.1.4.1.1.88", "It is a structured report, which has no pixels to enhance."),
    ("1.2.840.10008.5.1.4.1.1.11", "It is a presentation state, which has no pixels to enhance."),
    ("1.2.840.10008.5.1.4.1.1.66", "It is a segmentation, registration or raw data object, not an image."),
    ("1.2.840.10008.5.1.4.1.1.30", "It is a parametric map."),
    ("1.2.840.10008.5.1.4.1.1.481", "It is a radiotherapy object."),
    ("1.2.840.10008.5.1.4.1.1.4.2", "It is a spectroscopy object, not an image."),
    ("1.2.840.10008.5.1.4.1.1.4.3", "It is a colour image."),
)
"""SOP Class UIDs, and the roots of their families, that are often seen among CT and MR (PS3.4 B.5)."""

_LOSSY: Final = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"})
_MAYBE_LOSSY: Final = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (81, 91, 93, 203))
"""Syntaxes that may hold either: the data set must say that nothing was lost (C.7.6.1.1.5)."""


class Split(NamedTuple):
    """Which instances of a series may be enhanced, and why the others may not: SOP Instance UID -> reason."""

    eligible: tuple[InstanceHeader, ...]
    left_out: Mapping[str, str]


def eligibility(
    header: SeriesHeader, headers: Sequence[InstanceHeader], *, allow_vendor_denoised: bool = False
) -> str:
    """Why a series must not be enhanced, or an empty string.

    Parameters
    ----------
    header
        Of the series, as merged.
    headers
        Of all of its instances.
    allow_vendor_denoised
        As configured for the engine: scanner deep-learning reconstructions are not denoised again by default.

    Returns
    -------
    str
        One sentence. A series of which only a part may be enhanced is eligible; see :func:`split`.
    """
    if header.derived_by_us:
        return _OURS.reason
    return _judge(headers, allow_vendor_denoised)[1]


def split(headers: Sequence[InstanceHeader], *, allow_vendor_denoised: bool = False) -> Split:
    """Tell the slices from the strangers among them; see the module's text for when slices are left."""
    return _judge(headers, allow_vendor_denoised)[0]


def verdict_on(header: InstanceHeader) -> Verdict | None:
    """The first objection to one instance, None if there is none."""
    for check in _CHECKS:
        verdict = check(header)
        if verdict is not None:
            return verdict
    return None


def _judge(headers: Sequence[InstanceHeader], allow_vendor_denoised: bool) -> tuple[Split, str]:
    if not headers:
        return Split((), {}), "No instance of it can be read."
    verdicts = {h.sop_instance_uid: v for h in headers if (v := verdict_on(h)) is not None}
    if allow_vendor_denoised:
        verdicts = {uid: v for uid, v in verdicts.items() if v.bar is not Bar.DENOISED}
    if not verdicts and _is_monitoring(headers):
        verdicts = {h.sop_instance_uid: contents.MONITORING for h in headers}
    eligible = tuple(h for h in headers if h.sop_instance_uid not in verdicts)
    refusal = _refusal(headers, eligible, list(verdicts.values()))
    if not refusal:
        return Split(eligible, {uid: v.reason for uid, v in verdicts.items()}), ""
    left_out = {h.sop_instance_uid: refusal for h in headers}
    left_out.update((uid, v.reason) for uid, v in verdicts.items())
    return Split((), left_out), refusal


def _refusal(
    headers: Sequence[InstanceHeader], eligible: Sequence[InstanceHeader], verdicts: Sequence[Verdict]
) -> str:
    """Why nothing of a series is enhanced, or an empty string."""
    if not verdicts:
        return ""
    for bar in (Bar.OURS, Bar.DENOISED, Bar.DEFECT):
        reasons = [v.reason for v in verdicts if v.bar is bar]
        if reasons and (eligible or bar is not Bar.DEFECT):
            return _counted(reasons, len(headers))
    reasons = [v.reason for v in verdicts]
    if not eligible or len(verdicts) > len(eligible):
        return _counted(reasons, len(headers))
    if any(f.position_mm is None or f.orientation is None for h in eligible for f in h.frames):
        return f"{_counted(reasons, len(headers))} The others have no position that would tell them apart."
    return ""


def _counted(reasons: Sequence[str], total: int) -> str:
    """The most frequent reason, and how many instances it is about if not all."""
    reason, count = Counter(reasons).most_common(1)[0]
    return reason if count == total else f"{count} of {total} instances: {reason}"


def _is_monitoring(headers: Sequence[InstanceHeader]) -> bool:
    """A CT run at one position whose name says that it waits for the contrast (GE, Canon, Philips)."""
    if headers[0].modality != "CT" or len(headers) < 2:
        return False
    positions = {f.position_mm for h in headers for f in h.frames}
    return len(positions) == 1 and any(contents.names_monitoring(t) for t in _texts(headers[0], _NAMES))


# The checks, in the order in which they are asked: what it is, then what is wrong with it.

_NAMES: Final = ("SeriesDescription", "ProtocolName")
_TELLTALES: Final = (
    *_NAMES,
    *("ConvolutionKernel", "ReconstructionAlgorithm", "DerivationDescription", "Manufacturer"),
    *("ManufacturerModelName", "SoftwareVersions"),
)
_OURS: Final = Verdict(Bar.OURS, "A Luminode made it: its own output is never enhanced again.")
_Check: TypeAlias = Callable[[InstanceHeader], Verdict | None]


def _texts(header: InstanceHeader, keywords: Sequence[str]) -> list[str]:
    return [str(v) for keyword in keywords for v in header.attributes.get(keyword, ())]


def _one(header: InstanceHeader, keyword: str) -> str:
    values: Values = header.attributes.get(keyword, ())
    return str(values[0]).upper() if values else ""


def _keys(header: InstanceHeader, name: str) -> set[str]:
    return {value for frame in header.frames for key, value in frame.volume_key if key == name}


def _ours(header: InstanceHeader) -> Verdict | None:
    return _OURS if header.derived_by_us else None


def _sop_class(header: InstanceHeader) -> Verdict | None:
    uid = header.sop_class_uid
    profile = PROFILES.get(header.modality)
    if profile is not None and uid in profile.sop_classes:
        return None
    for root, reason in _SPEAKING:
        if uid == root or uid.startswith(root + "."):
            return Verdict(Bar.STRANGER, reason)
    if profile is None:
        return Verdict(Bar.STRANGER, "Its modality is neither CT nor MR.")
    return Verdict(Bar.STRANGER, f"Objects of its class ({UID(uid).name or 'none'}) are not enhanced.")


def _colour(header: InstanceHeader) -> Verdict | None:
    photometric = _one(header, "PhotometricInterpretation")
    presentation = _one(header, "PixelPresentation")
    if _one(header, "SamplesPerPixel") not in ("", "1") or presentation in ("COLOR", "TRUE_COLOR", "MIXED"):
        return contents.COLOUR
    if photometric == "MONOCHROME2":
        return None
    if not photometric:
        return Verdict(Bar.DEFECT, "It does not say what its grey scale is (Photometric Interpretation).")
    if photometric == "MONOCHROME1":
        return Verdict(Bar.DEFECT, "Its grey scale is inverted (MONOCHROME1).")
    return contents.COLOUR


def _image_type(header: InstanceHeader) -> Verdict | None:
    types = [tuple(t.split("\\")) for t in sorted(_keys(header, "image_type"))]
    types.append(tuple(map(str, header.attributes.get("ImageType", ()))))
    hidden = [tuple(t.split("\\")) for t in sorted(_keys(header, "siemens_type"))]
    tokens = [token for values in (*types, *hidden) for token in values[2:]]
    found = [v for token in tokens if (v := contents.by_token(token, header.modality))]
    if len({f.position_mm for f in header.frames}) > 1:  # Siemens XA: a mosaic taken apart keeps the word
        found = [v for v in found if v is not contents.TILED]
    for verdict in sorted(found, key=lambda v: v.bar is Bar.DENOISED):  # stable: the first word counts
        return verdict
    if header.sop_class_uid in source.MULTI_FRAME:
        for values in types:
            derived = len(values) > 3 and values[0].strip() == "DERIVED"
            if derived and values[3].strip() not in contents.PLAIN_CONTRASTS:
                return contents.MAP
    return None


def _derivation(header: InstanceHeader) -> Verdict | None:
    for code in _texts(header, ("DerivationCodeSequence",)):
        if code in contents.DERIVATIONS:
            return contents.DERIVATIONS[code]
    if _one(header, "VolumeBasedCalculationTechnique") not in ("", "NONE"):
        return contents.PROJECTION
    if _one(header, "VolumetricProperties") == "DISTORTED":
        return contents.REFORMAT
    return None


def _component(header: InstanceHeader) -> Verdict | None:
    components = _keys(header, "component") | set(_texts(header, ("ComplexImageComponent",)))
    return contents.PHASE if header.modality == "MR" and components & contents.NOT_MAGNITUDE else None


def _tiles(header: InstanceHeader) -> Verdict | None:
    return contents.TILED if any(tiles not in ("0", "1") for tiles in _keys(header, "tiles")) else None


def _units(header: InstanceHeader) -> Verdict | None:
    profile = PROFILES[header.modality]
    types = {str(v).strip().upper() for v in header.attributes.get("RescaleType", ())}
    units = set(_texts(header, ("MeasurementUnitsCodeSequence",)))
    if types <= profile.rescale_types and units <= profile.units:
        return None
    return contents.MATERIAL if header.modality == "CT" else contents.MAP


def _description(header: InstanceHeader) -> Verdict | None:
    derived = _one(header, "ImageType").strip() == "DERIVED"
    # A series' own name goes first: Protocol Name is that of the whole examination on GE scanners.
    for text in _texts(header, _NAMES[:1]) or _texts(header, _NAMES[1:]):
        verdict = contents.by_description(text, header.modality, derived=derived)
        if verdict is not None:
            return verdict
    return None


def _denoised(header: InstanceHeader) -> Verdict | None:
    if any(_strength(value) for value in _keys(header, "deep_learning")):
        return contents.DENOISED
    texts = _texts(header, _TELLTALES) + sorted(_keys(header, "iterative"))
    return contents.DENOISED if any(map(contents.names_denoiser, texts)) else None


def _strength(told: str) -> bool:
    """Whether ``0.75\\High`` tells of any: 0 and empty do not."""
    return told.split("\\")[0].strip(" 0.") != ""


def _whole(header: InstanceHeader) -> Verdict | None:
    if header.faults:
        return Verdict(Bar.DEFECT, f"Its header is wrong: {header.faults[0]}.")
    if not header.has_pixels:
        return Verdict(Bar.DEFECT, "It has no pixel data.")
    if header.n_frames > 1 and header.sop_class_uid not in source.MULTI_FRAME:
        return Verdict(Bar.DEFECT, "It has several frames, which its class does not know.")
    return None


def _pixels(header: InstanceHeader) -> Verdict | None:
    allocated, stored = _one(header, "BitsAllocated"), _one(header, "BitsStored")
    if not allocated.isdigit() or not stored.isdigit():
        return Verdict(Bar.DEFECT, "It does not say how many bits its pixels have.")
    if allocated != "16" or not 8 < int(stored) <= 16:
        return Verdict(
            Bar.DEFECT, f"Its pixels have {stored} of {allocated} bits; 9 to 16 of 16 are enhanced."
        )
    if _one(header, "HighBit") not in ("", str(int(stored) - 1)):
        return Verdict(Bar.DEFECT, "Its pixel values do not begin at the lowest bit.")
    if _one(header, "PixelRepresentation") not in ("0", "1"):
        return Verdict(Bar.DEFECT, "It does not say whether its pixels are signed.")
    if _one(header, "BurnedInAnnotation") == "YES":
        return Verdict(Bar.DEFECT, "Text is burned into its pixels.")
    return None


def _rescale(header: InstanceHeader) -> Verdict | None:
    slopes, intercepts = (
        header.attributes.get("RescaleSlope", ()),
        header.attributes.get("RescaleIntercept", ()),
    )
    if PROFILES[header.modality].rescale and not (slopes and intercepts):
        return Verdict(
            Bar.DEFECT, "It has no Rescale Slope and Intercept, so its values are no Hounsfield units."
        )
    numbers = [v for v in (*slopes, *intercepts) if not isinstance(v, str)]
    usable = len(numbers) == len(slopes) + len(intercepts) and max(map(abs, numbers), default=0.0) < 1e30
    if not usable or any(abs(float(v)) < 1e-30 for v in slopes):
        return Verdict(Bar.DEFECT, "Its Rescale Slope or Intercept is no usable number.")
    return None


def _compression(header: InstanceHeader) -> Verdict | None:
    syntax, lossy = header.transfer_syntax_uid, _one(header, "LossyImageCompression")
    # C.7.6.1.1.5: whoever names a ratio, or a method without one, has lost something, flag or not.
    ratios = header.attributes.get("LossyImageCompressionRatio", ())
    told = any(v != 1 for v in ratios) or (not ratios and "LossyImageCompressionMethod" in header.attributes)
    if (
        lossy == "01"
        or (told and lossy != "00")
        or syntax in _LOSSY
        or (syntax in _MAYBE_LOSSY and lossy != "00")
    ):
        return Verdict(
            Bar.DEFECT, "It was compressed with loss, and an engine would take the artefacts for anatomy."
        )
    if not can_decode(syntax):
        return Verdict(Bar.DEFECT, "There is no decoder for its transfer syntax.")
    return None


_CHECKS: Final[tuple[_Check, ...]] = (
    _ours,
    _sop_class,
    _colour,
    _image_type,
    _derivation,
    _component,
    _tiles,
    _units,
    _description,
    _whole,
    _pixels,
    _rescale,
    _compression,
    _denoised,
)
