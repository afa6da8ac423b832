"""How Luminode signs what it makes, and how a Luminode recognises what a Luminode made.

A derived object carries us in General Equipment (``equipment: standard``) or in Contributing Equipment
(``equipment: retain``), and always in a Derivation Code of our own coding scheme (PS3.3 C.7.5.1, C.12.1.1.5,
C.7.6.1.1.3). Any one of the three is enough: another system may have replaced the others on its way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from pydicom.dataset import Dataset

from node import __version__

PRODUCT: Final = "Luminode"
MANUFACTURER: Final = "Luminode"
MODEL: Final = "Luminode DICOM node"
CODE_SCHEME: Final = "99LUMINODE"
"""Coding Scheme Designator of our private codes (PS3.3 8.2: locally defined schemes begin with 99)."""

UID_PREFIX: Final = "2.25."
"""Root of every UID that we make (PS3.5 B.2). Others use it too: a prefix alone proves nothing."""

IMPLEMENTATION_CLASS_UID: Final = "2.25.76247336559299623844704323935584698132"
"""Who wrote this file or asked for this association (PS3.7 D.3.3.2, PS3.10 7.1)."""

IMPLEMENTATION_VERSION_NAME: Final = f"LUMINODE_{__version__}"[:16]

DERIVATION_CODES: Final[dict[str, tuple[str, str]]] = {
    "cnn": ("DLNR", "Deep learning noise reduction"),
    "gan": ("DLNR", "Deep learning noise reduction"),
    "autoencoder": ("DLNR", "Deep learning noise reduction"),
    "classical": ("NR", "Noise reduction"),
    "identity": ("UNCHANGED", "Pixel values unchanged"),
}
"""Engine family -> (Code Value <= 16, Code Meaning <= 64) in :data:`CODE_SCHEME`."""

RESAMPLED_CODE: Final = ("IPLD", "Interpolation with learned detail")
"""The same for engines that double the matrix, whatever their family: no noise is reduced, and nothing that
was not measured is called resolution."""


def _text(ds: Any, keyword: str) -> str:
    try:
        return str(ds.get(keyword, "") or "").strip()
    except Exception:  # a value that pydicom cannot read is not ours: we write plain ASCII
        return ""


def _items(ds: Any, keyword: str) -> Iterator[Any]:
    try:
        yield from ds.get(keyword) or ()
    except Exception:  # as above: a sequence that cannot be read was not written by us
        return


def _signed(ds: Any) -> bool:
    return _text(ds, "Manufacturer") == MANUFACTURER and _text(ds, "ManufacturerModelName") == MODEL


def _coded(ds: Any) -> bool:
    return any(
        _text(code, "CodingSchemeDesignator") == CODE_SCHEME for code in _items(ds, "DerivationCodeSequence")
    )


def is_ours(ds: Dataset) -> bool:
    """Whether a Luminode made this object, or a step on the way to it.

    Parameters
    ----------
    ds
        The top level of the data set, pixel data not needed. If read with ``specific_tags``, these must be
        among them: Manufacturer, ManufacturerModelName, ContributingEquipmentSequence,
        DerivationCodeSequence, SharedFunctionalGroupsSequence, PerFrameFunctionalGroupsSequence.

    Notes
    -----
    Never raises: values that cannot be read are not ours. Of per-frame functional groups the first item
    is looked at, for we mark every frame.
    """
    if _signed(ds) or _coded(ds):
        return True
    if any(_signed(item) for item in _items(ds, "ContributingEquipmentSequence")):
        return True
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in _items(ds, keyword):
            if any(_coded(derivation) for derivation in _items(group, "DerivationImageSequence")):
                return True
            break
    return False
