"""Stacks: every frame once, in order of space, never two volumes in one, gaps told."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.dicom.stacks import Stack, normal_of, regular, stacks
from node.model import InstanceHeader
from tests.headers import AXIAL, CORONAL, ENHANCED_MR, MR, SAGITTAL, frame, header, series


def uids(stack: Stack) -> list[str]:
    return [f.sop_instance_uid for f in stack.frames]


def steps(stack: Stack) -> str:
    return "".join("x-"[c] for c in stack.contiguous)


def shuffled(headers: list[InstanceHeader], seed: int = 7) -> list[InstanceHeader]:
    out = list(headers)
    random.Random(seed).shuffle(out)
    return out


def test_ascending_along_the_normal_whatever_the_numbers() -> None:
    headers = series([9.0, 6.0, 3.0, 0.0])
    (stack,) = stacks(shuffled(headers))
    assert uids(stack) == [h.sop_instance_uid for h in reversed(headers)]
    assert [f.position_mm for f in stack.frames] == [0.0, 3.0, 6.0, 9.0]
    assert stack.spacing_mm == (3.0, 0.5, 0.5)
    assert steps(stack) == "---x"


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL])
def test_orthogonal_planes(orientation: tuple[float, ...]) -> None:
    normal = normal_of(orientation)  # type: ignore[arg-type]
    headers = [
        header(frame([k * 2.0 * n for n in normal], orientation=orientation), number=k + 1, uid=f"1.{k + 1}")
        for k in range(5)
    ]
    (stack,) = stacks(shuffled(headers))
    assert uids(stack) == [h.sop_instance_uid for h in headers]
    assert steps(stack) == "----x"


def test_oblique_with_rounded_cosines() -> None:
    a, b = math.radians(17), math.radians(-23)
    row = (math.cos(a), math.sin(a), 0.0)
    column = (-math.sin(a) * math.cos(b), math.cos(a) * math.cos(b), math.sin(b))
    exact = (*row, *column)
    normal = normal_of(exact)
    headers = [
        header(
            frame([100 + k * 1.5 * n for n in normal], orientation=tuple(round(c, 3 + k % 3) for c in exact)),
            number=k + 1,
            uid=f"1.{k + 1}",
        )
        for k in range(12)
    ]
    (stack,) = stacks(shuffled(headers))
    assert uids(stack) == [h.sop_instance_uid for h in headers]
    assert steps(stack) == "-" * 11 + "x"
    assert stack.spacing_mm[0] == pytest.approx(1.5, abs=0.01)


def test_three_planes_are_three_stacks() -> None:
    headers = [
        header(
            frame([5.0 * k * n for n in normal_of(plane)], orientation=plane, thickness=5.0),  # type: ignore[arg-type]
            number=at * 3 + k,
            uid=f"1.{at}.{k}",
        )
        for at, plane in enumerate((AXIAL, CORONAL, SAGITTAL))
        for k in range(3)
    ]
    found = stacks(shuffled(headers))
    assert [uids(s) for s in found] == [[f"1.{at}.{k}" for k in range(3)] for at in range(3)]


def test_a_missing_slice_is_no_neighbourhood() -> None:
    (stack,) = stacks(series([0, 2, 4, 6, 10, 12, 14]))
    assert stack.spacing_mm[0] == 2.0
    assert steps(stack) == "---x--x"


def test_two_thicknesses_meet_in_a_gap() -> None:
    thick = series([12, 17, 22], first=5, thickness=5.0)
    thin = series([0, 2, 4, 6], thickness=2.0)
    (stack,) = stacks(shuffled(thin + thick))
    assert steps(stack) == "---xxxx"  # 5 mm apart is not the usual distance


def test_a_tilted_gantry_shears_by_more_than_a_pixel() -> None:
    tilt = math.radians(20)
    orientation = (1.0, 0.0, 0.0, 0.0, math.cos(tilt), -math.sin(tilt))
    for step, spacing, told in ((5.0, 0.5, "xxx"), (0.625, 0.7, "--x"), (5.0, None, "--x")):
        headers = [
            header(
                frame((0, 0, k * step), orientation=orientation, thickness=step,
                      spacing=(spacing, spacing) if spacing else None),
                number=k, uid=f"1.{k + 1}",
            )
            for k in range(3)
        ]  # fmt: skip
        (stack,) = stacks(headers)
        assert steps(stack) == told
        assert stack.spacing_mm[0] == pytest.approx(step * math.cos(tilt))


def test_two_slices_are_neighbours_if_no_further_apart_than_thick() -> None:
    assert steps(stacks(series([0, 5], thickness=5.0))[0]) == "-x"
    assert steps(stacks(series([0, 10], thickness=5.0))[0]) == "xx"
    assert steps(stacks(series([0, 5], thickness=None))[0]) == "xx"


def test_diffusion_volumes_never_mix() -> None:
    headers = []
    number = 0
    for z in range(14):
        for b_value, direction in (("0", ""), ("1000", "1\\0\\0"), ("1000", "0\\1\\0"), ("1000", "0\\0\\1")):
            number += 1
            key = {"b_value": b_value} | ({"direction": direction} if direction else {})
            headers.append(
                header(frame((0, 0, z * 2.5), thickness=2.5, **key), number=number, uid=f"1.{number}",
                       sop_class=MR)
            )  # fmt: skip
    found = stacks(shuffled(headers))
    assert [len(s) for s in found] == [14] * 4
    assert len({s.volume_key for s in found}) == 4
    assert all(steps(s) == "-" * 13 + "x" for s in found)
    assert [uids(s)[0] for s in found] == ["1.1", "1.2", "1.3", "1.4"]


@pytest.mark.parametrize(
    "name", ["echo", "echo_time", "temporal", "image_type", "kernel", "component", "tilt"]
)
def test_hard_keys_hold_apart_even_where_nothing_repeats(name: str) -> None:
    headers = [
        header(frame((0, 0, z), **{name: str(z % 2)}), number=z + 1, uid=f"1.{z + 1}") for z in range(8)
    ]
    assert [len(s) for s in stacks(headers)] == [4, 4]


def test_soft_keys_do_not_split_a_volume() -> None:
    headers = [
        header(frame((0, 0, z), acquisition=str(z // 2), acquired_at=f"1200{z:02}", repetition_time=str(z)),
               number=z + 1, uid=f"1.{z + 1}")
        for z in range(8)
    ]  # fmt: skip
    assert [len(s) for s in stacks(headers)] == [8]


def test_repeats_are_told_apart_by_acquisition_although_a_slice_is_missing() -> None:
    first = series(range(6), key={"acquisition": "1"}, prefix="1")
    second = series(range(6), first=7, key={"acquisition": "2"}, prefix="2")
    del first[2]
    found = stacks(shuffled(first + second))
    assert [len(s) for s in found] == [5, 6]
    assert all(len({u.split(".")[1] for u in uids(s)}) == 1 for s in found)
    assert steps(found[0]) == "-x--x"


def test_repeats_without_a_key_go_by_instance_number() -> None:
    volume_major = series(range(5)) + series(range(5), first=6) + series(range(5), first=11)
    found = stacks(shuffled(volume_major))
    assert [[int(u.split(".")[-1]) for u in uids(s)] for s in found] == [
        [1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12, 13, 14, 15]]  # fmt: skip
    position_major = [
        header(frame((0, 0, n // 3)), number=n * 7, uid=f"1.{n}") for n in range(15)
    ]  # numbered with holes, as Philips does
    found = stacks(shuffled(position_major))
    assert [[int(u.split(".")[-1]) % 3 for u in uids(s)] for s in found] == [[0] * 5, [1] * 5, [2] * 5]


def test_repeats_go_by_time_where_numbers_repeat_too() -> None:
    headers = [
        header(frame((0, 0, z), acquired_at=f"12{volume:02}{z:02}"), number=z, uid=f"1.{volume}.{z}")
        for volume in range(3)
        for z in range(4)
    ]
    found = stacks(shuffled(headers))
    assert [len(s) for s in found] == [4, 4, 4]
    assert all(len({u.split(".")[1] for u in uids(s)}) == 1 for s in found)


def test_repeats_that_nothing_tells_apart_stand_alone() -> None:
    unnumbered = [header(frame((0, 0, z)), number=None, uid=f"1.{n}.{z}") for n in range(2) for z in range(4)]
    assert [len(s) for s in stacks(unnumbered)] == [1] * 8
    uneven = series(range(5)) + series(range(4), first=6)
    assert [len(s) for s in stacks(uneven)] == [1] * 9
    wild = [header(frame((0, 0, n % 4)), number=[3, 8, 1, 6, 2, 5, 7, 4][n], uid=f"1.{n}") for n in range(8)]
    assert [len(s) for s in stacks(wild)] == [1] * 8


def test_two_shifted_volumes_that_went_unnoticed_are_no_neighbours() -> None:
    """Motion correction moves each volume a little: no position repeats, and all would mix."""
    headers = series([z * 3.0 for z in range(10)]) + series([z * 3.0 + 0.3 for z in range(10)], first=11)
    (stack,) = stacks(headers)
    assert steps(stack) == "x" * 20
    drifting = [
        h
        for n in range(3)
        for h in series([z * 3.0 + n * 0.3 for z in range(9)], first=n * 9 + 1, thickness=3.0)
    ]
    (stack,) = stacks(drifting)
    assert steps(stack) == "x" * 27


def test_nearly_equal_positions_repeat() -> None:
    headers = series([z * 3.0 for z in range(4)]) + series([z * 3.0 + 0.004 for z in range(4)], first=5)
    assert [len(s) for s in stacks(headers)] == [4, 4]


def test_frames_without_geometry_stand_alone() -> None:
    headers = [
        header(frame(None), number=2, uid="1.2"),
        header(frame((0, 0, 0), orientation=None), number=1, uid="1.1"),
        header((), number=3, uid="1.3"),
        header((), number=4, uid="1.4", n_frames=2),
        header(frame((0, 0, 0)), number=5, uid="1.5", has_pixels=False),
    ]
    found = stacks(headers)
    assert [(uids(s), s.frames[0].frame_number, s.contiguous) for s in found] == [
        (["1.1"], 1, (False,)), (["1.2"], 1, (False,)), (["1.3"], 1, (False,)),
        (["1.4"], 1, (False,)), (["1.4"], 2, (False,)),
    ]  # fmt: skip


def test_other_matrices_and_pixel_sizes_are_other_stacks() -> None:
    headers = [
        *series([0, 1], prefix="1"),
        *series([2, 3], first=3, prefix="2", rows=256, columns=256),
        *series([4, 5], first=5, prefix="3", spacing=(0.7, 0.7)),
        *series([6, 7], first=7, prefix="4", spacing=(0.70001, 0.7)),
    ]
    assert [len(s) for s in stacks(headers)] == [2, 2, 4]


def test_radial_planes_are_all_alone() -> None:
    headers = [
        header(frame((0, 0, 0), orientation=(math.cos(a / 99), math.sin(a / 99), 0, 0, 0, -1.0)),
               number=a, uid=f"1.{a}")
        for a in range(300)
    ]  # fmt: skip
    assert [len(s) for s in stacks(headers)] == [1] * 300


def multi_frame(n_volumes: int, n_slices: int, **key: str) -> InstanceHeader:
    frames = [
        frame((0, 0, z * 2.0), number=v * n_slices + z + 1, temporal=str(v), **key)
        for v in range(n_volumes)
        for z in range(n_slices)
    ]
    return header(frames, sop_class=ENHANCED_MR, uid="1.9", number=None)


def test_multi_frame_volumes() -> None:
    found = stacks([multi_frame(3, 4)])
    assert [[f.frame_number for f in s.frames] for s in found] == [
        [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]  # fmt: skip
    plain = replace(multi_frame(2, 4), frames=tuple(
        replace(f, volume_key=()) for f in multi_frame(2, 4).frames))  # fmt: skip
    assert [[f.frame_number for f in s.frames] for s in stacks([plain])] == [[1, 2, 3, 4], [5, 6, 7, 8]]


KEYS = st.fixed_dictionaries({}, optional={
    "echo": st.sampled_from("12"), "b_value": st.sampled_from(["0", "1000"]),
    "acquisition": st.sampled_from("123"), "acquired_at": st.sampled_from(["1", "2"]),
})  # fmt: skip
FRAMES = st.builds(
    lambda z, key, tilt, there: frame(
        (0.0, 0.0, z) if there else None, orientation=AXIAL if tilt else SAGITTAL, **key
    ),
    st.integers(-3, 3).map(float) | st.floats(-50, 50),
    KEYS,
    st.booleans(),
    st.integers(0, 9).map(bool),
)


@settings(max_examples=150)
@given(st.lists(st.tuples(FRAMES, st.none() | st.integers(0, 12)), max_size=14), st.integers(0, 9))
def test_every_frame_once_and_the_same_in_any_order(told: list[tuple[object, int | None]], seed: int) -> None:
    headers = [header(f, number=number, uid=f"1.{n}") for n, (f, number) in enumerate(told)]  # type: ignore[arg-type]
    found = stacks(headers)
    assert sorted(u for s in found for u in uids(s)) == sorted(h.sop_instance_uid for h in headers)
    assert stacks(shuffled(headers, seed)) == found
    for stack in found:
        assert len(stack.contiguous) == len(stack)
        assert not stack.contiguous[-1]
        positions = [f.position_mm for f in stack.frames]
        assert positions == sorted(positions, key=lambda p: p or 0.0)
        assert len(stack) == 1 or min(b - a for a, b in pairwise(positions)) > 0.01  # type: ignore[operator]
        members = [h.frames[0] for h in headers if h.sop_instance_uid in uids(stack)]
        for name in ("echo", "b_value"):
            assert len({dict(f.volume_key).get(name) for f in members}) == 1


# regular: what proves that nothing is missing


def pair_of_volumes(key: str) -> list[InstanceHeader]:
    return series(range(8), key={key: "1"}) + series(range(8), first=9, prefix="2", key={key: "2"})


def test_an_even_volume_is_proof() -> None:
    assert regular(series([z * 1.0 for z in range(60)], first=120)) == (
        True,
        "60 slices 1 mm apart, none missing",
    )


def test_overlapping_slices_and_declared_gaps_are_proof() -> None:
    assert regular(series([z * 2.0 for z in range(9)], thickness=3.0))[0]
    spaced = {"SpacingBetweenSlices": (-10.0,)}
    assert regular(series([z * 10.0 for z in range(9)], thickness=5.0, attributes=spaced))[0]


def test_rounded_positions_are_proof() -> None:
    assert regular(series([round(z * 0.625, 1) for z in range(40)], thickness=0.625))[0]


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ([], "nothing has come"),
        (series([0]), "1 slice proves nothing"),
        (series([0, 1]), "2 slices prove nothing"),
        (series([0, 1, 2]), "3 slices prove nothing"),
        (series([0, 1, 2, 4, 5]), "a gap of 2 mm where 1 mm"),
        (series([z * 2.0 for z in range(8)]), "further than their headers say"),
        (series(range(8), thickness=None), "no header says"),
        ([h for n, h in enumerate(series(range(8))) if n != 3], "a gap of 2 mm"),
        ([replace(h, instance_number=h.instance_number * 2) for h in series(range(8))], "7 instance numbers"),
        ([replace(h, instance_number=None) for h in series(range(8))], "without an instance number"),
        ([replace(h, instance_number=1) for h in series(range(8))], "instance numbers repeat"),
        ([*series(range(8)), header(frame(None), number=9, uid="1.99")], "without a position"),
        ([*series(range(8)), header((), number=9, uid="1.99", has_pixels=False)], "without pixels"),
        (series(range(8)) + series(range(5), first=9, prefix="2", key={"echo": "2"}), "same positions"),
        (series(range(8)) + series(range(8), first=9, prefix="2"), "repeated positions"),
        (series(range(8), key={"b_value": "800"}), "a diffusion series"),
        (series(range(8), attributes={"ScanningSequence": ("EP", "SE")}), "an echo planar series"),
        (series(range(8), attributes={"CardiacNumberOfImages": (20,)}), "a cine series"),
        (series(range(8), attributes={"NumberOfTemporalPositions": (3,)}), "1 of 3 temporal positions"),
        (pair_of_volumes("temporal"), "a dynamic series"),
        ([multi_frame(1, 4), multi_frame(1, 4)], "several multi-frame objects"),
        ([replace(multi_frame(1, 4), attributes={"ConcatenationUID": ("1.2",)})], "part of a concatenation"),
    ],
)  # fmt: skip
def test_what_is_no_proof(headers: list[InstanceHeader], why: str) -> None:
    held, because = regular(headers)
    assert not held
    assert why in because


def test_an_interleaved_transfer_is_no_proof() -> None:
    whole = [replace(h, attributes={**h.attributes, "SpacingBetweenSlices": (5.5,)})
             for h in series([z * 5.5 for z in range(12)], thickness=5.0)]  # fmt: skip
    assert regular(whole)[0]
    assert not regular(whole[::2])[0]
    renumbered = [replace(h, instance_number=n) for n, h in enumerate(whole[::2])]
    assert not regular(renumbered)[0]


def test_whole_echoes_and_counted_dynamics_are_proof() -> None:
    assert regular(pair_of_volumes("echo")) == (True, "2 volumes of 8 slices 1 mm apart, none missing")
    dynamic = [
        replace(h, attributes={**h.attributes, "NumberOfTemporalPositions": (2,)})
        for h in series(range(8), key={"temporal": "1"})
        + series(range(8), first=9, prefix="2", key={"temporal": "2"})
    ]
    assert regular(dynamic)[0]


def test_one_multi_frame_object_is_whole() -> None:
    assert regular([multi_frame(2, 4)]) == (True, "one multi-frame object with 8 frames is whole by itself")


@given(st.permutations(series([0, 1, 2, 3, 4, 5, 7])))
def test_the_verdict_does_not_depend_on_the_order(headers: list[InstanceHeader]) -> None:
    assert regular(headers) == regular(series([0, 1, 2, 3, 4, 5, 7]))
