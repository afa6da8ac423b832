"""Headers as scanners write them, for phantoms: complete CT and MR Image Storage objects (PS3.3 A.3, A.4).

The scanner is fictitious, and so is the patient: every object says that it is simulated in its patient's
name and ID, its institution and its Patient Comments. (Synthetic Data (0008,001C) would be the place to say
it to machines; validators of 2022 still call that attribute an error.)
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from node.dicom.ours import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.dicom.uids import derived_uid
from node.trial.anatomy_mr import SEQUENCES

WHEN = datetime(2024, 3, 4, 9, 30)  # noqa: DTZ001  a scanner's local time, without a zone
PADDING = -2000
"""Stored value outside the reconstruction circle of the signed CT, as some scanners write it."""


def ds(value: float, digits: int = 6) -> str:
    """A number as DS: at most 16 characters, no trailing zeros."""
    return f"{round(value, digits):.{digits}f}".rstrip("0").rstrip(".") or "0"


def fill(ds_: Dataset, values: dict[str, Any]) -> None:
    for keyword, value in values.items():
        setattr(ds_, keyword, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
    """What all images of one phantom series share.

    Attributes
    ----------
    seed
        Numbers the patient and the study.
    key
        Everything that the pixels depend on, and the salt: the UIDs follow from it, so that other pixels
        never go under an old UID.
    count
        Images of the series, as a promise in Images in Acquisition; 0 writes none.
    pixel, spacing
        mm.
    """

    seed: int
    key: str
    count: int
    pixel: float
    spacing: float


def _common(exam: Exam, kind: str, index: int, position: tuple[float, float, float]) -> Dataset:
    """What a CT and an MR image have in common: patient, study, series, frame of reference, plane."""
    study = WHEN + timedelta(seconds=40 * (exam.seed % 1000))
    series, image = study + timedelta(seconds=75), study + timedelta(seconds=90 + index // 4)
    seed, key, pixel = exam.seed, ("phantom", kind, exam.key), exam.pixel
    out = Dataset()
    fill(
        out,
        {
            "SpecificCharacterSet": "ISO_IR 100",
            "InstanceCreationDate": f"{image:%Y%m%d}",
            "InstanceCreationTime": f"{image:%H%M%S}",
            "SOPInstanceUID": derived_uid(*key, "instance", str(index)),
            "StudyDate": f"{study:%Y%m%d}",
            "SeriesDate": f"{series:%Y%m%d}",
            "AcquisitionDate": f"{series:%Y%m%d}",
            "ContentDate": f"{image:%Y%m%d}",
            "StudyTime": f"{study:%H%M%S}",
            "SeriesTime": f"{series:%H%M%S}",
            "AcquisitionTime": f"{series:%H%M%S}.{index:06d}",
            "ContentTime": f"{image:%H%M%S}.{index:06d}",
            "AccessionNumber": "",
            "Manufacturer": "Phantom Scanners",
            "InstitutionName": "Simulated Hospital",
            "ReferringPhysicianName": "",
            "StationName": f"TRIAL{kind}1",
            "PatientID": f"PHANTOM-{kind}-{seed}",
            "PatientBirthDate": "",
            "PatientSex": "O",
            "PatientComments": "Simulated images of a digital phantom; there is no patient",
            "DeviceSerialNumber": "0001",
            "SoftwareVersions": "trial.1",
            "PatientPosition": "HFS",
            "StudyInstanceUID": derived_uid(*key, "study"),
            "SeriesInstanceUID": derived_uid(*key, "series"),
            "StudyID": str(1 + seed % 9999),
            "AcquisitionNumber": 1,
            "InstanceNumber": index + 1,
            "ImagePositionPatient": [ds(v, 4) for v in position],
            "ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"],
            "FrameOfReferenceUID": derived_uid(*key, "frame"),
            "PositionReferenceIndicator": "",
            "SliceLocation": ds(position[2], 4),
            "SliceThickness": ds(exam.spacing),
            "PixelSpacing": [ds(pixel), ds(pixel)],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BurnedInAnnotation": "NO",
        },
    )
    out.file_meta = FileMetaDataset()
    fill(
        out.file_meta,
        {
            "MediaStorageSOPInstanceUID": out.SOPInstanceUID,
            "TransferSyntaxUID": ExplicitVRLittleEndian,
            "ImplementationClassUID": IMPLEMENTATION_CLASS_UID,
            "ImplementationVersionName": IMPLEMENTATION_VERSION_NAME,
        },
    )
    return out


def _seal(out: Dataset, sop_class: UID, stored: npt.NDArray[Any], promise: int) -> Dataset:
    out.SOPClassUID = sop_class
    out.file_meta.MediaStorageSOPClassUID = sop_class
    out.Rows, out.Columns = stored.shape
    if promise:
        out.ImagesInAcquisition = promise
    little = np.ascontiguousarray(stored).astype("<i2" if stored.dtype.kind == "i" else "<u2")
    out.add_new("PixelData", "OW", little.tobytes())
    return out


def ct_image(
    exam: Exam,
    values: npt.NDArray[np.float32],
    valid: npt.NDArray[np.bool_],
    index: int,
    position: tuple[float, float, float],
    *,
    signed: bool,
) -> Dataset:
    """One CT image from HU (y, x).

    Parameters
    ----------
    index
        From 0; Instance Number is one more.
    position
        Image Position (Patient).
    signed
        True: 16 bits signed, padding -2000 outside the circle; False: 12 of 16 bits unsigned, padding 0.
    """
    out = _common(exam, "CT", index, position)
    stored = np.rint(values) + 1024
    # Native pixels must not take the padding value (PS3.3 C.7.5.1.1.2).
    stored = np.clip(stored, 0, 4095) if signed else np.clip(stored, 1, 4095)
    stored = np.where(valid, stored, PADDING if signed else 0)
    fill(
        out,
        {
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "Modality": "CT",
            "StudyDescription": "CT chest, low dose",
            "SeriesDescription": f"LUNG LOW DOSE {ds(exam.spacing)} STD",
            "ManufacturerModelName": "Trial CT 64",
            "PatientName": "Phantom^Chest",
            "BodyPartExamined": "CHEST",
            "ScanOptions": "HELICAL MODE",
            "KVP": "120",
            "DataCollectionDiameter": "500",
            "ProtocolName": "LUNG SCREENING LOW DOSE",
            "ReconstructionDiameter": ds(exam.pixel * values.shape[1]),
            "DistanceSourceToDetector": "949",
            "DistanceSourceToPatient": "541",
            "GantryDetectorTilt": "0",
            "TableHeight": "151.5",
            "RotationDirection": "CW",
            "ExposureTime": 500,
            "XRayTubeCurrent": 30,
            "Exposure": 15,
            "FilterType": "BODY FILTER",
            "GeneratorPower": 4,
            "FocalSpots": "0.7",
            "ConvolutionKernel": "STANDARD",
            "RevolutionTime": 0.5,
            "SingleCollimationWidth": 0.625,
            "TotalCollimationWidth": 40.0,
            "TableSpeed": 78.75,
            "TableFeedPerRotation": 39.375,
            "SpiralPitchFactor": 0.984375,
            "CTDIvol": 0.9,
            "SeriesNumber": 3,
            "BitsStored": 16 if signed else 12,
            "HighBit": 15 if signed else 11,
            "PixelRepresentation": 1 if signed else 0,
            "PixelPaddingValue": PADDING if signed else 0,
            "WindowCenter": ["-600", "40"],
            "WindowWidth": ["1500", "400"],
            "WindowCenterWidthExplanation": ["LUNG", "SOFT TISSUE"],
            "RescaleIntercept": "-1024",
            "RescaleSlope": "1",
            "RescaleType": "HU",
        },
    )
    code = Dataset()
    fill(
        code,
        {"CodeValue": "113691", "CodingSchemeDesignator": "DCM", "CodeMeaning": "IEC Body Dosimetry Phantom"},
    )
    out.CTDIPhantomTypeCodeSequence = [code]
    return _seal(out, CTImageStorage, stored.astype(np.int16 if signed else np.uint16), exam.count)


def mr_image(
    exam: Exam,
    values: npt.NDArray[np.float32],
    index: int,
    position: tuple[float, float, float],
    *,
    sequence: str,
    partial: bool,
) -> Dataset:
    """One MR image from arbitrary units (y, x), 12 of 16 bits unsigned, without a rescale."""
    out = _common(exam, "MR", index, position)
    times = SEQUENCES[sequence]
    inverted = times["TI"] > 0
    size = values.shape[0]
    acquired = int(0.8 * size)
    stored = np.clip(np.rint(values), 0, 4095).astype(np.uint16)
    middle = 320.0 if inverted else 480.0
    fill(
        out,
        {
            "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"],
            "Modality": "MR",
            "StudyDescription": "MR brain",
            "SeriesDescription": f"{sequence} {'MPRAGE' if inverted else 'TSE'} TRA",
            "ManufacturerModelName": "Trial MR 3T",
            "PatientName": "Phantom^Brain",
            "BodyPartExamined": "BRAIN",
            "ScanningSequence": ["GR", "IR"] if inverted else "SE",
            "SequenceVariant": ["SP", "MP"] if inverted else "SK",
            "ScanOptions": "PFP" if partial else "",
            "MRAcquisitionType": "3D" if inverted else "2D",
            "SequenceName": "*tfl3d1" if inverted else "*tse2d1_15",
            "RepetitionTime": ds(times["TR"]),
            "EchoTime": ds(times["TE"]),
            "NumberOfAverages": "1",
            "ImagingFrequency": "123.25",
            "ImagedNucleus": "1H",
            "EchoNumbers": 1,
            "MagneticFieldStrength": "3",
            "SpacingBetweenSlices": ds(exam.spacing),
            "NumberOfPhaseEncodingSteps": acquired,
            "EchoTrainLength": 1 if inverted else 15,
            "PercentSampling": "80",
            "PercentPhaseFieldOfView": "100",
            "PixelBandwidth": "220",
            "ProtocolName": f"{sequence} BRAIN",
            "TransmitCoilName": "Body",
            "ReceiveCoilName": "Head_20",
            "AcquisitionMatrix": [0, size, acquired, 0],
            "InPlanePhaseEncodingDirection": "ROW",
            "FlipAngle": "9" if inverted else "150",
            "VariableFlipAngleFlag": "N",
            "SAR": "0.41",
            "dBdt": "0",
            "SeriesNumber": 2,
            "BitsStored": 12,
            "HighBit": 11,
            "PixelRepresentation": 0,
            "SmallestImagePixelValue": int(stored.min()),
            "LargestImagePixelValue": int(stored.max()),
            "WindowCenter": ds(middle),
            "WindowWidth": ds(2 * middle),
        },
    )
    if inverted:
        out.InversionTime = ds(times["TI"])
    return _seal(out, MRImageStorage, stored, exam.count)
