"""Re-encoding for a peer loses nothing and never lies about the syntax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000, MPEG2MPML, JPEG2000Lossless, JPEGLSLossless, RLELossless

from node.dicom import transcode as module
from node.dicom.part10 import file_meta
from node.dicom.pixels import decode
from node.dicom.source import file_meta as read_meta
from node.dicom.transcode import TARGETS, can_transcode, transcode
from node.errors import DeriveError
from tests.deriving import made, written
from tests.dicom_samples import EXPLICIT, IMPLICIT, MR_CLASS, NATIVE, enhanced, image, part10


def _file(folder: Path, data: bytes) -> tuple[Path, int]:
    path = folder / "stored.dcm"
    path.write_bytes(data)
    return path, read_meta(data)[1]


def _source(**attributes: Any) -> bytes:
    rng = np.random.default_rng(3)
    return written(made(image(rng.integers(0, 4096, (40, 36)).astype(np.uint16), **attributes)))


@pytest.mark.parametrize("target", TARGETS)
def test_there_and_back_is_the_same_bytes(tmp_path: Path, target: str) -> None:
    data = _source()
    path, offset = _file(tmp_path, data)
    there = transcode(path, offset, EXPLICIT, target)
    assert transcode(path, offset, EXPLICIT, target) == there
    meta = file_meta("1.2.840.10008.5.1.4.1.1.2", "1.2.3", target)
    path, offset = _file(tmp_path, meta + there)
    assert transcode(path, offset, target, EXPLICIT) == data[read_meta(data)[1] :]
    ds = pydicom.dcmread(path)
    assert ds.PatientName == "Muster^Eva"
    if target != NATIVE[3]:
        assert np.array_equal(ds.pixel_array, decode(data)[0])


@pytest.mark.parametrize("target", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
@pytest.mark.parametrize(("signed", "bits"), [(True, 16), (True, 12), (False, 16)])
def test_pixels_of_every_kind(tmp_path: Path, target: str, signed: bool, bits: int) -> None:
    rng = np.random.default_rng(4)
    cells = rng.integers(0, 1 << bits, (40, 36))
    cells = (cells - (1 << (bits - 1)) if signed else cells).astype(np.int16 if signed else np.uint16)
    data = part10(image(cells, signed=signed, bits_stored=bits, sop_class=MR_CLASS))
    path, offset = _file(tmp_path, data)
    there = file_meta(MR_CLASS, "1.2", target) + transcode(path, offset, EXPLICIT, target)
    assert np.array_equal(decode(there)[0], cells)


def test_every_frame(tmp_path: Path) -> None:
    data = part10(enhanced(3))
    path, offset = _file(tmp_path, data)
    there = file_meta("1.2", "1.2", RLELossless) + transcode(path, offset, EXPLICIT, RLELossless)
    assert np.array_equal(decode(there), decode(data))
    assert transcode(path, offset, EXPLICIT, EXPLICIT) == data[offset:]


def test_objects_without_pixels(tmp_path: Path) -> None:
    path, offset = _file(tmp_path, part10(image(PixelData=None)))
    assert transcode(path, offset, EXPLICIT, RLELossless) == transcode(path, offset, EXPLICIT, EXPLICIT)
    assert transcode(path, offset, EXPLICIT, IMPLICIT)


def test_colour_is_not_touched(tmp_path: Path) -> None:
    path, offset = _file(tmp_path, part10(image(SamplesPerPixel=3)))
    with pytest.raises(DeriveError, match="colour"):
        transcode(path, offset, EXPLICIT, RLELossless)
    assert transcode(path, offset, EXPLICIT, IMPLICIT)


def test_syntaxes_without_a_lossless_way(tmp_path: Path) -> None:
    path, offset = _file(tmp_path, _source())
    for target in (JPEG2000, MPEG2MPML, "1.2.3"):
        assert not can_transcode(EXPLICIT, target)
        with pytest.raises(DeriveError):
            transcode(path, offset, EXPLICIT, target)
    assert can_transcode(JPEG2000, EXPLICIT)
    assert not can_transcode(MPEG2MPML, EXPLICIT)
    assert can_transcode("1.2.3", "1.2.3")
    assert all(can_transcode(EXPLICIT, t) for t in TARGETS)


def test_pixels_that_an_encoder_would_change_are_not_sent(tmp_path: Path) -> None:
    # 63536 in 12 bits stored: a code stream of 12 bits cannot hold it.
    cells = np.full((40, 36), 100, np.uint16)
    cells[3, 3] = 63536
    path, offset = _file(tmp_path, part10(image(cells)))
    with pytest.raises(DeriveError, match=r"survive|compressed"):
        transcode(path, offset, EXPLICIT, JPEG2000Lossless)


def test_an_encoder_that_lies_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, offset = _file(tmp_path, _source())
    encoder = module._encoder(RLELossless)

    class Liar:
        is_available = True

        def encode(self, cells: Any, **options: Any) -> bytes:
            return bytes(encoder.encode(cells ^ 1, **options))

    monkeypatch.setattr(module, "_encoder", lambda _: Liar())
    with pytest.raises(DeriveError, match="survive"):
        transcode(path, offset, EXPLICIT, RLELossless)


@pytest.mark.parametrize("cut", [1, 100, 400])
def test_damaged_files(tmp_path: Path, cut: int) -> None:
    data = _source()
    path, offset = _file(tmp_path, data[:-cut])
    with pytest.raises(DeriveError):
        transcode(path, offset, EXPLICIT, IMPLICIT)
