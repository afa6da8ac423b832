"""What scanners say in private elements about which frames belong together.

One row per element; the standard attribute, where there is one, is looked at first (placement.py). Sources:
the vendors' conformance statements as far as pydicom's private dictionary and the corpus confirm them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from node.dicom.view import View, decode
from node.model import Values

SIEMENS: Final = "SIEMENS MR HEADER"
SIEMENS_ENHANCED: Final = "SIEMENS MR SDI 02"
GE_PARAMETERS: Final = "GEMS_PARM_01"
GE_ACQUISITION: Final = "GEMS_ACQU_01"
GE_CT: Final = "GEHC_CT_ADVAPP_001"
PHILIPS: Final = "Philips Imaging DD 001"
PHILIPS_MR: Final = "Philips MR Imaging DD 001"
PHILIPS_MR_5: Final = "Philips MR Imaging DD 005"
UIH: Final = "Image Private Header"


@dataclass(frozen=True, slots=True)
class Private:
    """A private element: its maker and creator, its tag with block 00, its VR where the file says UN."""

    maker: str
    creator: str
    tag: int
    vr: str

    def values(self, view: View, manufacturer: str = "") -> Values:
        """Its values; ``manufacturer`` (in capitals) vouches for elements whose creator was dropped."""
        found = view.private(self.creator, self.tag, unowned=self.maker in manufacturer)
        return () if found is None else decode(found, view.charsets, self.vr)


B_VALUES: Final = (
    Private("SIEMENS", SIEMENS, 0x0019000C, "IS"),
    Private("GE ", GE_PARAMETERS, 0x00430039, "IS"),
    Private("PHILIPS", PHILIPS, 0x20010003, "FL"),
    Private("UIH", UIH, 0x00650009, "FD"),
)
DIRECTIONS: Final = (
    Private("SIEMENS", SIEMENS, 0x0019000E, "FD"),
    Private("UIH", UIH, 0x00650037, "FD"),
)
PHILIPS_DIRECTION: Final = tuple(Private("PHILIPS", PHILIPS_MR, 0x200500B0 + i, "FL") for i in range(3))
GE_DIRECTION: Final = tuple(Private("GE ", GE_ACQUISITION, 0x001900BB + i, "DS") for i in range(3))
"""Images without diffusion hold other things there: only to be asked where there is a b-value."""
DIRECTIONALITY: Final = (
    Private("SIEMENS", SIEMENS, 0x0019000D, "CS"),
    Private("PHILIPS", PHILIPS, 0x20010004, "CS"),
)

GE_COMPONENT: Final = Private("GE ", GE_PARAMETERS, 0x0043002F, "SS")
GE_COMPONENTS: Final = {0: "MAGNITUDE", 1: "PHASE", 2: "REAL", 3: "IMAGINARY"}
PHILIPS_COMPONENT: Final = Private("PHILIPS", PHILIPS_MR, 0x20050011, "CS")
PHILIPS_LABEL: Final = Private("PHILIPS", PHILIPS_MR_5, 0x20050029, "CS")
PHILIPS_PHASE_NUMBER: Final = Private("PHILIPS", PHILIPS, 0x20010008, "IS")

SIEMENS_TILES: Final = Private("SIEMENS", SIEMENS, 0x0019000A, "US")
GE_DEEP_LEARNING_MR: Final = Private("GE ", GE_PARAMETERS, 0x004300CA, "LO")
"""AIR Recon DL: strength and level, for example ``0.75\\High``; absent or empty without it."""
GE_ITERATIVE_CT: Final = Private("GE ", GE_CT, 0x00530042, "LO")
SIEMENS_TOKENS: Final = Private("SIEMENS", SIEMENS_ENHANCED, 0x00210075, "CS")
"""Image Type of an enhanced object in classic words: M, NORM, DRG ..."""


def first(rows: tuple[Private, ...], view: View, manufacturer: str = "") -> Values:
    """Values of the first row that has any."""
    for row in rows:
        values = row.values(view, manufacturer)
        if values:
            return values
    return ()


def vector(rows: tuple[Private, ...], view: View, manufacturer: str = "") -> tuple[float, ...]:
    """Numbers out of as many elements, or nothing."""
    found = [row.values(view, manufacturer) for row in rows]
    if not all(len(v) == 1 and isinstance(v[0], (int, float)) for v in found):
        return ()
    return tuple(float(v[0]) for v in found)
