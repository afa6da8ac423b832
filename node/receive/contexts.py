"""Presentation contexts that the receiver accepts, made once per configuration.

pynetdicom copies every supported context for every association, which costs 50 ms with all storage classes.
Here each context is made once and never changed, and an association is given those that its peer proposed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from pydicom import uid
from pydicom.uid import UID, AllTransferSyntaxes
from pynetdicom.presentation import PresentationContext

from node.dicom.commitment import PUSH_MODEL

VERIFICATION: Final = "1.2.840.10008.1.1"
COMMITMENT: Final = PUSH_MODEL

_CLASSES: Final[Mapping[str, str]] = {
    # What this node enhances
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "Legacy Converted Enhanced CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "Enhanced MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "Legacy Converted Enhanced MR",
    # All else that is stored: refusing one of these makes many scanners give up the whole job, and where the node is
    # the only way to PACS, nothing of it must be lost.
    "1.2.840.10008.5.1.4.1.1.1": "Computed Radiography",
    "1.2.840.10008.5.1.4.1.1.1.1": "Digital X-Ray For Presentation",
    "1.2.840.10008.5.1.4.1.1.1.1.1": "Digital X-Ray For Processing",
    "1.2.840.10008.5.1.4.1.1.1.2": "Digital Mammography X-Ray For Presentation",
    "1.2.840.10008.5.1.4.1.1.1.2.1": "Digital Mammography X-Ray For Processing",
    "1.2.840.10008.5.1.4.1.1.1.3": "Digital Intra-Oral X-Ray For Presentation",
    "1.2.840.10008.5.1.4.1.1.1.3.1": "Digital Intra-Oral X-Ray For Processing",
    "1.2.840.10008.5.1.4.1.1.3": "Ultrasound Multi-frame (retired)",
    "1.2.840.10008.5.1.4.1.1.3.1": "Ultrasound Multi-frame",
    "1.2.840.10008.5.1.4.1.1.4.2": "MR Spectroscopy",
    "1.2.840.10008.5.1.4.1.1.4.3": "Enhanced MR Color",
    "1.2.840.10008.5.1.4.1.1.5": "Nuclear Medicine (retired)",
    "1.2.840.10008.5.1.4.1.1.6": "Ultrasound (retired)",
    "1.2.840.10008.5.1.4.1.1.6.1": "Ultrasound",
    "1.2.840.10008.5.1.4.1.1.6.2": "Enhanced US Volume",
    "1.2.840.10008.5.1.4.1.1.6.3": "Photoacoustic",
    "1.2.840.10008.5.1.4.1.1.7": "Secondary Capture",
    "1.2.840.10008.5.1.4.1.1.7.1": "Multi-frame Single Bit Secondary Capture",
    "1.2.840.10008.5.1.4.1.1.7.2": "Multi-frame Grayscale Byte Secondary Capture",
    "1.2.840.10008.5.1.4.1.1.7.3": "Multi-frame Grayscale Word Secondary Capture",
    "1.2.840.10008.5.1.4.1.1.7.4": "Multi-frame True Color Secondary Capture",
    "1.2.840.10008.5.1.4.1.1.8": "Standalone Overlay (retired)",
    "1.2.840.10008.5.1.4.1.1.9": "Standalone Curve (retired)",
    "1.2.840.10008.5.1.4.1.1.9.1": "Waveform (trial)",
    "1.2.840.10008.5.1.4.1.1.9.1.1": "12-lead ECG Waveform",
    "1.2.840.10008.5.1.4.1.1.9.1.2": "General ECG Waveform",
    "1.2.840.10008.5.1.4.1.1.9.1.3": "Ambulatory ECG Waveform",
    "1.2.840.10008.5.1.4.1.1.9.1.4": "General 32-bit ECG Waveform",
    "1.2.840.10008.5.1.4.1.1.9.2.1": "Hemodynamic Waveform",
    "1.2.840.10008.5.1.4.1.1.9.3.1": "Cardiac Electrophysiology Waveform",
    "1.2.840.10008.5.1.4.1.1.9.4.1": "Basic Voice Audio Waveform",
    "1.2.840.10008.5.1.4.1.1.9.4.2": "General Audio Waveform",
    "1.2.840.10008.5.1.4.1.1.9.5.1": "Arterial Pulse Waveform",
    "1.2.840.10008.5.1.4.1.1.9.6.1": "Respiratory Waveform",
    "1.2.840.10008.5.1.4.1.1.9.6.2": "Multi-channel Respiratory Waveform",
    "1.2.840.10008.5.1.4.1.1.9.7.1": "Routine Scalp Electroencephalogram Waveform",
    "1.2.840.10008.5.1.4.1.1.9.7.2": "Electromyogram Waveform",
    "1.2.840.10008.5.1.4.1.1.9.7.3": "Electrooculogram Waveform",
    "1.2.840.10008.5.1.4.1.1.9.7.4": "Sleep Electroencephalogram Waveform",
    "1.2.840.10008.5.1.4.1.1.9.8.1": "Body Position Waveform",
    "1.2.840.10008.5.1.4.1.1.9.100.1": "Waveform Presentation State",
    "1.2.840.10008.5.1.4.1.1.9.100.2": "Waveform Acquisition Presentation State",
    "1.2.840.10008.5.1.4.1.1.10": "Standalone Modality LUT (retired)",
    "1.2.840.10008.5.1.4.1.1.11": "Standalone VOI LUT (retired)",
    "1.2.840.10008.5.1.4.1.1.11.1": "Grayscale Softcopy Presentation State",
    "1.2.840.10008.5.1.4.1.1.11.2": "Color Softcopy Presentation State",
    "1.2.840.10008.5.1.4.1.1.11.3": "Pseudo-Color Softcopy Presentation State",
    "1.2.840.10008.5.1.4.1.1.11.4": "Blending Softcopy Presentation State",
    "1.2.840.10008.5.1.4.1.1.11.5": "XA/XRF Grayscale Softcopy Presentation State",
    "1.2.840.10008.5.1.4.1.1.11.6": "Grayscale Planar MPR Volumetric Presentation State",
    "1.2.840.10008.5.1.4.1.1.11.7": "Compositing Planar MPR Volumetric Presentation State",
    "1.2.840.10008.5.1.4.1.1.11.8": "Advanced Blending Presentation State",
    "1.2.840.10008.5.1.4.1.1.11.9": "Volume Rendering Volumetric Presentation State",
    "1.2.840.10008.5.1.4.1.1.11.10": "Segmented Volume Rendering Volumetric Presentation State",
    "1.2.840.10008.5.1.4.1.1.11.11": "Multiple Volume Rendering Volumetric Presentation State",
    "1.2.840.10008.5.1.4.1.1.11.12": "Variable Modality LUT Softcopy Presentation State",
    "1.2.840.10008.5.1.4.1.1.12.1": "X-Ray Angiographic",
    "1.2.840.10008.5.1.4.1.1.12.1.1": "Enhanced XA",
    "1.2.840.10008.5.1.4.1.1.12.2": "X-Ray Radiofluoroscopic",
    "1.2.840.10008.5.1.4.1.1.12.2.1": "Enhanced XRF",
    "1.2.840.10008.5.1.4.1.1.12.3": "X-Ray Angiographic Bi-Plane (retired)",
    "1.2.840.10008.5.1.4.1.1.13.1.1": "X-Ray 3D Angiographic",
    "1.2.840.10008.5.1.4.1.1.13.1.2": "X-Ray 3D Craniofacial",
    "1.2.840.10008.5.1.4.1.1.13.1.3": "Breast Tomosynthesis",
    "1.2.840.10008.5.1.4.1.1.13.1.4": "Breast Projection X-Ray For Presentation",
    "1.2.840.10008.5.1.4.1.1.13.1.5": "Breast Projection X-Ray For Processing",
    "1.2.840.10008.5.1.4.1.1.14.1": "Intravascular Optical Coherence Tomography For Presentation",
    "1.2.840.10008.5.1.4.1.1.14.2": "Intravascular Optical Coherence Tomography For Processing",
    "1.2.840.10008.5.1.4.1.1.20": "Nuclear Medicine",
    "1.2.840.10008.5.1.4.1.1.30": "Parametric Map",
    "1.2.840.10008.5.1.4.1.1.66": "Raw Data",
    "1.2.840.10008.5.1.4.1.1.66.1": "Spatial Registration",
    "1.2.840.10008.5.1.4.1.1.66.2": "Spatial Fiducials",
    "1.2.840.10008.5.1.4.1.1.66.3": "Deformable Spatial Registration",
    "1.2.840.10008.5.1.4.1.1.66.4": "Segmentation",
    "1.2.840.10008.5.1.4.1.1.66.5": "Surface Segmentation",
    "1.2.840.10008.5.1.4.1.1.66.6": "Tractography Results",
    "1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation",
    "1.2.840.10008.5.1.4.1.1.66.8": "Height Map Segmentation",
    "1.2.840.10008.5.1.4.1.1.67": "Real World Value Mapping",
    "1.2.840.10008.5.1.4.1.1.68.1": "Surface Scan Mesh",
    "1.2.840.10008.5.1.4.1.1.68.2": "Surface Scan Point Cloud",
    "1.2.840.10008.5.1.4.1.1.77.1": "VL (trial)",
    "1.2.840.10008.5.1.4.1.1.77.1.1": "VL Endoscopic",
    "1.2.840.10008.5.1.4.1.1.77.1.1.1": "Video Endoscopic",
    "1.2.840.10008.5.1.4.1.1.77.1.2": "VL Microscopic",
    "1.2.840.10008.5.1.4.1.1.77.1.2.1": "Video Microscopic",
    "1.2.840.10008.5.1.4.1.1.77.1.3": "VL Slide-Coordinates Microscopic",
    "1.2.840.10008.5.1.4.1.1.77.1.4": "VL Photographic",
    "1.2.840.10008.5.1.4.1.1.77.1.4.1": "Video Photographic",
    "1.2.840.10008.5.1.4.1.1.77.1.5.1": "Ophthalmic Photography 8 Bit",
    "1.2.840.10008.5.1.4.1.1.77.1.5.2": "Ophthalmic Photography 16 Bit",
    "1.2.840.10008.5.1.4.1.1.77.1.5.3": "Stereometric Relationship",
    "1.2.840.10008.5.1.4.1.1.77.1.5.4": "Ophthalmic Tomography",
    "1.2.840.10008.5.1.4.1.1.77.1.5.5": "Wide Field Ophthalmic Photography Stereographic Projection",
    "1.2.840.10008.5.1.4.1.1.77.1.5.6": "Wide Field Ophthalmic Photography 3D Coordinates",
    "1.2.840.10008.5.1.4.1.1.77.1.5.7": "Ophthalmic Optical Coherence Tomography En Face",
    "1.2.840.10008.5.1.4.1.1.77.1.5.8": "Ophthalmic Optical Coherence Tomography B-scan Volume Analysis",
    "1.2.840.10008.5.1.4.1.1.77.1.6": "VL Whole Slide Microscopy",
    "1.2.840.10008.5.1.4.1.1.77.1.7": "Dermoscopic Photography",
    "1.2.840.10008.5.1.4.1.1.77.1.8": "Confocal Microscopy",
    "1.2.840.10008.5.1.4.1.1.77.1.9": "Confocal Microscopy Tiled Pyramidal",
    "1.2.840.10008.5.1.4.1.1.77.2": "VL Multi-frame (trial)",
    "1.2.840.10008.5.1.4.1.1.78.1": "Lensometry Measurements",
    "1.2.840.10008.5.1.4.1.1.78.2": "Autorefraction Measurements",
    "1.2.840.10008.5.1.4.1.1.78.3": "Keratometry Measurements",
    "1.2.840.10008.5.1.4.1.1.78.4": "Subjective Refraction Measurements",
    "1.2.840.10008.5.1.4.1.1.78.5": "Visual Acuity Measurements",
    "1.2.840.10008.5.1.4.1.1.78.6": "Spectacle Prescription Report",
    "1.2.840.10008.5.1.4.1.1.78.7": "Ophthalmic Axial Measurements",
    "1.2.840.10008.5.1.4.1.1.78.8": "Intraocular Lens Calculations",
    "1.2.840.10008.5.1.4.1.1.79.1": "Macular Grid Thickness and Volume Report",
    "1.2.840.10008.5.1.4.1.1.80.1": "Ophthalmic Visual Field Static Perimetry Measurements",
    "1.2.840.10008.5.1.4.1.1.81.1": "Ophthalmic Thickness Map",
    "1.2.840.10008.5.1.4.1.1.82.1": "Corneal Topography Map",
    "1.2.840.10008.5.1.4.1.1.88.1": "Text SR (trial)",
    "1.2.840.10008.5.1.4.1.1.88.2": "Audio SR (trial)",
    "1.2.840.10008.5.1.4.1.1.88.3": "Detail SR (trial)",
    "1.2.840.10008.5.1.4.1.1.88.4": "Comprehensive SR (trial)",
    "1.2.840.10008.5.1.4.1.1.88.11": "Basic Text SR",
    "1.2.840.10008.5.1.4.1.1.88.22": "Enhanced SR",
    "1.2.840.10008.5.1.4.1.1.88.33": "Comprehensive SR",
    "1.2.840.10008.5.1.4.1.1.88.34": "Comprehensive 3D SR",
    "1.2.840.10008.5.1.4.1.1.88.35": "Extensible SR",
    "1.2.840.10008.5.1.4.1.1.88.40": "Procedure Log",
    "1.2.840.10008.5.1.4.1.1.88.50": "Mammography CAD SR",
    "1.2.840.10008.5.1.4.1.1.88.59": "Key Object Selection",
    "1.2.840.10008.5.1.4.1.1.88.65": "Chest CAD SR",
    "1.2.840.10008.5.1.4.1.1.88.67": "X-Ray Radiation Dose SR",
    "1.2.840.10008.5.1.4.1.1.88.68": "Radiopharmaceutical Radiation Dose SR",
    "1.2.840.10008.5.1.4.1.1.88.69": "Colon CAD SR",
    "1.2.840.10008.5.1.4.1.1.88.70": "Implantation Plan SR",
    "1.2.840.10008.5.1.4.1.1.88.71": "Acquisition Context SR",
    "1.2.840.10008.5.1.4.1.1.88.72": "Simplified Adult Echo SR",
    "1.2.840.10008.5.1.4.1.1.88.73": "Patient Radiation Dose SR",
    "1.2.840.10008.5.1.4.1.1.88.74": "Planned Imaging Agent Administration SR",
    "1.2.840.10008.5.1.4.1.1.88.75": "Performed Imaging Agent Administration SR",
    "1.2.840.10008.5.1.4.1.1.88.76": "Enhanced X-Ray Radiation Dose SR",
    "1.2.840.10008.5.1.4.1.1.88.77": "Waveform Annotation SR",
    "1.2.840.10008.5.1.4.1.1.90.1": "Content Assessment Results",
    "1.2.840.10008.5.1.4.1.1.91.1": "Microscopy Bulk Simple Annotations",
    "1.2.840.10008.5.1.4.1.1.104.1": "Encapsulated PDF",
    "1.2.840.10008.5.1.4.1.1.104.2": "Encapsulated CDA",
    "1.2.840.10008.5.1.4.1.1.104.3": "Encapsulated STL",
    "1.2.840.10008.5.1.4.1.1.104.4": "Encapsulated OBJ",
    "1.2.840.10008.5.1.4.1.1.104.5": "Encapsulated MTL",
    "1.2.840.10008.5.1.4.1.1.128": "PET",
    "1.2.840.10008.5.1.4.1.1.128.1": "Legacy Converted Enhanced PET",
    "1.2.840.10008.5.1.4.1.1.129": "Standalone PET Curve (retired)",
    "1.2.840.10008.5.1.4.1.1.130": "Enhanced PET",
    "1.2.840.10008.5.1.4.1.1.131": "Basic Structured Display",
    "1.2.840.10008.5.1.4.1.1.200.1": "CT Defined Procedure Protocol",
    "1.2.840.10008.5.1.4.1.1.200.2": "CT Performed Procedure Protocol",
    "1.2.840.10008.5.1.4.1.1.200.3": "Protocol Approval",
    "1.2.840.10008.5.1.4.1.1.200.7": "XA Defined Procedure Protocol",
    "1.2.840.10008.5.1.4.1.1.200.8": "XA Performed Procedure Protocol",
    "1.2.840.10008.5.1.4.1.1.481.1": "RT",
    "1.2.840.10008.5.1.4.1.1.481.2": "RT Dose",
    "1.2.840.10008.5.1.4.1.1.481.3": "RT Structure Set",
    "1.2.840.10008.5.1.4.1.1.481.4": "RT Beams Treatment Record",
    "1.2.840.10008.5.1.4.1.1.481.5": "RT Plan",
    "1.2.840.10008.5.1.4.1.1.481.6": "RT Brachy Treatment Record",
    "1.2.840.10008.5.1.4.1.1.481.7": "RT Treatment Summary Record",
    "1.2.840.10008.5.1.4.1.1.481.8": "RT Ion Plan",
    "1.2.840.10008.5.1.4.1.1.481.9": "RT Ion Beams Treatment Record",
    "1.2.840.10008.5.1.4.1.1.481.10": "RT Physician Intent",
    "1.2.840.10008.5.1.4.1.1.481.11": "RT Segment Annotation",
    "1.2.840.10008.5.1.4.1.1.481.12": "RT Radiation Set",
    "1.2.840.10008.5.1.4.1.1.481.13": "C-Arm Photon-Electron Radiation",
    "1.2.840.10008.5.1.4.1.1.481.14": "Tomotherapeutic Radiation",
    "1.2.840.10008.5.1.4.1.1.481.15": "Robotic-Arm Radiation",
    "1.2.840.10008.5.1.4.1.1.481.16": "RT Radiation Record Set",
    "1.2.840.10008.5.1.4.1.1.481.17": "RT Radiation Salvage Record",
    "1.2.840.10008.5.1.4.1.1.481.18": "Tomotherapeutic Radiation Record",
    "1.2.840.10008.5.1.4.1.1.481.19": "C-Arm Photon-Electron Radiation Record",
    "1.2.840.10008.5.1.4.1.1.481.20": "Robotic Radiation Record",
    "1.2.840.10008.5.1.4.1.1.481.21": "RT Radiation Set Delivery Instruction",
    "1.2.840.10008.5.1.4.1.1.481.22": "RT Treatment Preparation",
    "1.2.840.10008.5.1.4.1.1.481.23": "Enhanced RT",
    "1.2.840.10008.5.1.4.1.1.481.24": "Enhanced Continuous RT",
    "1.2.840.10008.5.1.4.1.1.481.25": "RT Patient Position Acquisition Instruction",
    "1.2.840.10008.5.1.4.1.1.601.1": "Eddy Current",
    "1.2.840.10008.5.1.4.1.1.601.2": "Eddy Current Multi-frame",
    "1.2.840.10008.5.1.4.34.7": "RT Beams Delivery Instruction",
    "1.2.840.10008.5.1.4.34.10": "RT Brachy Application Setup Delivery Instruction",
}
"""SOP classes of the Storage service (PS3.4 B.5, PS3.6 Annex A) and what people call them."""

STORAGE_CLASSES: Final = frozenset(_CLASSES)

_PREFERRED: Final[tuple[str, ...]] = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.JPEGLosslessSV1,
    uid.JPEGLossless,
    uid.RLELossless,
    uid.JPEG2000MCLossless,
    uid.DeflatedExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
)
"""Order of choice where a peer offers several in one context: what can be read without a decoder, then what
loses nothing. Lossy ones follow, taken only where nothing else is offered."""


def transfer_syntaxes(allowed: Iterable[str] | None = None) -> tuple[str, ...]:
    """Transfer syntaxes in order of preference.

    Parameters
    ----------
    allowed
        UIDs to keep to; None is every one that pydicom knows.
    """
    known = dict.fromkeys((*_PREFERRED, *AllTransferSyntaxes))
    if allowed is None:
        return tuple(str(each) for each in known)
    wanted = list(allowed)
    return (*(str(each) for each in known if each in wanted), *(each for each in wanted if each not in known))


_PLAIN: Final = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian)


class Contexts:
    """The supported presentation contexts of one configuration.

    Parameters
    ----------
    private_classes
        Further abstract syntaxes to store.
    allowed
        Transfer syntaxes for storage; None is all that are known.
    commitment
        Whether storage commitment is offered.
    reports
        Whether destinations call with its results, as its providers.
    """

    def __init__(
        self,
        private_classes: Iterable[str] = (),
        allowed: Iterable[str] | None = None,
        *,
        commitment: bool = False,
        reports: bool = False,
    ) -> None:
        self.commitment, self.reports = commitment, reports
        self.storage = STORAGE_CLASSES | frozenset(private_classes)
        self._syntaxes = transfer_syntaxes(allowed)
        self._by_class = {VERIFICATION: _context(VERIFICATION, _PLAIN)}
        if commitment or reports:
            self._by_class[COMMITMENT] = _context(COMMITMENT, _PLAIN[:2])
        if reports:
            self._by_class[COMMITMENT].scu_role = commitment
            self._by_class[COMMITMENT].scp_role = True

    def for_storage(self, proposed: Iterable[PresentationContext]) -> bool:
        """Whether a peer proposes to store anything that we take."""
        return any(str(each.abstract_syntax) in self.storage for each in proposed)

    def only_reports(self, proposed: Iterable[PresentationContext]) -> bool:
        """Whether a peer proposes nothing but to tell results of storage commitment, and to be verified."""
        told = {str(each.abstract_syntax) for each in proposed}
        return self.reports and COMMITMENT in told and told <= {COMMITMENT, VERIFICATION}

    def supported(
        self, proposed: Iterable[PresentationContext], *, tells: bool = False
    ) -> list[PresentationContext]:
        """Of what we support, that which a peer proposed: shared, not copied, never to be changed.

        Parameters
        ----------
        tells
            The peer is a destination that may tell results of storage commitment.
        """
        wanted = dict.fromkeys(str(each.abstract_syntax) for each in proposed)
        if not self.commitment and not tells:  # who would ask for it must see that it is not offered
            wanted.pop(COMMITMENT, None)
        return [found for found in map(self._supported, wanted) if found is not None]

    def _supported(self, abstract_syntax: str) -> PresentationContext | None:
        """Made when it is first asked for: few peers propose more than ten of them."""
        found = self._by_class.get(abstract_syntax)
        if found is None and abstract_syntax in self.storage:
            found = self._by_class[abstract_syntax] = _context(abstract_syntax, self._syntaxes)
        return found


def _context(abstract_syntax: str, syntaxes: Iterable[str]) -> PresentationContext:
    context = PresentationContext()
    context.abstract_syntax = UID(abstract_syntax)
    context.transfer_syntax = [UID(each) for each in syntaxes]
    return context
