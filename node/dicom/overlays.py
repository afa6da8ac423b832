"""Overlay planes that old scanners keep in unused bits of the pixels, moved to a place of their own.

PS3.3 C.9.2 retired them there (2004); an object that we write has no stray bits in its pixels, and the marks
stay visible.
"""

from __future__ import annotations

import numpy as np

from node.dicom.decode import frame_cells
from node.dicom.elements import Element, Elements, text, ushort
from node.dicom.pixels import PixelFormat, overlays_in_pixels
from node.dicom.source import Source


def extracted(source: Source, fmt: PixelFormat) -> Elements:
    """The elements (60xx,0100), (60xx,0102), (60xx,3000) of every overlay in unused bits, ready to be set.

    Bits are packed with the first pixel in the lowest bit, frame after frame (PS3.5 8.1.2, 8.2).
    """
    found = [(base, p) for base, p in overlays_in_pixels(source.elements) if fmt.overlay_bits >> p & 1]
    if not found:
        return {}
    planes: dict[int, list[np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]] = {b: [] for b, _ in found}
    for index in range(fmt.n_frames):
        cells = frame_cells(source, fmt.rows, fmt.columns, fmt.bits_allocated, fmt.n_frames, index)
        for base, position in found:
            planes[base].append((cells >> position & 1).astype(np.bool_).ravel())
    out: Elements = {}
    for base, bits in planes.items():
        packed = np.packbits(np.concatenate(bits), bitorder="little").tobytes()
        made = [
            ushort(base | 0x0100, 1),
            ushort(base | 0x0102, 0),
            Element(base | 0x3000, "OW", packed + b"\x00" * (len(packed) & 1)),
        ]
        if fmt.n_frames > 1:
            made += [text(base | 0x0015, "IS", str(fmt.n_frames)), ushort(base | 0x0051, 1)]
        out |= {e.tag: e for e in made}
    return out
