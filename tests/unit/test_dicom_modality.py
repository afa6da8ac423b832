"""What must never be enhanced, with its reason, and what must not be refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydicom.sr._concepts_dict import concepts

from node.dicom import contents
from node.dicom.contents import Bar, Verdict
from node.dicom.headers import merge
from node.dicom.modality import PROFILES, eligibility, split, verdict_on
from node.model import InstanceHeader, Values
from tests.headers import ENHANCED_MR, MR, frame, header, series

CT = "1.2.840.10008.5.1.4.1.1.2"
LOCALIZER = "ORIGINAL\\PRIMARY\\LOCALIZER"


def ct(image_type: str = "ORIGINAL\\PRIMARY\\AXIAL", **how: Any) -> InstanceHeader:
    key = how.pop("key", {})
    key.setdefault("image_type", image_type)
    return header(frame((0, 0, 0), **key), image_type=image_type, **how)


def mr(image_type: str = "ORIGINAL\\PRIMARY\\M\\ND\\NORM", **how: Any) -> InstanceHeader:
    return ct(image_type, **({"sop_class": MR} | how))


def bar(instance: InstanceHeader) -> Verdict | None:
    return verdict_on(instance)


@pytest.mark.parametrize(
    "image_type",
    [
        "ORIGINAL\\PRIMARY\\AXIAL",
        "ORIGINAL\\PRIMARY\\AXIAL\\HELIX",
        "ORIGINAL\\PRIMARY\\AXIAL\\ADD",
        "ORIGINAL\\PRIMARY\\AXIAL\\CT_SOM5 SPI",
        "ORIGINAL\\PRIMARY\\AXIAL\\CT_SOM7 SPI DUAL",
        "ORIGINAL\\PRIMARY\\AXIAL\\CT_SOM5 SEQ",
        "ORIGINAL\\PRIMARY\\AXIAL\\NORMAL",
        "DERIVED\\PRIMARY\\AXIAL",
        "DERIVED\\SECONDARY\\AXIAL",
        "DERIVED \\PRIMARY\\AXIAL",
        "DERIVED\\PRIMARY\\AXIAL\\VMI",
        "ORIGINAL\\PRIMARY",
        "ORIGINAL",
        "",
        "ORIGINAL\\PRIMARY\\AXIAL\\LOW DOSE",
    ],
)
def test_ct_that_may_be_enhanced(image_type: str) -> None:
    assert bar(ct(image_type)) is None


@pytest.mark.parametrize(
    "image_type",
    [
        "ORIGINAL\\PRIMARY\\M\\ND\\NORM",
        "ORIGINAL\\PRIMARY\\M\\NORM\\DIS2D\\FM\\FIL",
        "ORIGINAL\\PRIMARY\\OTHER",
        "ORIGINAL\\PRIMARY\\OTHER\\ND\\NORM\\MEAN",
        "ORIGINAL\\PRIMARY\\M_SE\\M\\SE",
        "ORIGINAL\\PRIMARY\\M_IR\\M\\IR",
        "ORIGINAL\\PRIMARY\\M\\SWI\\NORM",
        "DERIVED\\SECONDARY",
        "DERIVED\\SECONDARY\\OTHER",
        "DERIVED\\PRIMARY\\DIFFUSION\\TRACEW\\ND\\NORM",
        "ORIGINAL\\PRIMARY\\DIFFUSION\\NONE\\ND",
        "DERIVED\\PRIMARY\\M\\IN_PHASE\\DIXON",
        "DERIVED\\PRIMARY\\M\\OPP_PHASE",
        "DERIVED\\PRIMARY\\W\\NORM",
        "DERIVED\\PRIMARY\\WATER",
        "DERIVED\\PRIMARY\\FAT",
        "ORIGINAL\\PRIMARY\\T2_STAR\\NONE",
        "ORIGINAL\\PRIMARY\\PERFUSION\\NONE",
        "DERIVED\\SECONDARY\\COMPOSED\\COMP_SP",
    ],
)
def test_mr_that_may_be_enhanced(image_type: str) -> None:
    assert bar(mr(image_type)) is None


@pytest.mark.parametrize(
    ("image_type", "wanted"),
    [
        ("ORIGINAL\\PRIMARY\\LOCALIZER", contents.LOCALIZER),
        ("ORIGINAL\\PRIMARY\\LOCALIZER\\CT_SOM5 TOP", contents.LOCALIZER),
        ("ORIGINAL\\PRIMARY\\AXIAL\\CT_SOM7 TOP", contents.LOCALIZER),
        ("DERIVED\\SECONDARY\\REF_SURVIEW", contents.LOCALIZER),
        ("ORIGINAL\\PRIMARY\\SCANOSCOPE", contents.LOCALIZER),
        ("DERIVED\\SECONDARY\\DOSE_INFO", contents.DOSE),
        ("DERIVED\\SECONDARY\\\\DOSEINFO", contents.DOSE),
        ("DERIVED\\SECONDARY\\OTHER\\CT_SOM5 PROT", contents.DOSE),
        ("DERIVED\\SECONDARY\\SCREEN SAVE", contents.SCREEN),
        ("ORIGINAL\\PRIMARY\\AXIAL\\CT_SOM5 MON", contents.MONITORING),
        ("ORIGINAL\\PRIMARY\\AXIAL\\CT_SOM7 PREMON", contents.MONITORING),
        ("DERIVED\\SECONDARY\\AXIAL\\CT_SOM5 MIP", contents.PROJECTION),
        ("DERIVED\\SECONDARY\\OTHER\\VRT\\CSA 3D EDITOR", contents.PROJECTION),
        ("DERIVED\\PRIMARY\\AXIAL\\CT_SOM5 MPR", contents.REFORMAT),
        ("DERIVED\\SECONDARY\\MPR\\CSA MPR\\\\CSAPARALLEL\\M\\ND", contents.REFORMAT),
        ("DERIVED\\SECONDARY\\REFORMATTED\\AVERAGE", contents.REFORMAT),
        ("DERIVED\\PRIMARY\\AXIAL\\SUBTRACTION", contents.SUBTRACTION),
        ("DERIVED\\PRIMARY\\AXIAL\\IODINE", contents.MATERIAL),
        ("DERIVED\\PRIMARY\\AXIAL\\CT_SOM7 VNC", contents.MATERIAL),
        ("DERIVED\\PRIMARY\\AXIAL\\Z_EFF", contents.MATERIAL),
        ("DERIVED\\PRIMARY\\AXIAL\\MAT_SPECIFIC", contents.MATERIAL),
        ("DERIVED\\PRIMARY\\AXIAL\\MAT_REMOVED", contents.MATERIAL),
        ("DERIVED\\PRIMARY\\AXIAL\\MAT_FRACTIONAL", contents.MATERIAL),
        ("DERIVED\\PRIMARY\\AXIAL\\MAT_MODIFIED", contents.MATERIAL),
        ("DERIVED\\PRIMARY\\AXIAL\\MAT_VALUE_BASED", contents.MATERIAL),
        ("DERIVED\\PRIMARY\\AXIAL\\EFF_ATOMIC_NUM", contents.MATERIAL),
        ("DERIVED\\SECONDARY\\AXIAL\\PERFUSION\\CBF", contents.MAP),
    ],
)
def test_ct_that_is_something_else(image_type: str, wanted: Verdict) -> None:
    assert bar(ct(image_type)) == wanted


@pytest.mark.parametrize(
    ("image_type", "wanted"),
    [
        ("DERIVED\\PRIMARY\\PERFUSION\\ASL\\RELCBF\\ND\\NORM\\MOCO\\SUB\\TTEST\\MOSAIC", contents.MAP),
        ("DERIVED\\PRIMARY\\DIFFUSION\\ADC\\ND\\NORM", contents.MAP),
        ("DERIVED\\PRIMARY\\DIFFUSION\\FA\\ND\\NORM", contents.MAP),
        ("ORIGINAL\\PRIMARY\\ADC\\ADC\\UNSPECIFIED", contents.MAP),
        ("DERIVED\\PRIMARY\\T1 MAP\\ND", contents.MAP),
        ("ORIGINAL\\PRIMARY\\T2 MAP\\T2\\UNSPECIFIED", contents.MAP),
        ("ORIGINAL\\PRIMARY\\T2_STAR_UNSPECI\\T2_STAR\\UNSPECIFIED", contents.MAP),
        ("ORIGINAL\\PRIMARY\\B0 MAP\\B0\\UNSPECIFIED", contents.MAP),
        ("DERIVED\\PRIMARY\\PERFUSION\\TTP", contents.MAP),
        ("DERIVED\\PRIMARY\\PERFUSION\\rCBV", contents.MAP),
        ("DERIVED\\PRIMARY\\FAT_FRACTION", contents.MAP),
        ("ORIGINAL\\PRIMARY\\P\\ND", contents.PHASE),
        ("ORIGINAL\\PRIMARY\\PHASE MAP\\P\\FFE", contents.PHASE),
        ("ORIGINAL\\PRIMARY\\VELOCITY MAP\\P\\PCA", contents.PHASE),
        ("ORIGINAL\\PRIMARY\\R_IR\\R\\IR", contents.PHASE),
        ("DERIVED\\PRIMARY\\M\\SUB\\ND", contents.SUBTRACTION),
        ("DERIVED\\PRIMARY\\MNIP\\SWI", contents.PROJECTION),
        ("DERIVED\\SECONDARY\\PROJECTION IMAGE\\M\\FFE", contents.PROJECTION),
        ("ORIGINAL\\PRIMARY\\M\\ND\\MOSAIC", contents.TILED),
        ("ORIGINAL\\PRIMARY\\M\\VFRAME", contents.TILED),
        ("ORIGINAL\\PRIMARY\\M\\ND\\UNI", contents.RATIO),
        ("ORIGINAL\\PRIMARY\\M\\DRG\\NORM\\DRS\\DIS2D", contents.DENOISED),
        ("DERIVED\\PRIMARY\\DIFFUSION\\ADC\\DRB", contents.MAP),
    ],
)
def test_mr_that_is_something_else(image_type: str, wanted: Verdict) -> None:
    assert bar(mr(image_type)) == wanted


@pytest.mark.parametrize(
    ("sop_class", "modality", "word"),
    [
        ("1.2.840.10008.5.1.4.1.1.7", "CT", "secondary capture"),
        ("1.2.840.10008.5.1.4.1.1.7.4", "OT", "secondary capture"),
        ("1.2.840.10008.5.1.4.1.1.88.67", "SR", "structured report"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "PR", "presentation state"),
        ("1.2.840.10008.5.1.4.1.1.66.4", "SEG", "segmentation"),
        ("1.2.840.10008.5.1.4.1.1.66", "MR", "raw data"),
        ("1.2.840.10008.5.1.4.1.1.30", "MR", "parametric map"),
        ("1.2.840.10008.5.1.4.1.1.481.2", "RTDOSE", "radiotherapy"),
        ("1.2.840.10008.5.1.4.1.1.4.2", "MR", "spectroscopy"),
        ("1.2.840.10008.5.1.4.1.1.4.3", "MR", "colour"),
        ("1.2.840.10008.5.1.4.1.1.128", "PT", "neither CT nor MR"),
        ("1.2.840.10008.5.1.4.1.1.128", "CT", "Positron Emission"),
        ("1.2.840.10008.5.1.4.1.1.4", "CT", "MR Image Storage"),
        ("1.2.3.4", "CT", "1.2.3.4"),
        ("", "CT", "none"),
        (CT, "OT", "neither"),
        (CT, "", "neither"),
    ],
)
def test_other_classes_and_modalities(sop_class: str, modality: str, word: str) -> None:
    verdict = bar(ct(sop_class=sop_class, modality=modality))
    assert verdict is not None
    assert verdict.bar is Bar.STRANGER
    assert word in verdict.reason


def told(**attributes: Values) -> dict[str, Any]:
    return {"attributes": attributes}


@pytest.mark.parametrize(
    ("instance", "word"),
    [
        (ct(**told(PhotometricInterpretation=("RGB",), SamplesPerPixel=(3,))), "colour"),
        (ct(**told(PhotometricInterpretation=("PALETTE COLOR",))), "colour"),
        (ct(**told(PixelPresentation=("COLOR",))), "colour"),
        (mr(**told(PhotometricInterpretation=("MONOCHROME1",))), "inverted"),
        (ct(**told(BitsAllocated=(8,), BitsStored=(8,), HighBit=(7,))), "8 of 8 bits"),
        (ct(**told(BitsAllocated=(32,), BitsStored=(32,), HighBit=(31,))), "32 of 32 bits"),
        (ct(**told(BitsStored=(8,), HighBit=(7,))), "8 of 16 bits"),
        (ct(**told(BitsStored=())), "how many bits"),
        (ct(**told(HighBit=(15,))), "lowest bit"),
        (ct(**told(PixelRepresentation=())), "signed"),
        (ct(**told(BurnedInAnnotation=("YES",))), "burned"),
        (ct(**told(RescaleSlope=())), "no Rescale Slope"),
        (ct(**told(RescaleSlope=(0.0,))), "no usable number"),
        (mr(**told(RescaleSlope=("x",), RescaleIntercept=(0.0,))), "no usable number"),
        (ct(**told(RescaleType=("Z_EFF",))), "spectral"),
        (ct(**told(RescaleType=("MGML",))), "spectral"),
        (mr(**told(RescaleType=("mm2/s",))), "map"),
        (mr(**told(MeasurementUnitsCodeSequence=("ms",))), "map"),
        (ct(**told(LossyImageCompression=("01",))), "with loss"),
        (ct(**told(LossyImageCompressionRatio=(10.0,))), "with loss"),
        (ct(**told(LossyImageCompressionMethod=("ISO_10918_1",))), "with loss"),
        (ct(**told(RescaleSlope=(1e-40,))), "no usable number"),
        (mr(**told(PhotometricInterpretation=())), "does not say what its grey scale is"),
        (ct(transfer_syntax_uid="1.2.840.10008.1.2.4.51"), "with loss"),
        (ct(transfer_syntax_uid="1.2.840.10008.1.2.4.91"), "with loss"),
        (ct(transfer_syntax_uid="1.2.840.10008.1.2.4.103"), "no decoder"),
        (ct(transfer_syntax_uid="1.2.3"), "no decoder"),
        (ct(transfer_syntax_uid=""), "no decoder"),
        (ct(has_pixels=False), "no pixel data"),
        (ct(faults=("its pixel data is cut short",)), "cut short"),
        (ct(n_frames=3), "several frames"),
        (ct(derived_by_us=True), "A Luminode made it"),
        (mr(key={"component": "PHASE"}), "phase"),
        (mr(key={"component": "R"}), "phase"),
        (mr(**told(ComplexImageComponent=("MIXED",))), "phase"),
        (mr(key={"tiles": "44"}), "mosaic"),
        (mr(key={"deep_learning": "0.75\\High"}), "already denoised"),
        (ct(key={"iterative": "DLIR-H"}), "already denoised"),
        (ct(**told(ConvolutionKernel=("BODY SHARP AICE STD",))), "already denoised"),
        (ct(**told(SeriesDescription=("Thorax 1.0 TrueFidelity_H",))), "already denoised"),
        (mr(**told(SeriesDescription=("T2 FSE AIR Recon DL",))), "already denoised"),
        (mr(**told(ManufacturerModelName=("SubtleMR",))), "already denoised"),
        (mr(key={"siemens_type": "ORIGINAL\\PRIMARY\\M\\NORM\\DRB"}), "already denoised"),
        (mr(**told(SeriesDescription=("3-Plane Loc",))), "localizer"),
        (mr(**told(SeriesDescription=("3-pl T2* FGRE S",))), "localizer"),
        (mr(**told(SeriesDescription=("3 Axis locator",))), "localizer"),
        (mr(**told(ProtocolName=("AAHead_Scout_64ch",))), "localizer"),
        (mr(**told(SeriesDescription=("Survey_32ch_HeadCoil",))), "localizer"),
        (
            mr(
                "DERIVED\\PRIMARY\\OTHER",
                **told(SeriesDescription=("Apparent Diffusion Coefficient (mm2/s)",)),
            ),
            "map",
        ),
        (mr("DERIVED\\SECONDARY\\OTHER", **told(SeriesDescription=("COL: MIP",))), "projection"),
        (mr("DERIVED\\SECONDARY\\OTHER", **told(SeriesDescription=("T1_SUB_2min",))), "difference"),
        (mr(**told(DerivationCodeSequence=("113041",))), "map"),
        (mr(**told(DerivationCodeSequence=("113058",))), "map"),
        (ct(**told(DerivationCodeSequence=("113072",))), "reformat"),
        (ct(**told(DerivationCodeSequence=("113085", "113087"))), "already denoised"),
        (ct(**told(VolumeBasedCalculationTechnique=("MAX_IP",))), "projection"),
        (ct(**told(VolumetricProperties=("DISTORTED",))), "reformat"),
        (mr(sop_class=ENHANCED_MR, image_type="DERIVED\\PRIMARY\\DIFFUSION\\QUANTITY"), "map"),
    ],
)
def test_what_else_is_refused(instance: InstanceHeader, word: str) -> None:
    verdict = bar(instance)
    assert verdict is not None
    assert word in verdict.reason
    assert eligibility(merge([instance]), [instance]) == verdict.reason
    assert split([instance]).left_out == {instance.sop_instance_uid: verdict.reason}


@pytest.mark.parametrize(
    "instance",
    [
        ct(**told(SeriesDescription=("Scout view of the chest",), ProtocolName=("SURVEY",))),
        ct(**told(SeriesDescription=("Thorax MIP 10mm",))),
        ct(**told(RescaleType=())),
        ct(**told(RescaleType=("US",))),
        ct(**told(LossyImageCompression=("00",)), transfer_syntax_uid="1.2.840.10008.1.2.4.91"),
        ct(transfer_syntax_uid="1.2.840.10008.1.2.4.90"),
        ct(transfer_syntax_uid="1.2.840.10008.1.2.5"),
        ct(transfer_syntax_uid="1.2.840.10008.1.2.1.99"),
        ct(transfer_syntax_uid="1.2.840.10008.1.2.2"),
        ct(key={"iterative": "SS40:Slice"}),
        ct(**told(SeriesDescription=("STD BRAIN 1MM, iDose",))),
        ct(**told(MeasurementUnitsCodeSequence=("[hnsf'U]",))),
        ct(**told(DerivationCodeSequence=("113040", "113085"))),
        ct(**told(BurnedInAnnotation=("NO",))),
        ct(**told(LossyImageCompressionRatio=(1.0,), LossyImageCompressionMethod=("ISO_15444_1",))),
        ct(**told(LossyImageCompression=("00",), LossyImageCompressionRatio=(3.0,))),
        mr(**told(MeasurementUnitsCodeSequence=("[arb'U]",))),
        mr(**told(RescaleType=("normalized",))),
        mr(key={"component": "MAGNITUDE"}),
        mr(key={"component": "M"}),
        mr(key={"tiles": "1"}),
        mr(key={"deep_learning": "0.00\\Off"}),
        mr(**told(SeriesDescription=("sag T1 subtle lesion",))),
        mr(**told(SeriesDescription=("T2 MAP of the sub region",))),
        mr("DERIVED\\SECONDARY", **told(SeriesDescription=("anat-T1w",))),
        mr(**told(SeriesDescription=("Ax T2 PROPELLER",), ProtocolName=("Brain/3 Plane Loc + routine",))),
        mr(
            "DERIVED\\PRIMARY\\OTHER", **told(SeriesDescription=("WATER: LAVA",), ProtocolName=("Liver SUB",))
        ),
        mr(**told(BitsStored=(16,), HighBit=(15,), PixelRepresentation=(1,))),
        mr(sop_class=ENHANCED_MR, image_type="DERIVED\\PRIMARY\\T1\\MEAN"),
        mr(sop_class=ENHANCED_MR, image_type="DERIVED\\PRIMARY\\DIXON\\WATER"),
        ct(
            sop_class="1.2.840.10008.5.1.4.1.1.2.1",
            modality="CT",
            image_type="DERIVED\\PRIMARY\\VOLUME\\VMI",
            **told(RescaleSlope=(1.0,), RescaleIntercept=(0.0,)),
        ),
        mr(sop_class=ENHANCED_MR, image_type="DERIVED\\PRIMARY\\DIXON\\OPP_PHASE"),
        mr(sop_class=ENHANCED_MR, image_type="DERIVED\\PRIMARY\\DIFFUSION\\TRACEW"),
    ],
)
def test_what_is_not_refused(instance: InstanceHeader) -> None:
    assert bar(instance) is None
    assert eligibility(merge([instance]), [instance]) == ""
    assert split([instance]).eligible == (instance,)


def test_denoised_by_the_scanner_may_be_allowed() -> None:
    headers = [
        replace(h, attributes={**h.attributes, "ConvolutionKernel": ("FC08 AiCE",)}) for h in series([0, 1])
    ]
    assert "already denoised" in eligibility(merge(headers), headers)
    assert eligibility(merge(headers), headers, allow_vendor_denoised=True) == ""
    assert split(headers).eligible == ()
    assert split(headers, allow_vendor_denoised=True).eligible == tuple(headers)
    map_too = [
        replace(h, attributes={**h.attributes, "DerivationCodeSequence": ("113041",)}) for h in headers
    ]
    assert "map" in eligibility(merge(map_too), map_too, allow_vendor_denoised=True)


# mixed series


def scout(number: int, **how: Any) -> InstanceHeader:
    return header(frame((0, 0, 0), orientation=(0.0, 1.0, 0, 0, 0, -1.0), image_type=LOCALIZER),
                  number=number, uid=f"1.77.{number}", image_type=LOCALIZER, **how)  # fmt: skip


def test_a_localizer_among_the_slices_is_left_out() -> None:
    slices = series(range(10))
    headers = [scout(0), *slices, scout(99)]
    assert eligibility(merge(headers), headers) == ""
    eligible, left_out = split(headers)
    assert eligible == tuple(slices)
    assert left_out == {"1.77.0": contents.LOCALIZER.reason, "1.77.99": contents.LOCALIZER.reason}


def test_half_may_be_strangers_but_not_more() -> None:
    magnitude = series([0, 1, 2], sop_class=MR, image_type="ORIGINAL\\PRIMARY\\M_FFE\\M\\FFE")
    phase = series(
        [0, 1, 2], first=4, sop_class=MR, prefix="8", image_type="ORIGINAL\\PRIMARY\\PHASE MAP\\P\\FFE"
    )
    assert split([*magnitude, *phase]).eligible == tuple(magnitude)
    headers = [*magnitude[:2], *phase]
    assert eligibility(merge(headers), headers) == f"3 of 5 instances: {contents.PHASE.reason}"
    assert split(headers).eligible == ()
    assert len(split(headers).left_out) == 5


def test_strangers_among_slices_without_a_position_refuse_all() -> None:
    headers = [*series(range(5)), scout(9), header(frame(None), number=8, uid="1.88")]
    assert "position" in eligibility(merge(headers), headers)
    unplaced = [header(frame(None), number=n, uid=f"1.{n}") for n in range(3)]
    assert eligibility(merge(unplaced), unplaced) == ""


def test_a_slice_that_cannot_be_processed_refuses_all() -> None:
    slices = series(range(9))
    headers = [*slices, replace(slices[0], sop_instance_uid="1.5.5", faults=("its pixel data is cut short",))]
    reason = eligibility(merge(headers), headers)
    assert reason == "1 of 10 instances: Its header is wrong: its pixel data is cut short."
    assert split(headers).eligible == ()
    assert split(headers).left_out[slices[0].sop_instance_uid] == reason


def test_one_of_ours_refuses_all() -> None:
    headers = [*series(range(9)), header(frame((0, 0, 20)), number=44, uid="2.25.1", derived_by_us=True)]
    assert "Luminode" in eligibility(merge(headers), headers)
    assert split(headers).eligible == ()


def test_all_strangers_give_the_most_frequent_reason() -> None:
    headers = [
        scout(1),
        scout(2),
        header((), number=3, uid="1.3", sop_class="1.2.840.10008.5.1.4.1.1.7", modality="CT"),
    ]
    assert eligibility(merge(headers), headers) == f"2 of 3 instances: {contents.LOCALIZER.reason}"


def test_nothing_is_refused() -> None:
    assert eligibility(merge(series([0])), []) == "No instance of it can be read."
    assert split([]) == ((), {})


@pytest.mark.parametrize(
    "name", ["SmartPrep Series", "PreMonitoring  10.0", "Bolus Tracking", "TRACKER", "SureStart"]
)
def test_monitoring_by_name_and_place(name: str) -> None:
    attributes: dict[str, Values] = {"SeriesDescription": (name,)}
    still = [header(frame((0, 0, 5)), number=n, uid=f"1.{n}", attributes=attributes) for n in range(4)]
    assert eligibility(merge(still), still) == contents.MONITORING.reason
    moving = series(range(4), attributes=attributes)
    assert eligibility(merge(moving), moving) == ""
    assert eligibility(merge(still[:1]), still[:1]) == ""


def test_derivation_codes_mean_what_the_standard_says() -> None:
    meanings = {code: meaning for told in concepts["DCM"].values() for code, (meaning, _) in told.items()}
    assert not [code for code in contents.DERIVATIONS if code not in meanings]
    for code, verdict in contents.DERIVATIONS.items():
        if "rojection" in meanings[code] or "rendering" in meanings[code]:
            assert verdict is contents.PROJECTION
        if "reformatting" in meanings[code]:
            assert verdict is contents.REFORMAT
    assert "113085" not in contents.DERIVATIONS


_MEASURED = (
    *(
        "FatFrac: IDEAL IQ",
        "R2*: IDEAL IQ",
        "R2 Star: IDEAL IQ",
        "ECV map",
        "dADC",
        "ep2d_tra_FA",
        "FA (ASSET)",
    ),
    *(
        "Average DC",
        "Cerebral Blood Flow",
        "PDFF",
        "fat fraction",
        "B1 map",
        "MRE wave",
        "Elastogram (kPa)",
        "QSM",
    ),
    *("SUSCEPTIBILITY map", "Ktrans", "iAUC", "T2 mapping", "cT1", "Stiffness", "FUNCTOOL", "B0 fieldmap"),
)
"""Names of GE, Philips and Siemens series that are measurements, whose Image Type says OTHER."""


@pytest.mark.parametrize("name", _MEASURED)
def test_measurements_are_known_by_the_name_of_a_derived_series(name: str) -> None:
    verdict = bar(mr("DERIVED\\PRIMARY\\OTHER", **told(SeriesDescription=(name,))))
    assert verdict is contents.MAP
    assert bar(mr("ORIGINAL\\PRIMARY\\OTHER", **told(SeriesDescription=(name,)))) is None


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        *(
            (name, contents.MATERIAL)
            for name in ("Iodine (Water)", "VNC", "DE_LungPBV", "Z Effective", "Rho/Z")
        ),
        *((name, contents.MATERIAL) for name in ("Electron Density", "Iodine no Water [mg/ml]", "Uric Acid")),
        *((name, contents.REFORMAT) for name in ("Coronal MPR", "sag mpr", "Curved")),
        ("Bone Removed", contents.SEGMENTED),
    ],
)
def test_what_is_made_of_a_ct_is_known_by_its_name(name: str, verdict: contents.Verdict) -> None:
    assert bar(ct("DERIVED\\SECONDARY\\AXIAL", **told(SeriesDescription=(name,)))) is verdict
    assert bar(ct("ORIGINAL\\PRIMARY\\AXIAL", **told(SeriesDescription=(name,)))) is None


@pytest.mark.parametrize(("name", "verdict"), [("COL:TOF", contents.PROJECTION), ("PJN:TOF", contents.PROJECTION),
                                               ("FILT_PHA: SWAN", contents.PHASE)])  # fmt: skip
def test_what_ge_makes_of_an_angiography_or_a_swan(name: str, verdict: contents.Verdict) -> None:
    assert bar(mr("DERIVED\\PRIMARY\\OTHER", **told(SeriesDescription=(name,)))) is verdict


@pytest.mark.parametrize(
    "name",
    [
        *(
            "WATER: IDEAL IQ",
            "FAT: LAVA",
            "InPhase: LAVA",
            "trace DWI b1000",
            "T1 SPACE",
            "T1 SUB-millimeter",
        ),
        *(
            "T2* GRE",
            "t1_mpr_sag_iso",
            "arterial phase",
            "VIBE FA 10",
            "MRE cor",
            "anat-T1w",
            "Confirm position",
        ),
    ],
)
def test_anatomy_that_was_derived_is_no_measurement(name: str) -> None:
    assert bar(mr("DERIVED\\PRIMARY\\OTHER", **told(SeriesDescription=(name,)))) is None


@pytest.mark.parametrize("name", ["Thorax 1.0 B30f", "MonoE 70keV", "Vein phase iodine 350", "ax VRTX"])
def test_a_ct_that_was_derived_is_no_material(name: str) -> None:
    assert bar(ct("DERIVED\\SECONDARY\\AXIAL", **told(SeriesDescription=(name,)))) is None


@pytest.mark.parametrize("token", ["ADC_UNSPECIFIED", "PROC_ADC", "FATFRACTION", "T1MAP", "ECV"])
def test_tokens_of_maps(token: str) -> None:
    assert bar(mr(f"DERIVED\\PRIMARY\\{token}\\NONE")) is contents.MAP


def test_reasons_are_one_sentence_for_an_admin() -> None:
    for verdict in vars(contents).values():
        if isinstance(verdict, Verdict):
            assert verdict.reason.startswith("It ")
            assert verdict.reason.endswith(".")
            assert verdict.reason.count(". ") == 0


def test_profiles_name_their_modality() -> None:
    assert set(PROFILES) == {"CT", "MR"}
    assert all(name == profile.modality for name, profile in PROFILES.items())


def test_mosaics_that_were_taken_apart_into_frames_are_no_tiles() -> None:
    """Siemens XA keeps the word MOSAIC when it makes an enhanced object of a mosaic, a frame for a slice."""
    words = "ORIGINAL\\PRIMARY\\M\\ND\\MOSAIC"
    slices = [frame((0, 0, z), number=z + 1, image_type=words) for z in range(4)]
    assert bar(header(slices, sop_class=ENHANCED_MR, image_type=words)) is None
    times = [frame((0, 0, 0), number=n + 1, image_type=words) for n in range(4)]
    assert bar(header(times, sop_class=ENHANCED_MR, image_type=words)) == contents.TILED
