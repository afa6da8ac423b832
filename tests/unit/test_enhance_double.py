"""Engines of scale 2 through the chain, on files and from the command line: twice the matrix, the same place."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import Dataset

from engines.base import Engine, Params
from engines.catalog import Catalog
from node.cli import tools
from node.enhance.offline import enhance_series, find
from node.errors import SeriesError
from node.trial.phantoms import write_series
from tests import onnx_samples
from tests.cli import luminode
from tests.dicom_samples import enhanced
from tests.enhancing import SIZE, chained, files, series
from tests.phantoms import small_ct, small_mr


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    zoo = tmp_path_factory.mktemp("zoo")
    for name in ("ct-detail", "mr-detail"):
        onnx_samples.folder(
            zoo,
            onnx_samples.detail_network(),
            name=name,
            modality=name[:2].upper(),
            scale=2,
            receptive_field=8,
        )
    return Catalog.default([zoo])


@pytest.fixture(params=["CT", "MR"])
def modality(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine(catalog: Catalog, modality: str) -> Engine:
    return catalog.load(f"{modality.lower()}-detail", threads=2)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def stored_of(ds: Dataset) -> npt.NDArray[np.uint16]:
    return np.frombuffer(ds.PixelData, np.uint16).reshape(SIZE, SIZE)


def test_slabs_of_any_size_make_the_same_bytes(
    engine: Engine, modality: str, tmp_path: Path, scratch: Path
) -> None:
    items = files(tmp_path / "in", series(modality, 5))
    whole = chained(items, engine, scratch)
    assert whole.made == chained(items, engine, scratch, slab=2).made
    for data in whole.made.values():
        ds = pydicom.dcmread(io.BytesIO(data))
        assert ds.pixel_array.shape == (2 * SIZE, 2 * SIZE)
    assert whole.report.figures["largest_change"] > 0


def test_strength_zero_keeps_every_stored_sample(
    engine: Engine, modality: str, tmp_path: Path, scratch: Path
) -> None:
    slices = series(modality, 3)
    items = files(tmp_path / "in", slices)
    plain, full = (chained(items, engine, scratch, strength=s).stored for s in (0.0, 1.0))
    for ds in slices:
        assert np.array_equal(plain[ds.SOPInstanceUID][0, ::2, ::2], stored_of(ds))
        assert not np.array_equal(plain[ds.SOPInstanceUID], full[ds.SOPInstanceUID])


def test_padding_stays_padding_and_nothing_else_becomes_it(
    engine: Engine, modality: str, tmp_path: Path, scratch: Path
) -> None:
    slices = series(modality, 2)
    y, x = np.ogrid[:SIZE, :SIZE]
    outside = np.hypot(y - SIZE / 2, x - SIZE / 2) > 30
    for ds in slices:
        pixels = np.maximum(stored_of(ds), 1)
        pixels[outside] = 0
        ds.PixelData, ds.PixelPaddingValue = pixels.tobytes(), 0
    made = chained(files(tmp_path / "in", slices), engine, scratch).stored
    for stored in made.values():
        assert np.array_equal(stored[0] == 0, outside.repeat(2, 0).repeat(2, 1))


def test_frames_of_one_instance_are_put_together(catalog: Catalog, tmp_path: Path, scratch: Path) -> None:
    engine = catalog.load("ct-detail", threads=1)
    ds = enhanced(3, ct=True)
    ds.Rows = ds.Columns = SIZE
    ds.PixelData = np.stack([stored_of(s) for s in series("CT", 3)]).tobytes()
    items = files(tmp_path / "in", [ds])
    (stored,) = chained(items, engine, scratch).stored.values()
    assert stored.shape == (3, 2 * SIZE, 2 * SIZE)
    (plain,) = chained(items, engine, scratch, strength=0.0).stored.values()
    assert plain[:, ::2, ::2].tobytes() == ds.PixelData


def test_a_matrix_that_cannot_be_doubled_is_refused(catalog: Catalog, tmp_path: Path, scratch: Path) -> None:
    (ds,) = series("CT", 1)
    ds.Rows, ds.Columns, ds.PixelData = 1, 40_000, bytes(80_000)
    with pytest.raises(SeriesError, match="cannot be doubled"):
        chained(files(tmp_path / "in", [ds]), catalog.load("ct-detail"), scratch)


def test_a_phantom_on_files(engine: Engine, modality: str, tmp_path: Path) -> None:
    phantom = (
        small_ct(seed=3, n_slices=5, size=192, noise_hu=15.0)
        if modality == "CT"
        else small_mr(seed=4, n_slices=5)
    )
    write_series(phantom, tmp_path / "in")
    (members,) = find([tmp_path / "in"]).series.values()
    when = datetime(2026, 1, 2, tzinfo=UTC)
    made = enhance_series(members, engine, Params(strength=0.6), tmp_path / "out", when=when)
    assert made.n_made == 5
    sources = {ds.SOPInstanceUID: ds for ds in map(pydicom.dcmread, (p for p, _ in members))}
    for path in (tmp_path / "out").iterdir():
        ds = pydicom.dcmread(path)
        source = sources[ds.SourceImageSequence[0].ReferencedSOPInstanceUID]
        assert ds.pixel_array.shape == tuple(2 * n for n in source.pixel_array.shape)
        assert ds.ImagePositionPatient == source.ImagePositionPatient
        assert [2 * s for s in ds.PixelSpacing] == pytest.approx(list(source.PixelSpacing))
        near = ds.pixel_array[::2, ::2].astype(int) - source.pixel_array.astype(int)
        assert np.abs(near).mean() < 20


def test_from_the_command_line(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools.Catalog, "default", classmethod(lambda _cls, _extra=(), **_: catalog))
    write_series(small_ct(seed=3, n_slices=4, size=192, noise_hu=15.0), tmp_path / "in")
    told = luminode("enhance", tmp_path / "in", "-e", "ct-detail", "-o", tmp_path / "out")
    assert told.status == 0, told.err
    made = [pydicom.dcmread(p) for p in sorted((tmp_path / "out").rglob("*.dcm"))]
    assert {(d.Rows, d.Columns) for d in made} == {(384, 384)}
    assert len(made) == 4
