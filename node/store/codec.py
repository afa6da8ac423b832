"""Headers as small JSON.

A series' instances share nearly all of their attributes. The first header that is indexed in a series
becomes its *base* and is stored once, whole; every instance (the first too) then stores only what
differs from it: about 150 bytes for a CT slice instead of 3 kB. Frames keep orientation, spacing,
thickness and volume key in a table of the distinct ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from node.model import FrameHeader, InstanceHeader, Scalar, SeriesHeader, Values

_FIELDS = (
    "sop_class_uid",
    "study_uid",
    "series_uid",
    "transfer_syntax_uid",
    "modality",
    "rows",
    "columns",
    "n_frames",
    "instance_number",
    "expected_count",
    "expected_because",
    "has_pixels",
    "derived_by_us",
    "faults",
)


def pack_base(header: InstanceHeader) -> dict[str, Any]:
    """The document that the instances of a series are told as differences from."""
    return {
        "f": {name: _plain(getattr(header, name)) for name in _FIELDS},
        "a": {k: _values(v) for k, v in header.attributes.items()},
        "s": _shapes(header.frames[:1]),
    }


def pack(header: InstanceHeader, base: Mapping[str, Any]) -> dict[str, Any]:
    """An instance's header as its difference from ``base`` (`pack_base` of any header)."""
    fields = {
        name: value for name in _FIELDS if (value := _plain(getattr(header, name))) != base["f"].get(name)
    }
    attributes = {k: _values(v) for k, v in header.attributes.items()}
    known: Mapping[str, list[Scalar]] = base["a"]
    changed = {k: v for k, v in attributes.items() if not _same(known.get(k), v)}
    gone = [k for k in known if k not in attributes]
    document: dict[str, Any] = {"u": header.sop_instance_uid}
    if fields:
        document["f"] = fields
    if changed:
        document["a"] = changed
    if gone:
        document["g"] = gone
    shapes: list[Any] = list(base["s"])
    own: list[Any] = []
    frames: list[list[Any]] = []
    for frame in header.frames:
        shape = _shape(frame)
        if shape in shapes:
            at = shapes.index(shape)
        else:
            at = len(shapes)
            shapes.append(shape)
            own.append(shape)
        frames.append([frame.number, at, *(_vector(frame.position_mm) or ())])
    if own:
        document["s"] = own
    if frames:
        document["p"] = frames
    return document


def unpack(document: Mapping[str, Any], base: Mapping[str, Any]) -> InstanceHeader:
    """The header that `pack` was given."""
    fields = {**base["f"], **document.get("f", {})}
    gone = set(document.get("g", ()))
    attributes = {k: v for k, v in base["a"].items() if k not in gone}
    attributes.update(document.get("a", {}))
    shapes = [*base["s"], *document.get("s", ())]
    fields["faults"] = tuple(fields["faults"])
    return InstanceHeader(
        sop_instance_uid=document["u"],
        attributes={k: tuple(v) for k, v in attributes.items()},
        frames=tuple(_frame(row, shapes[row[1]]) for row in document.get("p", ())),
        **fields,
    )


def pack_series_header(header: SeriesHeader) -> dict[str, Any]:
    return {
        "modality": header.modality,
        "sop_class_uid": header.sop_class_uid,
        "shape": list(header.shape),
        "spacing_mm": _vector(header.spacing_mm) or [0.0, 0.0, 0.0],
        "count": header.count,
        "attributes": {k: _values(v) for k, v in header.attributes.items()},
        "n_frames": header.n_frames,
        "derived_by_us": header.derived_by_us,
        "faults": list(header.faults),
    }


def unpack_series_header(document: Mapping[str, Any]) -> SeriesHeader:
    z, y, x = (float(v) for v in document["spacing_mm"])
    n, rows, columns = document["shape"]
    return SeriesHeader(
        modality=document["modality"],
        sop_class_uid=document["sop_class_uid"],
        shape=(n, rows, columns),
        spacing_mm=(z, y, x),
        count=document["count"],
        attributes={k: tuple(v) for k, v in document["attributes"].items()},
        n_frames=document["n_frames"],
        derived_by_us=document["derived_by_us"],
        faults=tuple(document["faults"]),
    )


def _shapes(frames: tuple[FrameHeader, ...]) -> list[list[Any]]:
    return [_shape(f) for f in frames]


def _shape(frame: FrameHeader) -> list[Any]:
    return [
        _vector(frame.orientation),
        _vector(frame.spacing_mm),
        next(iter(_vector((frame.thickness_mm,) if frame.thickness_mm is not None else None) or ()), None),
        [list(pair) for pair in frame.volume_key],
    ]


def _frame(row: list[Any], shape: list[Any]) -> FrameHeader:
    orientation, spacing, thickness, key = shape
    position = row[2:]
    return FrameHeader(
        number=row[0],
        position_mm=(float(position[0]), float(position[1]), float(position[2])) if position else None,
        orientation=(
            tuple(float(v) for v in orientation) if orientation is not None else None  # type: ignore[arg-type]
        ),
        spacing_mm=(float(spacing[0]), float(spacing[1])) if spacing is not None else None,
        thickness_mm=float(thickness) if thickness is not None else None,
        volume_key=tuple((k, v) for k, v in key),
    )


def _same(known: list[Scalar] | None, found: list[Scalar]) -> bool:
    """Equal, and of equal types: 1 and 1.0 are not the same value of an attribute."""
    if known is None or known != found:
        return False
    return all(type(a) is type(b) for a, b in zip(known, found, strict=True))


def _values(values: Values) -> list[Scalar]:
    return [_scalar(v) for v in values]


def _scalar(value: Scalar) -> Scalar:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _vector(values: tuple[float, ...] | None) -> list[float] | None:
    """Numbers as JSON has them; one that is not finite makes the whole none, as it places nothing."""
    return list(values) if values is not None and all(math.isfinite(v) for v in values) else None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
