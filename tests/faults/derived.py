"""The checker of derived series (R45): complete, in place, labelled, and never the original's pixels."""

from __future__ import annotations

from collections.abc import Sequence

import pydicom
from pydicom.dataset import Dataset

from node.model import Job
from node.store import Store

SAME = (
    "StudyInstanceUID", "PatientID", "FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "SliceThickness", "Rows", "Columns", "Modality", "RescaleSlope", "RescaleIntercept",
    "BitsStored", "PixelRepresentation", "InstanceNumber",
)  # fmt: skip
"""What an engine of scale 1 must not touch."""


def violations(store: Store, job: Job, sources: Sequence[Dataset]) -> list[str]:
    """What is wrong with the derived series of a job that is done."""
    found: list[str] = []
    derived = store.deliveries.derived_of_job(job.id)
    if derived is None:
        return ["nothing was derived"]
    by_source = {d.source_sop_instance_uid: d for d in derived.instances}
    if set(by_source) != {ds.SOPInstanceUID for ds in sources} or len(by_source) != len(derived.instances):
        found.append(f"{len(derived.instances)} instances of {len(sources)}")
    records = store.provenance.story(derived.series_uid).records
    told = [r.body for r in records if r.kind == "series.derived"]
    if not told or not (told[-1]["device"] and told[-1]["runtime"]):
        found.append("no device in the provenance")
    digest = job.params["card"]["weights_sha256"]
    if not told or told[-1]["engine"]["weights_sha256"] != digest:
        found.append("no digest of the engine in the provenance")
    for source in sources:
        one = by_source.get(source.SOPInstanceUID)
        if one is None:
            continue
        if not store.spool.verify(one.path, one.offset, one.sha256):
            found.append("bytes are not those that were recorded")
        found += _compared(source, pydicom.dcmread(store.spool.path(one.path)), digest)
    return found


def _compared(source: Dataset, ds: Dataset, digest: str) -> list[str]:
    found = [f"{name} differs" for name in SAME if ds.get(name) != source.get(name)]
    if ds.ImageType[0] != "DERIVED":
        found.append("not labelled as derived")
    if ds.SOPInstanceUID == source.SOPInstanceUID or ds.SeriesInstanceUID == source.SeriesInstanceUID:
        found.append("a UID of the original")
    referenced = {r.ReferencedSOPInstanceUID for r in ds.get("SourceImageSequence", [])}
    if source.SOPInstanceUID not in referenced:
        found.append("no reference to its source")
    if digest[:12] not in ds.to_json():
        found.append("no digest of the engine in the object")
    if ds.PixelData == source.PixelData:
        found.append("the original's pixels under a derived label")
    return found
