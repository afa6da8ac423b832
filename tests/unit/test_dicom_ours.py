"""What Luminode made is recognised by any of its three marks; what others made never is."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset

from node.dicom.elements import Element
from node.dicom.encode import encode
from node.dicom.ours import CODE_SCHEME, DERIVATION_CODES, MANUFACTURER, MODEL, is_ours
from node.dicom.part10 import file_meta
from node.dicom.source import Source
from tests.deriving import derived
from tests.dicom_samples import CT_CLASS, EXPLICIT, enhanced, how, image, part10, read


@pytest.mark.parametrize("equipment", ["standard", "retain"])
@pytest.mark.parametrize("source", [image, enhanced])
def test_what_we_made_is_ours_by_any_mark(equipment: str, source: object) -> None:
    ds = derived(source(), how(equipment=equipment))  # type: ignore[operator]
    assert is_ours(ds)
    groups = "PerFrameFunctionalGroupsSequence"
    if groups in ds:
        delattr(ds, groups)
    else:
        del ds.DerivationCodeSequence
    assert is_ours(ds)  # by equipment


@pytest.mark.parametrize("source", [image, enhanced])
def test_the_code_is_enough(source: object) -> None:
    ds = derived(source())  # type: ignore[operator]
    ds.Manufacturer, ds.ManufacturerModelName = "Other", "Workstation"
    del ds.ContributingEquipmentSequence
    assert is_ours(ds)


def test_what_others_made_is_not() -> None:
    assert not is_ours(Dataset())
    assert not is_ours(image())
    assert not is_ours(image(Manufacturer=MANUFACTURER, ManufacturerModelName="Phantom"))
    assert not is_ours(image(Manufacturer="Other", ManufacturerModelName=MODEL))
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "NR", "99OTHER", "Noise"
    assert not is_ours(image(DerivationCodeSequence=[code]))
    assert not is_ours(enhanced())


def test_values_that_cannot_be_read_are_not_ours() -> None:
    elements = Source.open(part10(image(Manufacturer=["a", "b"]))).elements
    for tag in (0x00089215, 0x0018A001, 0x52009229, 0x52009230):  # sequences, by the dictionary
        for vr in ("LO", "UN"):
            elements[tag] = Element(tag, vr, b"\x01\x02\x03\x04")
            data = file_meta(CT_CLASS, "1.2.3", EXPLICIT) + encode(elements, EXPLICIT)
            assert not is_ours(read(data))


def test_codes_fit_their_elements() -> None:
    assert CODE_SCHEME.startswith("99")
    assert len(CODE_SCHEME) <= 16
    for value, meaning in DERIVATION_CODES.values():
        assert len(value) <= 16
        assert len(meaning) <= 64
