"""Where each frame lies, and what keeps it apart from its neighbours (PS3.3 C.7.6.2, C.7.6.16, C.8.13).

A single-frame object says so at its top, a multi-frame one in functional groups, shared or per frame. Both
are brought into one flat view per frame, of which the same keys are then read.

The volume key has two kinds of entries. Frames that differ in a *hard* one are different pictures: another
echo, another b-value, another kernel. A *soft* one (:data:`SOFT`) may differ from slice to slice inside one
volume, such as the acquisition number of an axial CT; stacks.py asks it only where positions repeat.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, TypeAlias, cast

from node.dicom import vendor
from node.dicom.elements import Elements
from node.dicom.view import View
from node.model import FrameHeader, Values

Key: TypeAlias = tuple[tuple[str, str], ...]

SHARED_GROUPS: Final = 0x52009229
FRAME_GROUPS: Final = 0x52009230
UNASSIGNED: Final = (0x00209170, 0x00209171)
"""What a Legacy Converted object could not assign to a functional group (C.7.6.16.2.25, .26)."""

_POSITION: Final = 0x00200032
_ORIENTATION: Final = 0x00200037
_SPACING: Final = 0x00280030
_THICKNESS: Final = 0x00180050
_DIFFUSION_DIRECTIONS: Final = 0x00189076
_DIRECTION: Final = 0x00189089
_B_VALUE: Final = 0x00189087
_SIEMENS_GROUPS: Final = (0x002110FE, 0x002111FE)


@dataclass(frozen=True, slots=True)
class Row:
    """One entry of the key: where it is said, the functional group's attribute first.

    ``digits`` is how many decimals count; None for text.
    """

    name: str
    tags: tuple[int, ...]
    digits: int | None = None


_HARD: Final = (
    Row("image_type", (0x00089007, 0x00080008)),
    Row("component", (0x00089208,)),
    Row("echo", (0x00180086,)),
    Row("echo_time", (0x00189082, 0x00180081), 3),
    Row("inversion_time", (0x00189079, 0x00180082), 2),
    Row("flip_angle", (0x00181314,), 2),
    Row("sequence", (0x00180024,)),
    Row("temporal", (0x00209128, 0x00200100)),
    Row("cardiac_phase", (0x00209241,), 2),
    Row("directionality", (0x00189075,)),
    Row("label", (0x00189257,)),
    Row("stack", (0x00209056,)),
    Row("kernel", (0x00181210,)),
    Row("kvp", (0x00180060,), 1),
    Row("tilt", (0x00181120,), 1),
    Row("units", (0x00281054,)),
)
_SOFT: Final = (
    Row("acquisition", (0x00209156, 0x00200012)),
    Row("trigger", (0x00209153, 0x00181060), 2),
    Row("acquired", (0x00189074, 0x0008002A)),
    Row("acquired_at", (0x00080032,)),
    Row("content_at", (0x00080033,)),
    Row("repetition_time", (0x00180080,), 2),
)
SOFT: Final = tuple(row.name for row in _SOFT)
"""Names of the soft entries, in the order in which they are asked."""


def frame_headers(root: View, n_frames: int, manufacturer: str) -> tuple[tuple[FrameHeader, ...], str]:
    """One header per frame, and what is wrong with them.

    Parameters
    ----------
    root
        Top level of the data set.
    n_frames
        Number of Frames; 1 for a single-frame object.
    manufacturer
        In capitals.

    Returns
    -------
    tuple
        The frames in order, and one sentence if the functional groups do not fit ``n_frames``.
    """
    shared_groups, frame_groups = root.items(SHARED_GROUPS), root.items(FRAME_GROUPS)
    if not shared_groups and not frame_groups:
        if n_frames > 1:
            return (), f"it says nothing of its {n_frames} frames (it has no functional groups)"
        return (_frame(1, root, _vendor(root, manufacturer)),), ""
    if len(frame_groups) != n_frames:
        return (), f"it has {n_frames} frames but functional groups for {len(frame_groups)}"
    shared: Elements = {}
    siemens: Key = ()
    for group in shared_groups[:1]:
        shared = _flat(group)
        siemens = _siemens(group)
    top = root.elements.get(0x00080008)
    if top is not None and 0x00080008 not in shared:
        shared = {0x00080008: top, **shared}
    frames = []
    for number, group in enumerate(frame_groups, start=1):
        flat = View({**shared, **_flat(group)}, root.charsets)
        frames.append(_frame(number, flat, _siemens(group) or siemens))
    return tuple(frames), ""


def _flat(group: View) -> Elements:
    """All attributes of all functional groups in one level: their tags do not collide.

    What a diffusion sequence nests one level deeper comes with them.
    """
    flat: Elements = {}
    for element in group.elements.values():
        if element.tag & 0x10000:
            continue
        for item in element.items[:1]:
            flat.update(item)
    inner = flat.get(_DIFFUSION_DIRECTIONS)
    if inner is not None and inner.items:
        flat.update(inner.items[0])
    return flat


def _siemens(group: View) -> Key:
    """Image Type in classic words, which Siemens' enhanced objects hide in a private group."""
    for tag in _SIEMENS_GROUPS:
        tokens = vendor.SIEMENS_TOKENS.values(group.item(tag))
        if tokens:
            return (("siemens_type", _text(tokens)),)
    return ()


def _frame(number: int, view: View, special: Key) -> FrameHeader:
    position = view.numbers(_POSITION, 3)
    spacing = view.numbers(_SPACING, 2)
    thickness = view.number(_THICKNESS)
    own = dict(_read(_HARD, view))
    own.update((name, value) for name, value in special if name not in own)
    direction = view.numbers(_DIRECTION, 3)
    if any(direction):
        own["direction"] = _rounded(direction, 4)
    b_value = view.number(_B_VALUE)
    if b_value is not None:
        own["b_value"] = _rounded((b_value,), 1)
    return FrameHeader(
        number=number,
        position_mm=cast(tuple[float, float, float], position) if _sane(position) else None,
        orientation=orientation_of(view.numbers(_ORIENTATION, 6)),
        spacing_mm=cast(tuple[float, float], spacing) if spacing and min(spacing) > 0 else None,
        thickness_mm=thickness if thickness is not None and thickness > 0 else None,
        volume_key=(*sorted(own.items()), *_read(_SOFT, view)),
    )


def _sane(position: tuple[float, ...]) -> bool:
    return bool(position) and max(map(abs, position)) < 1e6


def orientation_of(values: tuple[float, ...]) -> tuple[float, float, float, float, float, float] | None:
    """Image Orientation (Patient) if it is two unit vectors at a right angle, else None (C.7.6.2.1.1)."""
    if len(values) != 6:
        return None
    row, column = values[:3], values[3:]
    if abs(math.hypot(*row) - 1) > 0.02 or abs(math.hypot(*column) - 1) > 0.02:
        return None
    if abs(sum(a * b for a, b in zip(row, column, strict=True))) > 0.02:
        return None
    return values


def _read(rows: tuple[Row, ...], view: View) -> Key:
    found: list[tuple[str, str]] = []
    for row in rows:
        for tag in row.tags:
            if tag not in view.elements:
                continue
            if row.digits is None:
                told = _text(view.values(tag))
            else:
                numbers = view.numbers(tag)
                told = _rounded(numbers, row.digits) if numbers else _text(view.values(tag))
            if told:
                found.append((row.name, told))
                break
    return tuple(found)


def _vendor(root: View, manufacturer: str) -> Key:
    """Hard entries that only private elements of a single-frame object tell."""
    found: dict[str, str] = {}
    b_values = vendor.first(vendor.B_VALUES, root, manufacturer)
    if b_values and isinstance(b_values[0], (int, float)):
        # GE adds 10^9 and more to tell how the value was made up
        b_value = float(b_values[0])
        found["b_value"] = _rounded((b_value % 100_000 if b_value >= 1e6 else b_value,), 1)
        direction = tuple(
            v for v in vendor.first(vendor.DIRECTIONS, root, manufacturer) if not isinstance(v, str)
        )
        if len(direction) != 3:
            direction = vendor.vector(vendor.PHILIPS_DIRECTION, root, manufacturer)
        if not direction and b_value:
            direction = vendor.vector(vendor.GE_DIRECTION, root, manufacturer)
        if any(direction):
            found["direction"] = _rounded(tuple(map(float, direction)), 4)
        directionality = vendor.first(vendor.DIRECTIONALITY, root, manufacturer)
        if directionality:
            found["directionality"] = _text(directionality)
    for name, row in (
        ("component", vendor.PHILIPS_COMPONENT),
        ("label", vendor.PHILIPS_LABEL),
        ("phase", vendor.PHILIPS_PHASE_NUMBER),
        ("tiles", vendor.SIEMENS_TILES),
        ("deep_learning", vendor.GE_DEEP_LEARNING_MR),
        ("iterative", vendor.GE_ITERATIVE_CT),
    ):
        values = row.values(root, manufacturer)
        if values:
            found[name] = _text(values)
    component = vendor.GE_COMPONENT.values(root, manufacturer)
    if component and component[0] in vendor.GE_COMPONENTS:
        found["component"] = vendor.GE_COMPONENTS[cast(int, component[0])]
    return tuple(found.items())


def _text(values: Values) -> str:
    return "\\".join(str(v) for v in values)[:256]


def _rounded(numbers: tuple[float, ...], digits: int) -> str:
    return "\\".join(f"{round(n, digits) + 0.0:.{digits + 9}g}" for n in numbers)
