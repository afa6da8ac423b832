"""Small DICOM objects for tests, made with pydicom: an oracle that shares no code with node.dicom."""

from __future__ import annotations

import copy
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from node.dicom.derivation import Derivation

CORPUS = Path(__file__).resolve().parents[2] / "shared" / "data"

CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
MR_CLASS = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_CT_CLASS = "1.2.840.10008.5.1.4.1.1.2.1"
ENHANCED_MR_CLASS = "1.2.840.10008.5.1.4.1.1.4.1"

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG = "1.2.840.10008.1.2.2"
NATIVE = (IMPLICIT, EXPLICIT, DEFLATED, BIG)


def corpus(*parts: str) -> Path:
    """A folder or file of the image corpus; skips the test where it is absent."""
    path = CORPUS.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"the image corpus is not beside the checkout: {'/'.join(parts)}")
    return path


def how(**changes: Any) -> Derivation:
    """A derivation, with some fields changed."""
    fields: dict[str, Any] = {
        "derivation_key": "ab" * 32,
        "revision": 1,
        "when": datetime(2026, 3, 4, 5, 6, 7, 891000, UTC),
        "product_version": "0.1.0",
        "serial": "SN1",
        "engine": "ct-nlm",
        "engine_title": "Non-local means for CT",
        "engine_version": "1.2.0",
        "family": "classical",
        "weights_sha256": "cd" * 32,
        "strength": 0.6,
        "scale": 1,
        "runtime": "numpy 2.0",
        "device": "cpu",
        "description_suffix": " [LUM ct-nlm]",
        "series_number_offset": 1000,
        "equipment": "standard",
        "value2": "PRIMARY",
        "research_mark": True,
        "partial": False,
    }
    return Derivation(**{**fields, **changes})


def image(
    pixels: np.ndarray[Any, Any] | None = None,
    *,
    sop_class: str = CT_CLASS,
    bits_stored: int = 12,
    signed: bool = False,
    **attributes: Any,
) -> Dataset:
    """A single-frame CT or MR image as a scanner would send it; ``attributes`` by keyword, None removes."""
    if pixels is None:
        pixels = np.arange(8 * 6, dtype=np.uint16).reshape(8, 6) * 50
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if sop_class == CT_CLASS else "M", "NORM"]
    ds.SOPClassUID = sop_class
    ds.SOPInstanceUID = "1.2.3.4.5.6.7"
    ds.StudyDate, ds.StudyTime = "20240102", "101112"
    ds.ContentDate, ds.ContentTime = "20240102", "101500"
    ds.AccessionNumber = "ACC1"
    ds.Modality = "CT" if sop_class == CT_CLASS else "MR"
    ds.Manufacturer, ds.ManufacturerModelName = "ACME", "Scanner One"
    ds.InstitutionName, ds.StationName = "General", "CT01"
    ds.DeviceSerialNumber, ds.SoftwareVersions = "12345", ["V1", "V2"]
    ds.SeriesDescription = "Thorax 1.0"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Muster^Eva", "PID-7", "19500101"
    ds.PatientSex = "F"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.4", "1.2.3.4.5"
    ds.FrameOfReferenceUID = "1.2.3.99"
    ds.SeriesNumber, ds.InstanceNumber, ds.AcquisitionNumber = "3", "47", "1"
    ds.ImagePositionPatient = [-1.5, 2.25, 3]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.SliceThickness, ds.PixelSpacing = "1.0", ["0.7", "0.70"]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.BitsAllocated = pixels.dtype.itemsize * 8
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits_stored, bits_stored - 1, int(signed)
    ds.WindowCenter, ds.WindowWidth = "40", "400"
    if sop_class == CT_CLASS:
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "-1024", "1", "HU"
    ds.add_new("PixelData", "OW" if ds.BitsAllocated > 8 else "OB", pixels.tobytes())
    for keyword, value in attributes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def enhanced(n_frames: int = 3, *, ct: bool = False, slopes: tuple[float, ...] = ()) -> Dataset:
    """A small Enhanced MR or CT image with functional groups."""
    pixels = np.arange(n_frames * 4 * 6, dtype=np.uint16).reshape(n_frames, 4, 6)
    ds = image(pixels, sop_class=ENHANCED_CT_CLASS if ct else ENHANCED_MR_CLASS)
    ds.Modality = "CT" if ct else "MR"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.NumberOfFrames = n_frames
    ds.AcquisitionDateTime = "20240102101112"
    ds.ContentQualification = "PRODUCT"
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(ds, keyword)
    shared = Dataset()
    frame_type = Dataset()
    frame_type.FrameType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    frame_type.PixelPresentation, frame_type.VolumetricProperties = "MONOCHROME", "VOLUME"
    setattr(shared, "CTImageFrameTypeSequence" if ct else "MRImageFrameTypeSequence", [frame_type])
    measures = Dataset()
    measures.PixelSpacing, measures.SliceThickness = ["0.7", "0.7"], "1.0"
    shared.PixelMeasuresSequence = [measures]
    ds.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for at in range(n_frames):
        frame = Dataset()
        content, position, rescale = Dataset(), Dataset(), Dataset()
        content.DimensionIndexValues = [at + 1]
        content.StackID, content.InStackPositionNumber = "1", at + 1
        position.ImagePositionPatient = ["0", "0", f"{at}.50"]
        rescale.RescaleSlope = str(slopes[at] if slopes else 1.0)
        rescale.RescaleIntercept, rescale.RescaleType = "-1024" if ct else "0", "HU" if ct else "US"
        frame.FrameContentSequence = [content]
        frame.PlanePositionSequence = [position]
        frame.PixelValueTransformationSequence = [rescale]
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return ds


def part10(ds: Dataset, syntax: str = EXPLICIT) -> bytes:
    """A Part 10 file in any native transfer syntax."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", CT_CLASS)
    meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "1.2.3")
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = "1.2.3.4"
    whole = FileDataset("", Dataset(), preamble=b"\x00" * 128, file_meta=meta)
    whole.update(copy.deepcopy(ds))
    if syntax == BIG:
        for element in whole:
            if element.VR == "OW":
                element.value = np.frombuffer(element.value, "<u2").astype(">u2").tobytes()
    out = io.BytesIO()
    pydicom.dcmwrite(out, whole, enforce_file_format=True)
    return out.getvalue()


def read(data: bytes) -> FileDataset:
    """A Part 10 file as pydicom reads it."""
    return pydicom.dcmread(io.BytesIO(data))


def fresh_uid() -> str:
    return str(generate_uid(prefix=None))


__all__ = ["ExplicitVRLittleEndian", "corpus", "enhanced", "fresh_uid", "how", "image", "part10", "read"]
