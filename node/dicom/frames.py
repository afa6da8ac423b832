"""Functional groups of a derived Enhanced or Legacy Converted object (PS3.3 C.7.6.16, C.8.13, C.8.15).

Every frame gets what a single-frame object says at its top: DERIVED in its Frame Type, and a Derivation Image
group that names the very frame it came from.
"""

from __future__ import annotations

from collections.abc import Sequence

from node.dicom import resample
from node.dicom.elements import Element, Elements, sequence, tag_of
from node.dicom.references import Reference, source_image_item
from node.errors import SeriesError

_DERIVATION_IMAGE = tag_of("DerivationImageSequence")
_FRAME_TYPE = tag_of("FrameType")


def image_type(
    raw: bytes, value2: str, missing: bytes, *, scale: int = 1, multi_frame: bool = False
) -> bytes:
    """Image or Frame Type of the derived: DERIVED, ``value2``, and the source's other values as they are,
    but for an image of another matrix (:func:`node.dicom.resample.type_of`).

    Parameters
    ----------
    raw
        The source's value, backslashes and padding included.
    missing
        Value 3 where the source has no Image Type at all.
    """
    values = raw.rstrip(b" \x00").split(b"\\")
    rest = values[2:] if any(v.strip() for v in values) else [missing]
    if scale != 1:
        rest = resample.type_of(rest, multi_frame=multi_frame)
    return b"\\".join([b"DERIVED", value2.encode("ascii"), *rest])


def shared_groups(shared: Elements, scale: int = 1) -> Elements:
    """Shared functional groups: Frame Type recomputed, Derivation Image left to the frames.

    A functional group is either shared or per frame, never both (C.7.6.16.1.1).
    """
    return {tag: element for tag, element in _typed(shared, scale).items() if tag != _DERIVATION_IMAGE}


def frame_groups(
    shared: Elements,
    frames: Sequence[Elements],
    n_frames: int,
    *,
    reference: Reference,
    description: Element,
    codes: Element,
    scale: int = 1,
) -> list[Elements]:
    """Per-frame functional groups, with our step added to each frame's Derivation Image.

    Raises
    ------
    SeriesError
        If there are other numbers of groups and frames.
    """
    if len(frames) != n_frames:
        raise SeriesError("functional groups and frames differ in number")
    inherited = shared[_DERIVATION_IMAGE].items if _DERIVATION_IMAGE in shared else ()
    out = []
    for number, frame in enumerate(frames, start=1):
        groups = _typed(frame, scale)
        had = groups.get(_DERIVATION_IMAGE)
        step = (
            description,
            codes,
            sequence("SourceImageSequence", [source_image_item(reference, number, same_place=scale == 1)]),
        )
        earlier = had.items if had is not None and had.items else inherited
        groups[_DERIVATION_IMAGE] = sequence(_DERIVATION_IMAGE, [*earlier, step])
        out.append(groups)
    return out


def _typed(groups: Elements, scale: int) -> Elements:
    """With DERIVED and PRIMARY in every Frame Type; the sequence that holds it depends on the IOD."""
    out = dict(groups) if scale == 1 else resample.groups(groups)
    for tag, group in out.items():
        if any(_FRAME_TYPE in item for item in group.items):
            out[tag] = Element(tag, "SQ", tuple(_with_type(item, scale) for item in group.items))
    return out


def _with_type(item: Elements, scale: int) -> Elements:
    old = item.get(_FRAME_TYPE)
    if old is None:
        return item
    told = image_type(old.raw, "PRIMARY", b"VOLUME", scale=scale, multi_frame=True)
    return item | {_FRAME_TYPE: Element(_FRAME_TYPE, "CS", told)}
