"""Frames in the order of space: what may be whose neighbour, and where there is a gap.

A *stack* holds frames of one kind (equal hard volume key, orientation, matrix, pixel spacing) of one volume,
ascending along the normal of the slices. Slices are never assumed to be evenly spaced or unsheared:
``contiguous`` says for each pair whether an engine may look from one to the other.

:func:`regular` asks of the same stacks whether they prove that nothing is missing: the release rung of the
completeness ladder (gather/complete.py). A yes closes a series at once, a no merely lets it wait for the
quiet time: doubt is a no.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple, TypeAlias

from node.dicom.placement import SOFT, Key
from node.dicom.volumes import SAME_MM, Placed, volumes
from node.model import FrameHeader, InstanceHeader

Orientation: TypeAlias = tuple[float, float, float, float, float, float]

TURNED: Final = 1e-3
"""Direction cosines that differ by less are the same: half a pixel at the edge of a large matrix."""
SCALED: Final = 1e-3
"""Pixel spacings that differ by a smaller share are the same."""
UNEVEN: Final = 0.25
"""A gap may differ by this share from the usual one: rounded positions do, a missing slice is 100 % off."""
CROWDED: Final = 0.15
"""No reconstruction steps by less of its slice thickness; volumes that moved a little look like that."""
SHEARED: Final = 1.0
"""Pixels by which consecutive slices may be shifted against each other, as a tilted gantry does."""
FEWEST_SLICES: Final = 4
"""Of fewer, :func:`regular` draws no conclusion."""
_MANY_ORIENTATIONS: Final = 256


@dataclass(frozen=True, slots=True)
class StackFrame:
    """One frame in its place. ``position_mm`` is along the normal, None where the header tells none."""

    sop_instance_uid: str
    frame_number: int
    position_mm: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Frames of one volume, ascending along the normal.

    Attributes
    ----------
    spacing_mm
        (z, y, x); z is the usual distance between slices, 0 for a single one; y and x are 0 where unknown.
    contiguous
        One for each frame: True if the next frame is a true neighbour, at the usual distance, of the same
        thickness, not sheared by a pixel or more. The last one is always False.
    volume_key
        The hard entries that its frames share (placement.py).
    """

    frames: tuple[StackFrame, ...]
    rows: int
    columns: int
    spacing_mm: tuple[float, float, float]
    thickness_mm: float | None
    orientation: Orientation | None
    volume_key: Key
    contiguous: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.frames)


class _Kind(NamedTuple):
    rows: int
    columns: int
    key: Key


def stacks(headers: Sequence[InstanceHeader]) -> tuple[Stack, ...]:
    """Put the frames of a series into stacks.

    Parameters
    ----------
    headers
        Of one series, in any order; instances without pixels are left out.

    Returns
    -------
    tuple[Stack, ...]
        Every frame exactly once. The same for any order of ``headers``. Frames without position or
        orientation stand alone.
    """
    kinds: dict[_Kind, list[tuple[InstanceHeader, FrameHeader]]] = defaultdict(list)
    found: list[tuple[tuple[int, int, str], Stack]] = []
    for header in headers:
        if not header.has_pixels:
            continue
        frames = header.frames or tuple(FrameHeader(number=n + 1) for n in range(header.n_frames))
        for frame in frames:
            key = tuple((name, value) for name, value in frame.volume_key if name not in SOFT)
            kind = _Kind(header.rows, header.columns, key)
            if frame.position_mm is None or frame.orientation is None:
                found.append((_order(header, frame), _alone(kind, header, frame)))
            else:
                kinds[kind].append((header, frame))
    for kind, members in kinds.items():
        for orientation, spacing, group in _aligned(members):
            normal = normal_of(orientation)
            placed = [_placed(header, frame, orientation, normal) for header, frame in group]
            first = {(p.uid, p.number): _order(h, f) for p, (h, f) in zip(placed, group, strict=True)}
            for volume in volumes(placed):
                stack = _stack(kind, orientation, spacing, volume)
                found.append((min(first[p.uid, p.number] for p in volume), stack))
    return tuple(stack for _, stack in sorted(found, key=lambda pair: pair[0]))


def normal_of(orientation: Orientation) -> tuple[float, float, float]:
    """The normal of the slices: row direction x column direction (PS3.3 C.7.6.2.1.1)."""
    a, b, c, d, e, f = orientation
    return (b * f - c * e, c * d - a * f, a * e - b * d)


def _order(header: InstanceHeader, frame: FrameHeader) -> tuple[int, int, str]:
    number = header.instance_number
    return (2**31 if number is None else number, frame.number, header.sop_instance_uid)


def _alone(kind: _Kind, header: InstanceHeader, frame: FrameHeader) -> Stack:
    y, x = frame.spacing_mm or (0.0, 0.0)
    return Stack(
        frames=(StackFrame(header.sop_instance_uid, frame.number, None),),
        rows=kind.rows,
        columns=kind.columns,
        spacing_mm=(0.0, y, x),
        thickness_mm=frame.thickness_mm,
        orientation=frame.orientation,
        volume_key=kind.key,
        contiguous=(False,),
    )


_Spacing: TypeAlias = "tuple[float, float]"
_Members: TypeAlias = "list[tuple[InstanceHeader, FrameHeader]]"


def _aligned(members: _Members) -> list[tuple[Orientation, _Spacing, _Members]]:
    """Groups of equal orientation and pixel spacing, within what rounding makes of them."""
    exact: dict[tuple[Orientation, _Spacing], _Members] = defaultdict(list)
    for header, frame in members:
        assert frame.orientation is not None
        exact[frame.orientation, frame.spacing_mm or (0.0, 0.0)].append((header, frame))
    if (
        len(exact) > _MANY_ORIENTATIONS
    ):  # radial scans: nothing is parallel, and comparing all with all is slow
        return [(o, s, group) for (o, s), group in exact.items()]
    groups: list[tuple[Orientation, _Spacing, _Members]] = []
    for orientation, spacing in sorted(exact):
        for known, scale, group in groups:
            turned = max(abs(a - b) for a, b in zip(known, orientation, strict=True))
            scaled = all(abs(a - b) <= SCALED * a for a, b in zip(scale, spacing, strict=True))
            if turned <= TURNED and scaled:
                group += exact[orientation, spacing]
                break
        else:
            groups.append((orientation, spacing, list(exact[orientation, spacing])))
    return groups


def _placed(
    header: InstanceHeader, frame: FrameHeader, orientation: Orientation, normal: tuple[float, float, float]
) -> Placed:
    assert frame.position_mm is not None
    x, y, z = frame.position_mm
    number = header.instance_number
    return Placed(
        uid=header.sop_instance_uid,
        number=frame.number,
        instance_number=0 if number is None and header.n_frames > 1 else number,
        at_mm=x * normal[0] + y * normal[1] + z * normal[2],
        across_mm=(
            x * orientation[0] + y * orientation[1] + z * orientation[2],
            x * orientation[3] + y * orientation[4] + z * orientation[5],
        ),
        thickness_mm=frame.thickness_mm,
        soft={name: value for name, value in frame.volume_key if name in SOFT},
    )


def _stack(kind: _Kind, orientation: Orientation, spacing: _Spacing, volume: Sequence[Placed]) -> Stack:
    usual = usual_gap([p.at_mm for p in volume])
    return Stack(
        frames=tuple(StackFrame(p.uid, p.number, p.at_mm) for p in volume),
        rows=kind.rows,
        columns=kind.columns,
        spacing_mm=(usual, *spacing),
        thickness_mm=volume[0].thickness_mm,
        orientation=orientation,
        volume_key=kind.key,
        contiguous=(*_contiguous(volume, usual, spacing), False),
    )


def usual_gap(positions: Sequence[float]) -> float:
    """The distance that most slices have: the lower median of the gaps, so that holes do not widen it."""
    gaps = sorted(b - a for a, b in pairwise(positions))
    return gaps[(len(gaps) - 1) // 2] if gaps else 0.0


def _contiguous(volume: Sequence[Placed], usual: float, spacing: _Spacing) -> list[bool]:
    """Whether slice i+1 is a true neighbour of slice i.

    Where hardly half of the gaps are the usual one, a single right gap proves nothing: two volumes that went
    unnoticed into one stack look like that. There it counts only beside another; and of two slices alone if
    it is no more than their thickness.
    """
    if usual < CROWDED * (volume[0].thickness_mm or 0.0):
        return [False] * (len(volume) - 1)
    even = [abs(b.at_mm - a.at_mm - usual) <= UNEVEN * usual for a, b in pairwise(volume)]
    if len(even) == 1:
        even = [usual <= (1 + UNEVEN) * (volume[0].thickness_mm or 0.0)]
    elif 3 * sum(even) < 2 * len(even):
        even = [a and (b or c) for a, b, c in zip(even, [False, *even], [*even[1:], False], strict=False)]
    return [
        here and _alike(a.thickness_mm, b.thickness_mm) and not _sheared(a, b, spacing)
        for here, (a, b) in zip(even, pairwise(volume), strict=True)
    ]


def _alike(a: float | None, b: float | None) -> bool:
    return a == b or (a is not None and b is not None and abs(a - b) <= 0.1 * max(a, b))


def _sheared(a: Placed, b: Placed, spacing: _Spacing) -> bool:
    y, x = spacing
    if not x or not y:
        return False
    along_rows, along_columns = (q - p for p, q in zip(a.across_mm, b.across_mm, strict=True))
    return abs(along_rows) > SHEARED * x or abs(along_columns) > SHEARED * y


def regular(headers: Sequence[InstanceHeader]) -> tuple[bool, str]:
    """Whether the geometry of a series is convincing evidence that it is complete, and why.

    Parameters
    ----------
    headers
        All that has come of the series.

    Returns
    -------
    tuple[bool, str]
        The verdict, and one sentence for it either way.

    Notes
    -----
    No geometry can prove that a scanner has no more slices beyond the last; that is what the released
    association is for. It can show that something is missing *inside*, or that the kind of series has no
    natural end. Convincing is therefore only what passes all of these:

    - *Four slices or more.* Two are always evenly spaced, and three have been seen when a sender
      interleaves.
    - *Even gaps* (within 25 %; positions are rounded, a missing slice doubles a gap).
    - *Gaps that the header explains*: equal to Spacing Between Slices or not larger than Slice Thickness.
      Every second slice of an interleaved transfer is evenly spaced, too. Where the header gives neither,
      there is nothing to hold the gap against.
    - *Instance numbers without holes or repeats.* They are counted by the scanner, not by us, and run
      through all stacks of a series, so a stack that has not begun to arrive often shows here. That they
      begin at 1 is not asked for: archives and post-processing send parts of series under their old numbers.
    - *Every stack at the same positions* where there are several (echoes, image types): the last one is
      not half-way. Stacks that lie elsewhere (other orientations, a head in two parts) cannot vouch for
      each other.
    - *A kind of series with an end.* Diffusion, echo planar, dynamic and cine series are sent volume by
      volume as they are reconstructed, and nothing says how many volumes there will be: each complete
      volume would look like the end. They pass only if Number of Temporal Positions is there and met.

    One multi-frame object that is no part of a concatenation is whole by itself (PS3.3 C.7.6.16); of several
    nobody knows how many there should be.
    """
    if not headers:
        return False, "nothing has come yet"
    if not all(h.has_pixels for h in headers):
        return False, "there are objects without pixels, which have no positions"
    if any(h.n_frames > 1 for h in headers):
        return _multi_frame(headers)
    found = stacks(headers)
    if any(stack.frames[0].position_mm is None for stack in found):
        return False, "there are images without a position"
    why_not = _endless(headers, found) or _unlike(found) or _uneven(headers, found) or _miscounted(headers)
    if why_not:
        return False, why_not
    volumes = f"{len(found)} volumes of " if len(found) > 1 else ""
    return True, f"{volumes}{len(found[0])} slices {found[0].spacing_mm[0]:.4g} mm apart, none missing"


def _multi_frame(headers: Sequence[InstanceHeader]) -> tuple[bool, str]:
    if len(headers) > 1:
        return False, "there are several multi-frame objects, and nothing says how many there should be"
    if _numbers(headers, "InConcatenationNumber") or headers[0].attributes.get("ConcatenationUID"):
        return False, "it is one part of a concatenation"
    return True, f"one multi-frame object with {headers[0].n_frames} frames is whole by itself"


def _numbers(headers: Sequence[InstanceHeader], keyword: str) -> list[float]:
    values: Iterable[object] = (v for h in headers for v in h.attributes.get(keyword, ()))
    return [float(v) for v in values if isinstance(v, (int, float))]


def _endless(headers: Sequence[InstanceHeader], found: Sequence[Stack]) -> str:
    """Why nobody can know how many volumes such a series has, or an empty string."""
    positions = int(max(_numbers(headers, "NumberOfTemporalPositions"), default=0))
    keys = [dict(stack.volume_key) for stack in found]
    kind = ""
    if any(_b_value(key) > 0 for key in keys):
        kind = "a diffusion series"
    elif any("EP" in h.attributes.get("ScanningSequence", ()) for h in headers):
        kind = "an echo planar series"
    elif max(_numbers(headers, "CardiacNumberOfImages"), default=0) > 1:
        kind = "a cine series"
    elif positions > 1 or len({key.get("temporal", "") for key in keys}) > 1:
        kind = "a dynamic series"
    elif len({stack.volume_key for stack in found}) < len(found):
        kind = "a series of repeated positions"
    if not kind or 1 < positions == len(found):
        return ""
    told = (
        f"{len(found)} of {positions} temporal positions" if positions > 1 else f"{len(found)} volumes so far"
    )
    return f"it is {kind}, which has no natural end ({told})"


def _b_value(key: dict[str, str]) -> float:
    try:
        return float(key.get("b_value", "0"))
    except ValueError:
        return 0.0


def _unlike(found: Sequence[Stack]) -> str:
    first = [frame.position_mm or 0.0 for frame in found[0].frames]
    for stack in found[1:]:
        alike = len(stack) == len(first) and stack.orientation == found[0].orientation
        if not alike or any(
            abs((frame.position_mm or 0.0) - at) > SAME_MM
            for frame, at in zip(stack.frames, first, strict=True)
        ):
            return f"its {len(found)} stacks do not cover the same positions"
    return ""


def _uneven(headers: Sequence[InstanceHeader], found: Sequence[Stack]) -> str:
    stack = found[0]
    if len(stack) < FEWEST_SLICES:
        return f"{len(stack)} {'slices prove' if len(stack) > 1 else 'slice proves'} nothing"
    usual = stack.spacing_mm[0]
    for a, b in pairwise(stack.frames):
        gap = (b.position_mm or 0.0) - (a.position_mm or 0.0)
        if abs(gap - usual) > UNEVEN * usual:
            return f"there is a gap of {gap:.4g} mm where {usual:.4g} mm are usual"
    spacings = [abs(v) for v in _numbers(headers, "SpacingBetweenSlices")]
    thicknesses = _numbers(headers, "SliceThickness")
    if any(abs(usual - v) <= UNEVEN * v for v in spacings):
        return ""
    if any(usual <= (1 + UNEVEN) * v for v in thicknesses):
        return ""
    if not spacings and not any(thicknesses):
        return f"slices lie {usual:.4g} mm apart, and no header says how far they should"
    return f"slices lie {usual:.4g} mm apart, further than their headers say"


def _miscounted(headers: Sequence[InstanceHeader]) -> str:
    numbers = sorted(h.instance_number for h in headers if h.instance_number is not None)
    if len(numbers) < len(headers):
        return "there are images without an instance number"
    if len(set(numbers)) < len(numbers):
        return "instance numbers repeat"
    if numbers[-1] - numbers[0] + 1 > len(numbers):
        return f"{numbers[-1] - numbers[0] + 1 - len(numbers)} instance numbers are missing in between"
    return ""
