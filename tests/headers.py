"""Instance headers made by hand, for what only looks at headers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from node.model import FrameHeader, InstanceHeader, Values

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)

_PIXELS: dict[str, Values] = {
    "SamplesPerPixel": (1,),
    "PhotometricInterpretation": ("MONOCHROME2",),
    "BitsAllocated": (16,),
    "BitsStored": (12,),
    "HighBit": (11,),
    "PixelRepresentation": (0,),
}


def frame(
    position: Sequence[float] | None,
    *,
    number: int = 1,
    orientation: tuple[float, ...] | None = AXIAL,
    spacing: tuple[float, float] | None = (0.5, 0.5),
    thickness: float | None = 1.0,
    **key: str,
) -> FrameHeader:
    return FrameHeader(
        number=number,
        position_mm=tuple(position) if position is not None else None,  # type: ignore[arg-type]
        orientation=orientation,  # type: ignore[arg-type]
        spacing_mm=spacing,
        thickness_mm=thickness,
        volume_key=tuple(key.items()),
    )


def header(
    frames: FrameHeader | Sequence[FrameHeader] = (),
    *,
    number: int | None = 1,
    uid: str = "",
    sop_class: str = CT,
    image_type: str = "ORIGINAL\\PRIMARY\\AXIAL",
    rows: int = 512,
    columns: int = 512,
    attributes: dict[str, Values] | None = None,
    **fields: Any,
) -> InstanceHeader:
    """A CT slice that is fit to be enhanced, unless told otherwise."""
    listed = (frames,) if isinstance(frames, FrameHeader) else tuple(frames)
    own: dict[str, Values] = {**_PIXELS, "ImageType": tuple(image_type.split("\\"))}
    if sop_class == CT:
        own |= {"RescaleSlope": (1.0,), "RescaleIntercept": (-1024.0,), "RescaleType": ("HU",)}
    if listed and listed[0].thickness_mm is not None:
        own["SliceThickness"] = (listed[0].thickness_mm,)
    values: dict[str, Any] = {
        "sop_class_uid": sop_class,
        "sop_instance_uid": uid or f"1.2.{number if number is not None else 'x'}.{id(listed) % 997}",
        "study_uid": "1.2.3",
        "series_uid": "1.2.3.4",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "modality": "CT" if sop_class == CT else "MR",
        "rows": rows,
        "columns": columns,
        "n_frames": max(1, len(listed)),
        "instance_number": number,
        "expected_count": 0,
        "expected_because": "",
        "attributes": own | (attributes or {}),
        "frames": listed,
        "has_pixels": True,
    }
    return InstanceHeader(**(values | fields))


def series(positions: Iterable[float], *, first: int = 1, **how: Any) -> list[InstanceHeader]:
    """Axial slices at the given z, numbered in their order; ``how`` goes to `frame` and `header`."""
    of_frame = {k: how.pop(k) for k in list(how) if k in ("orientation", "spacing", "thickness")}
    key = how.pop("key", {})
    prefix = how.pop("prefix", "9")
    return [
        header(
            frame((0.0, 0.0, z), **of_frame, **key), number=first + n, uid=f"1.{prefix}.{first + n}", **how
        )
        for n, z in enumerate(positions)
    ]
