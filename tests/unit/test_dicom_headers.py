"""The header of a series: the union of its instances, and what they promise together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.dicom.headers import MOST_VALUES, extend, merge, promise
from node.model import InstanceHeader, SeriesHeader
from tests.headers import frame, header, series


def test_a_series() -> None:
    headers = series([0, 2, 4, 6], thickness=2.0, attributes={"KVP": (120.0,)})
    merged = merge(headers)
    assert merged.modality == "CT"
    assert merged.shape == (4, 512, 512)
    assert merged.spacing_mm == (2.0, 0.5, 0.5)
    assert (merged.count, merged.n_frames) == (4, 4)
    assert merged.attributes["KVP"] == (120.0,)
    assert merged.attributes["ImageType"] == ("ORIGINAL", "PRIMARY", "AXIAL")
    assert not merged.derived_by_us


def test_the_largest_kind_speaks_for_a_mixed_series() -> None:
    scout = header(
        frame((0, 0, 0)), number=9, uid="1.99", rows=888, columns=512, image_type="O\\P\\LOCALIZER"
    )
    dose = header(
        (), number=10, uid="1.98", rows=600, columns=800, has_pixels=False, faults=("odd",), modality="SR"
    )
    merged = merge([scout, *series([0, 1, 2], thickness=1.0), dose])
    assert merged.shape == (3, 512, 512)
    assert merged.modality == "CT"
    assert merged.spacing_mm[0] == 1.0
    assert merged.n_frames == 4
    assert merged.attributes["ImageType"] == ("O", "P", "LOCALIZER", "ORIGINAL", "PRIMARY", "AXIAL")
    assert merged.faults == ("odd",)


def test_values_in_order_of_first_sight() -> None:
    headers = [header(frame((0, 0, n)), number=n, attributes={"X": (n % 3, "a")}) for n in range(9)]
    assert merge(headers).attributes["X"] == (0, "a", 1, 2)


def test_many_values_keep_their_extremes() -> None:
    headers = [
        header(frame((0, 0, n)), number=n, attributes={"SliceLocation": (float(n),)}) for n in range(1000)
    ]
    values = merge(headers).attributes["SliceLocation"]
    assert len(values) == MOST_VALUES
    assert min(values) == 0.0  # type: ignore[type-var]
    assert max(values) == 999.0  # type: ignore[type-var]
    texts = [
        header(frame((0, 0, n)), number=n, attributes={"AcquisitionTime": (str(n),)}) for n in range(1000)
    ]
    assert len(merge(texts).attributes["AcquisitionTime"]) == MOST_VALUES


def test_what_we_derived_marks_the_series() -> None:
    assert merge([*series([0, 1]), header(frame((0, 0, 2)), uid="1.9", derived_by_us=True)]).derived_by_us


def test_nothing_is_no_series() -> None:
    with pytest.raises(ValueError):
        merge([])


@given(st.lists(st.integers(0, 400), min_size=1, max_size=30), st.integers(0, 30))
def test_extending_is_merging_but_for_the_distance_of_slices(places: list[int], cut: int) -> None:
    headers = [
        header(frame((0, 0, z)), number=n, uid=f"1.{n}", attributes={"Z": (z, "t"), "L": (float(z),)})
        for n, z in enumerate(places)
    ]
    cut = min(max(cut, 1), len(headers))
    grown = extend(extend(None, headers[:cut]), headers[cut:])
    whole = merge(headers)
    for name in SeriesHeader.__slots__:
        if name != "spacing_mm":
            assert getattr(grown, name) == getattr(whole, name), name


def promising(count: int, numbers: list[int], **attributes: tuple[int, ...]) -> list[InstanceHeader]:
    return [
        header(frame((0, 0, n)), number=n, uid=f"1.{n}", expected_count=count, expected_because="X",
               attributes=dict(attributes))
        for n in numbers
    ]  # fmt: skip


def test_promises() -> None:
    assert promise(promising(5, [1, 2, 3])) == (5, "X")
    assert promise(promising(5, [1, 2, 3, 4, 5])) == (5, "X")
    assert promise(promising(0, [1])) == (0, "")
    assert promise([]) == (0, "")


def test_promises_that_are_not_believed() -> None:
    assert promise(promising(5, [1, 2, 7])) == (0, "")  # it counts one acquisition of several
    assert promise(promising(3, [1, 2, 3, 4])) == (0, "")
    running = [h for n in (1, 2, 3) for h in promising(n, [n])]  # a counter that grows with each image
    assert promise(running) == (0, "")
    two = promising(5, [1, 2], AcquisitionNumber=(1,)) + promising(5, [3], AcquisitionNumber=(2,))
    assert promise(two) == (0, "")
