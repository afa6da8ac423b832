"""The parts of a derived object that are the same for every instance of a series, made once.

Codes: PS3.16 CID 7203 (derivation), CID 7202 (purpose of a source image), CID 7005 (contributing equipment).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from functools import lru_cache

from node.dicom.derivation import Derivation
from node.dicom.elements import Element, Elements, code, sequence, text
from node.dicom.ours import (
    CODE_SCHEME,
    DERIVATION_CODES,
    MANUFACTURER,
    MODEL,
    PRODUCT,
    RESAMPLED_CODE,
)
from node.dicom.uids import device_uid

SMOOTHING = code("113087", "DCM", "Smoothing")
RESAMPLING = code("113085", "DCM", "Spatial resampling")
ACQUISITION = code("109101", "DCM", "Acquisition Equipment")
PROCESSING = code("109102", "DCM", "Processing Equipment")
SOURCE_IMAGE = code("121322", "DCM", "Source image for image processing operation")


@dataclass(frozen=True, slots=True)
class Words:
    """What a derivation says of itself; ``when`` in the zone of the source."""

    when: datetime
    derivation: str
    comment: str
    suffix: str
    codes: tuple[Elements, ...]
    equipment: tuple[Element, ...]
    contribution: Elements
    scheme: Elements


@lru_cache(maxsize=64)
def words(how: Derivation, zone: tzinfo) -> Words:
    """The constant parts of a derived series."""
    when = how.when.astimezone(zone)
    value, meaning = DERIVATION_CODES[how.family] if how.scale == 1 else RESAMPLED_CODE
    private = code(value, CODE_SCHEME, meaning)
    equipment = (
        text("Manufacturer", "LO", MANUFACTURER),
        text("ManufacturerModelName", "LO", MODEL),
        text("DeviceSerialNumber", "LO", _ascii(how.serial, 64) or "0"),
        text("SoftwareVersions", "LO", "\\".join(_versions(how))),
        text("DeviceUID", "UI", device_uid(how.product_version)),
    )
    name = _ascii(how.engine_title or how.engine, 100)
    contribution = (
        sequence("PurposeOfReferenceCodeSequence", [PROCESSING]),
        *equipment,
        text("ContributionDateTime", "DT", when.strftime("%Y%m%d%H%M%S.%f%z")),
        text("ContributionDescription", "ST", f"{meaning} by {name}"),
    )
    told = (
        f"{meaning} by {PRODUCT} {_ascii(how.product_version, 30)}: {name}, engine {_ascii(how.engine, 60)} "
        f"{_ascii(how.engine_version, 30)} ({how.family}), strength {how.strength:g}, "
        f"weights {_ascii(how.weights_sha256, 64)[:16] or 'none'}, {_ascii(how.runtime, 60)} "
        f"on {_ascii(how.device, 60)}."
    )
    public = SMOOTHING
    if how.scale != 1:
        public = RESAMPLING
        told += (
            " Rows and columns doubled by zero filling of k-space; the detail that was added to that is an"
            " estimate, at frequencies beyond those of the source, and was not measured."
        )
    suffix = how.description_suffix
    if how.revision > 1:
        told += f" Revision {how.revision}: replaces an earlier series made before late images came."
        suffix += f" R{how.revision}"
    if how.partial:
        told += " The source series was not complete."
        suffix += " partial"
    comment = ""
    if how.research_mark:
        comment = f"Processed by {PRODUCT} ({_ascii(how.engine, 60)}); not for primary diagnosis alone"
    scheme = (
        text("CodingSchemeDesignator", "SH", CODE_SCHEME),
        text("CodingSchemeName", "ST", f"{PRODUCT} derivation codes"),
        text("CodingSchemeResponsibleOrganization", "ST", MANUFACTURER),
    )
    return Words(
        when=when,
        derivation=told,
        comment=comment,
        suffix=suffix,
        codes=(private,) if how.family == "identity" else (public, private),
        equipment=equipment,
        contribution={e.tag: e for e in contribution},
        scheme={e.tag: e for e in scheme},
    )


def zone_of(offset: str, fallback: tzinfo) -> tzinfo:
    """The zone that a Timezone Offset From UTC (0008,0201), ``&ZZXX``, names, or else the fallback."""
    if len(offset) != 5 or offset[0] not in "+-" or not (offset[1:].isascii() and offset[1:].isdigit()):
        return fallback
    minutes = int(offset[1:3]) * 60 + int(offset[3:])
    if minutes > 14 * 60:  # PS3.3 C.12.1.1.8: -1200 to +1400
        return fallback
    return timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes))


def _versions(how: Derivation) -> list[str]:
    """Software Versions, LO 1-n of 64 characters each (C.7.5.1.1.3): product, engine, runtime, weights."""
    told = [
        f"{PRODUCT} {how.product_version}",
        f"{how.engine} {how.engine_version}",
        how.runtime,
        how.weights_sha256,
    ]
    return [_ascii(t, 64) for t in told if _ascii(t, 64)]


def _ascii(told: str, limit: int) -> str:
    """ASCII without control characters and backslashes: fits every character set and ends no value."""
    clean = told.encode("ascii", "replace").decode("ascii")
    return "".join(c for c in clean if c.isprintable() and c != "\\").strip()[:limit].strip()
