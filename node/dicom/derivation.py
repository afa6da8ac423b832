"""What a derived object says about how it was made: one frozen record, with nothing left to default."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from node.dicom import uids
from node.dicom.ours import DERIVATION_CODES


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """All that shapes the headers of one derived series, the same for each of its instances.

    The same Derivation on the same source always writes the same bytes. No field has a default, so that
    none is forgotten.

    Attributes
    ----------
    derivation_key, revision
        Decide every UID (uids.py). Revision 1 is the first; a later one is a new series and says so.
    when
        Aware; when the job was queued, from its record and never from the clock. Own dates and times are
        written in the source's Timezone Offset From UTC, else in this one's zone.
    product_version, serial
        Of this node; ``serial`` is Device Serial Number, which Enhanced objects must have (C.7.5.2).
    engine, engine_title, engine_version, family, weights_sha256
        From the engine's card; ``family`` picks the derivation code (ours.py).
    strength
        0..1.
    scale
        1, or 2 where the engine doubles rows and columns (resample.py).
    runtime, device
        Words for people: ``onnxruntime 1.20.1``, ``cpu``.
    description_suffix
        Appended to Series Description; the same for all series of an engine, hanging protocols match it.
    series_number_offset
        See :func:`node.dicom.uids.series_number`.
    equipment
        ``standard``: the product is the equipment, the scanner contributing (PS3.3 C.12.1.1.5).
        ``retain``: the other way round, for tools that key on the scanner's Manufacturer.
    value2
        Image Type value 2 of classic objects; Enhanced ones are PRIMARY always (Table C.8-128).
    research_mark
        Image Comments (classic) or Content Qualification RESEARCH (multi-frame) say that this is not for
        primary diagnosis alone.
    partial
        The series was not whole and a person forced it: description and derivation say so.
    """

    derivation_key: str
    revision: int
    when: datetime
    product_version: str
    serial: str
    engine: str
    engine_title: str
    engine_version: str
    family: str
    weights_sha256: str
    strength: float
    scale: int
    runtime: str
    device: str
    description_suffix: str
    series_number_offset: int
    equipment: Literal["standard", "retain"]
    value2: Literal["PRIMARY", "SECONDARY"]
    research_mark: bool
    partial: bool

    def __post_init__(self) -> None:
        wrong = [
            name
            for name, ok in {
                "derivation_key": bool(self.derivation_key),
                "revision": self.revision >= 1,
                "when": self.when.tzinfo is not None,
                "family": self.family in DERIVATION_CODES,
                "strength": math.isfinite(self.strength) and 0 <= self.strength <= 1,
                "scale": self.scale in (1, 2),
                "series_number_offset": 1 <= self.series_number_offset <= 10**8,
                "equipment": self.equipment in ("standard", "retain"),
                "value2": self.value2 in ("PRIMARY", "SECONDARY"),
            }.items()
            if not ok
        ]
        if wrong:
            raise ValueError(f"no derivation: {', '.join(wrong)}")

    @property
    def series_uid(self) -> str:
        """Series Instance UID of the derived series."""
        return uids.series_uid(self.derivation_key, self.revision)

    def instance_uid(self, source_sop_instance_uid: str) -> str:
        """SOP Instance UID of what is derived from one source instance."""
        return uids.instance_uid(self.derivation_key, source_sop_instance_uid, self.revision)
