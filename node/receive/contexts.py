"""Presentation contexts that the receiver accepts, prepared once per configuration.

pynetdicom copies every supported context for every association, which costs 50 ms with all storage classes.
Here the contexts are made once and never changed, and an association is given those that its peer proposed.
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
    # What travels with it: refusing one of these makes many scanners give up the whole job
    "1.2.840.10008.5.1.4.1.1.4.2": "MR Spectroscopy",
    "1.2.840.10008.5.1.4.1.1.4.3": "Enhanced MR Color",
    "1.2.840.10008.5.1.4.1.1.7": "Secondary Capture",
    "1.2.840.10008.5.1.4.1.1.7.1": "Multi-frame Single Bit Secondary Capture",
    "1.2.840.10008.5.1.4.1.1.7.2": "Multi-frame Grayscale Byte Secondary Capture",
    "1.2.840.10008.5.1.4.1.1.7.3": "Multi-frame Grayscale Word Secondary Capture",
    "1.2.840.10008.5.1.4.1.1.7.4": "Multi-frame True Color Secondary Capture",
    "1.2.840.10008.5.1.4.1.1.11.1": "Grayscale Softcopy Presentation State",
    "1.2.840.10008.5.1.4.1.1.11.2": "Color Softcopy Presentation State",
    "1.2.840.10008.5.1.4.1.1.11.3": "Pseudo-Color Softcopy Presentation State",
    "1.2.840.10008.5.1.4.1.1.11.4": "Blending Softcopy Presentation State",
    "1.2.840.10008.5.1.4.1.1.11.8": "Advanced Blending Presentation State",
    "1.2.840.10008.5.1.4.1.1.11.12": "Variable Modality LUT Softcopy Presentation State",
    "1.2.840.10008.5.1.4.1.1.30": "Parametric Map",
    "1.2.840.10008.5.1.4.1.1.66": "Raw Data",
    "1.2.840.10008.5.1.4.1.1.66.1": "Spatial Registration",
    "1.2.840.10008.5.1.4.1.1.66.2": "Spatial Fiducials",
    "1.2.840.10008.5.1.4.1.1.66.3": "Deformable Spatial Registration",
    "1.2.840.10008.5.1.4.1.1.66.4": "Segmentation",
    "1.2.840.10008.5.1.4.1.1.66.5": "Surface Segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation",
    "1.2.840.10008.5.1.4.1.1.67": "Real World Value Mapping",
    "1.2.840.10008.5.1.4.1.1.88.11": "Basic Text SR",
    "1.2.840.10008.5.1.4.1.1.88.22": "Enhanced SR",
    "1.2.840.10008.5.1.4.1.1.88.33": "Comprehensive SR",
    "1.2.840.10008.5.1.4.1.1.88.34": "Comprehensive 3D SR",
    "1.2.840.10008.5.1.4.1.1.88.35": "Extensible SR",
    "1.2.840.10008.5.1.4.1.1.88.59": "Key Object Selection",
    "1.2.840.10008.5.1.4.1.1.88.65": "Chest CAD SR",
    "1.2.840.10008.5.1.4.1.1.88.67": "X-Ray Radiation Dose SR",
    "1.2.840.10008.5.1.4.1.1.88.68": "Radiopharmaceutical Radiation Dose SR",
    "1.2.840.10008.5.1.4.1.1.88.73": "Patient Radiation Dose SR",
    "1.2.840.10008.5.1.4.1.1.88.76": "Enhanced X-Ray Radiation Dose SR",
    "1.2.840.10008.5.1.4.1.1.104.1": "Encapsulated PDF",
    "1.2.840.10008.5.1.4.1.1.128": "PET",
    "1.2.840.10008.5.1.4.1.1.128.1": "Legacy Converted Enhanced PET",
    "1.2.840.10008.5.1.4.1.1.130": "Enhanced PET",
    "1.2.840.10008.5.1.4.1.1.200.2": "CT Performed Procedure Protocol",
    "1.2.840.10008.5.1.4.1.1.481.2": "RT Dose",
    "1.2.840.10008.5.1.4.1.1.481.3": "RT Structure Set",
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
    """

    def __init__(
        self,
        private_classes: Iterable[str] = (),
        allowed: Iterable[str] | None = None,
        *,
        commitment: bool = False,
    ) -> None:
        self.commitment = commitment
        self.storage = STORAGE_CLASSES | frozenset(private_classes)
        syntaxes = transfer_syntaxes(allowed)
        self._by_class = {each: _context(each, syntaxes) for each in sorted(self.storage)}
        plain = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian)
        self._by_class[VERIFICATION] = _context(VERIFICATION, plain)
        if commitment:
            self._by_class[COMMITMENT] = _context(COMMITMENT, plain[:2])

    def for_storage(self, proposed: Iterable[PresentationContext]) -> bool:
        """Whether a peer proposes to store anything that we take."""
        return any(str(each.abstract_syntax) in self.storage for each in proposed)

    def supported(self, proposed: Iterable[PresentationContext]) -> list[PresentationContext]:
        """Of what we support, that which a peer proposed: shared, not copied, never to be changed."""
        wanted = dict.fromkeys(str(each.abstract_syntax) for each in proposed)
        return [self._by_class[each] for each in wanted if each in self._by_class]


def _context(abstract_syntax: str, syntaxes: Iterable[str]) -> PresentationContext:
    context = PresentationContext()
    context.abstract_syntax = UID(abstract_syntax)
    context.transfer_syntax = [UID(each) for each in syntaxes]
    return context
