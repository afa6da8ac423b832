"""Small trees in the layout of the public data sets, with their traps, for tests and for trying things out.

The pictures are smooth bodies of ellipses with smooth noise: enough to read, sort, rescale and pair; nothing to
train on. All UIDs, names and ids are made up here and the same each time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.dataelem import DataElement
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid
from ruamel.yaml import YAML
from scipy.ndimage import gaussian_filter

from training.data.headers import CT_IMAGE

SIDE: Final = 64


def uid(*parts: object) -> str:
    """Return a UID that is the same for the same parts."""
    return str(generate_uid(entropy_srcs=["luminode look-alike", *map(str, parts)]))


def body(n_slices: int, *, seed: int, noise_hu: float = 10.0, side: int = SIDE) -> npt.NDArray[np.float32]:
    """Return a trunk with two lungs in air, HU, float32 (z, y, x), with smooth noise of about ``noise_hu``."""
    y, x = np.mgrid[:side, :side] / (side / 2) - 1
    slice_hu = np.full((side, side), -1000.0)
    slice_hu[(x / 0.9) ** 2 + (y / 0.7) ** 2 < 1] = 40.0
    for centre in (-0.42, 0.42):
        slice_hu[((x - centre) / 0.33) ** 2 + (y / 0.5) ** 2 < 1] = -850.0
    grain = gaussian_filter(
        np.random.default_rng(seed).standard_normal((n_slices, side, side)), (0, 0.8, 0.8)
    )
    return np.asarray(slice_hu + noise_hu * grain / grain.std(), np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """What the slices of a series share; ``extra`` are further attributes by keyword."""

    patient: str
    name: str
    manufacturer: str = "SIEMENS"
    kernel: str = "B30f"
    thickness_mm: float = 2.5
    pixel_mm: float = 1.0
    exposure: int = 100
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "AXIAL")
    intercept: float = -1024.0
    study: str = "1"
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def series_uid(self) -> str:
        """Its Series Instance UID."""
        return uid(self.patient, self.study, self.name)


def write_ct(
    path: Path, series: Series, stored: npt.NDArray[np.int16], *, number: int, z_mm: float, sop_uid: str
) -> None:
    """Write one axial CT slice of signed 16-bit stored values."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(CT_IMAGE)
    meta.MediaStorageSOPInstanceUID = UID(sop_uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    fields: dict[str, Any] = {
        "SOPClassUID": CT_IMAGE,
        "SOPInstanceUID": sop_uid,
        "Modality": "CT",
        "ImageType": list(series.image_type),
        "PatientID": series.patient,
        "PatientName": f"Nobody^{series.patient}",
        "StudyInstanceUID": uid(series.patient, "study", series.study),
        "SeriesInstanceUID": series.series_uid,
        "FrameOfReferenceUID": uid(series.patient, "frame"),
        "InstanceNumber": number,
        "Manufacturer": series.manufacturer,
        "ConvolutionKernel": series.kernel,
        "SliceThickness": series.thickness_mm,
        "Exposure": series.exposure,
        "PixelSpacing": [series.pixel_mm, series.pixel_mm],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [-SIDE / 2 * series.pixel_mm, -SIDE / 2 * series.pixel_mm, z_mm],
        "RescaleSlope": 1,
        "RescaleIntercept": series.intercept,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        **series.extra,
    }
    for keyword, value in fields.items():
        if isinstance(value, DataElement):
            ds.add(value)
        else:
            setattr(ds, keyword, value)
    ds.PixelData = stored.astype("<i2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


def stored_of(hu: npt.NDArray[np.float32], intercept: float) -> npt.NDArray[np.int16]:
    """Round HU to stored values."""
    return np.round(hu - intercept).astype(np.int16)


MAYO_PATIENTS: Final = {"train_set": ("C001", "L006"), "val_set": ("L002",), "test_set": ("N003",)}
MAYO_GE: Final = "L004"
MAYO_SLICES: Final = 6


def mayo(root: Path) -> Path:
    """Write a look-alike of Mayo LDCT-and-Projection-data; return its folder.

    Pairs of four Siemens patients (one whose low-dose images lie under another study and are stored in
    reverse), projections without positions, one GE patient without low dose, and ``info.yml`` as of
    ldct-benchmark beside it.
    """
    top = root / "LDCT-and-Projection-data"
    info: dict[str, Any] = {name: [] for name in MAYO_PATIENTS}
    for part, patients in MAYO_PATIENTS.items():
        for patient in patients:
            full = _mayo_series(top, patient, "Full Dose Images", noise_hu=8.0, exposure=200)
            low = _mayo_series(top, patient, "Low dose images", noise_hu=30.0, exposure=20)
            paths = [f"./{p.relative_to(root).as_posix()}" for p in (low, full)]
            info[part].append({"id": patient, "input": paths[0], "target": paths[1], "n_slices": MAYO_SLICES})
    _mayo_series(
        top, MAYO_GE, "Full dose images", noise_hu=8.0, exposure=200, manufacturer="GE MEDICAL SYSTEMS"
    )
    _mayo_series(top, "C001", "Full dose projections", noise_hu=8.0, exposure=200)
    info |= {"mean": 481.0, "std": 502.0, "min": 0.0, "max": 4095.0, "robust": False}
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    with (root / "info.yml").open("w", encoding="utf-8") as stream:
        yaml.dump(info, stream)
    return top


def _mayo_series(
    top: Path,
    patient: str,
    description: str,
    *,
    noise_hu: float,
    exposure: int,
    manufacturer: str = "SIEMENS",
) -> Path:
    low = description.startswith("Low")
    study = "12-23-2021-NA-NA-10002" if low and patient == "L002" else "12-23-2021-NA-NA-10001"
    series = Series(
        patient=patient,
        name=description,
        study=study,
        manufacturer=manufacturer,
        exposure=exposure,
        extra={"SeriesDescription": description},
    )
    folder = top / patient / study / f"1.000000-{description}-{len(description):05d}"
    truth = sum(map(ord, patient))
    values = body(MAYO_SLICES, seed=truth + low, noise_hu=noise_hu)
    for i in range(MAYO_SLICES):
        number = MAYO_SLICES - i if low else i + 1
        write_ct(
            folder / f"1-{number}.dcm",
            series,
            stored_of(values[i], series.intercept),
            number=number,
            z_mm=-100.0 + 2.5 * i,
            sop_uid=uid(series.series_uid, i),
        )
    return folder
