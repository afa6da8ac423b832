"""The chain on files: all of a series, or nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pydicom
import pytest

from engines.base import Engine, Params
from engines.catalog import Catalog
from node.enhance.offline import Made, enhance_series, find
from node.errors import SeriesError
from tests.enhancing import files, series

WHEN = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Catalog.default().load("ct-tv", threads=1)


def enhanced(source: Path, out: Path, engine: Engine) -> Made:
    (members,) = find([source]).series.values()
    return enhance_series(members, engine, Params(strength=0.5), out, when=WHEN)


def test_a_series_is_written_in_order_and_nothing_else(engine: Engine, tmp_path: Path) -> None:
    slices = series("CT", 5)
    files(tmp_path / "in", [*slices[2:], *slices[:2]])
    made = enhanced(tmp_path / "in", tmp_path / "a" / "out", engine)
    written = sorted((tmp_path / "a" / "out").iterdir())
    assert [p.name for p in written] == [f"0000{i}.dcm" for i in range(1, 6)]
    told = [pydicom.dcmread(p) for p in written]
    assert [t.InstanceNumber for t in told] == [1, 2, 3, 4, 5]
    assert {t.SeriesInstanceUID for t in told} == {made.derived_series_uid}
    assert (made.n_sources, made.n_made, made.reason) == (5, 5, "")
    again = enhanced(tmp_path / "in", tmp_path / "again", engine)
    assert again.derived_series_uid == made.derived_series_uid
    assert [p.read_bytes() for p in written] == [
        p.read_bytes() for p in sorted((tmp_path / "again").iterdir())
    ]


@pytest.mark.parametrize("there", [True, False])
def test_a_failure_leaves_the_folder_as_it_was(engine: Engine, tmp_path: Path, there: bool) -> None:
    slices = series("CT", 5)
    slices[4].PixelData = slices[4].PixelData[:-2]
    files(tmp_path / "in", slices)
    out = tmp_path / "out"
    if there:
        out.mkdir()
        (out / "00001.dcm").write_bytes(b"of somebody else")
    with pytest.raises(SeriesError, match="cut short"):
        enhanced(tmp_path / "in", out, engine)
    assert out.exists() == there
    if there:
        assert [p.read_bytes() for p in out.iterdir()] == [b"of somebody else"]


def test_a_series_that_is_left_as_it_was_is_no_result(engine: Engine, tmp_path: Path) -> None:
    files(tmp_path / "in", series("CT", 5, loud=range(5)))
    with pytest.raises(SeriesError, match="passed through unchanged"):
        enhanced(tmp_path / "in", tmp_path / "out", engine)
    assert not (tmp_path / "out").exists()


def test_what_an_engine_is_not_for_is_told(engine: Engine, tmp_path: Path) -> None:
    files(tmp_path / "in", series("MR", 3))
    assert enhanced(tmp_path / "in", tmp_path / "out", engine).reason == "ct-tv is for CT"
    assert not (tmp_path / "out").exists()
