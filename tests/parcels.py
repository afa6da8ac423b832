"""Small CT series as Part 10 files, and derived series in a store, to be sent to peers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID

from node.deliver.files import read_parcel
from node.deliver.parcel import Parcel
from node.model import Action, Decision, Delivery, DerivedInstance, Instance
from node.store import NewDerived, NewJob, Store

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
STUDY = "1.2.826.0.1.3680043.2.1125.1"


def ct(number: int, *, series: str = f"{STUDY}.7", side: int = 64, sop_class: str = CT) -> Dataset:
    """A CT slice of ``side`` x ``side`` 16-bit pixels, seeded by its number."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    ds.SOPClassUID = sop_class
    ds.SOPInstanceUID = f"{series}.{number}"
    ds.StudyDate, ds.StudyTime = "20260329", "013000"
    ds.AccessionNumber = "A1"
    ds.Modality = "CT"
    ds.StudyDescription, ds.SeriesDescription = "CHEST", "LUNG 1.0 [LUM]"
    ds.PatientName, ds.PatientID = "Müller^Jürgen", "P1"
    ds.PatientBirthDate, ds.PatientSex = "19500101", "M"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = STUDY, series
    ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = "1", 1002, number
    ds.SliceThickness = "1.25"
    ds.KVP = "120"
    ds.AcquisitionNumber = 1
    ds.FrameOfReferenceUID = f"{STUDY}.9"
    ds.ImagePositionPatient = [-100, -100, 1.25 * number]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing = [0.7, 0.7]
    ds.Rows = ds.Columns = side
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleIntercept, ds.RescaleSlope = "0", "1"
    pixels = np.random.default_rng(number).integers(-1024, 1500, (side, side), dtype=np.int16)
    ds.add_new("PixelData", "OW", pixels.tobytes())
    return ds


def part10(ds: Dataset, syntax: str = EXPLICIT) -> bytes:
    """A data set as the bytes of a file, in a native or lossless transfer syntax."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = UID(EXPLICIT)
    ds.file_meta = meta
    if UID(syntax).is_compressed and not UID(syntax).is_deflated:
        ds.compress(syntax, generate_instance_uid=False)
    else:
        meta.TransferSyntaxUID = UID(syntax)
        if not UID(syntax).is_little_endian:
            ds["PixelData"].value = np.frombuffer(ds.PixelData, "<i2").astype(">i2").tobytes()
    out = BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def with_digest(parcel: Parcel) -> Parcel:
    """The same with the digest of its data set, as the spool would know it."""
    data = parcel.path.read_bytes()[parcel.offset :]
    return Parcel(
        sop_class_uid=parcel.sop_class_uid,
        sop_instance_uid=parcel.sop_instance_uid,
        transfer_syntax_uid=parcel.transfer_syntax_uid,
        path=parcel.path,
        offset=parcel.offset,
        size=parcel.size,
        sha256=hashlib.sha256(data).hexdigest(),
        series_uid=parcel.series_uid,
    )


def ct_parcels(
    folder: Path, n: int = 5, *, syntax: str = EXPLICIT, first: int = 1, **more: Any
) -> list[Parcel]:
    """``n`` slices of a series, each in a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(first, first + n):
        path = folder / f"{number}.dcm"
        path.write_bytes(part10(ct(number, **more), syntax))
        made.append(with_digest(read_parcel(path)))
    return made


def delivery(
    store: Store,
    destinations: Mapping[str, Mapping[str, Any]],
    n: int = 5,
    *,
    series: int = 1,
    at: datetime | None = None,
    side: int = 32,
) -> list[Delivery]:
    """A derived series of ``n`` slices in the store, with a delivery to each destination: all rows real."""
    at = at or datetime.now(UTC)
    source_uid, derived_uid = f"{STUDY}.5.{series}", f"{STUDY}.6.{series}"
    path, sha256, size = _spooled(store, source_uid, f"{source_uid}.1", b"received")
    source = Instance(
        sop_class_uid=CT, sop_instance_uid=f"{source_uid}.1", study_uid=STUDY, series_uid=source_uid,
        transfer_syntax_uid=EXPLICIT, calling_ae="CT1", called_ae="LUMINODE", association="a1", path=path,
        size=size, offset=0, sha256=sha256, received_at=at,
    )  # fmt: skip
    series_id = store.reception.record([source])[0].series_id
    assert store.series.close(series_id, "count", at)
    new = NewJob(
        rule="chest", engine="ct-nlm", params={}, destinations=destinations,
        derivation_key=hashlib.sha256(f"{series}".encode()).hexdigest(),
    )  # fmt: skip
    decision = Decision(
        rule="chest", action=Action.ENHANCE, reason="", engine="ct", destinations=tuple(destinations)
    )
    store.series.route(series_id, decision, [new], "c" * 64, at)
    job = store.jobs.claim("maker", 60, at)
    assert job is not None
    instances = []
    for number in range(1, n + 1):
        data = part10(ct(number, series=derived_uid, side=side))
        offset = len(data) - len(_data_set(data))
        path, sha256, size = _spooled(store, derived_uid, f"{derived_uid}.{number}", data, offset)
        instances.append(
            DerivedInstance(
                sop_class_uid=CT,
                sop_instance_uid=f"{derived_uid}.{number}",
                source_sop_instance_uid=source.sop_instance_uid,
                transfer_syntax_uid=EXPLICIT,
                path=path,
                size=size,
                offset=offset,
                sha256=sha256,
            )
        )
    derived = NewDerived(
        study_uid=STUDY, series_uid=derived_uid, number=1001, description="LUNG [LUM]", instances=instances
    )
    store.jobs.finish(job.id, "maker", job.attempt, derived, {"engine": "ct-nlm"}, at)
    made = store.deliveries.derived_by_series_uid(derived_uid)[0]
    return store.deliveries.list(derived_id=made.id)


def _spooled(store: Store, series: str, sop: str, data: bytes, offset: int = 0) -> tuple[str, str, int]:
    sha256 = hashlib.sha256(data[offset:]).hexdigest()
    with store.spool.create() as writer:
        writer.write(data)
        writer.sync()
        path = writer.publish(series, sop, sha256, "derived")
    store.spool.sync_dirs([path])
    return path, sha256, len(data)


def _data_set(data: bytes) -> bytes:
    length = int.from_bytes(data[140:144], "little")
    return data[144 + length :]
