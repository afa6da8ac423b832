"""Loggers of other packages, that could tell what is in a data set."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.log import configure, defect

SILENT = ("pynetdicom.events", "pydicom", "pylibjpeg.utils", "openjpeg.utils", "_openjpeg", "rle")


@pytest.fixture
def levels() -> Iterator[None]:
    """Puts the levels and handlers of the standard library back."""
    names = ["", *logging.root.manager.loggerDict]
    before = {name: logging.getLogger(name).level for name in names}
    handlers = logging.root.handlers[:]
    yield
    logging.root.handlers[:] = handlers
    for name in ["", *logging.root.manager.loggerDict]:
        logging.getLogger(name).setLevel(before.get(name, logging.NOTSET))


@pytest.mark.usefixtures("levels")
@pytest.mark.parametrize("level", ["debug", "info", "error"])
def test_libraries_that_read_data_sets_say_nothing(level: str) -> None:
    out = io.StringIO()
    configure(level, stream=out)
    for name in SILENT:
        logging.getLogger(name).error("Decoding of %s failed", "Doe^Jane")
    logging.getLogger("sqlalchemy.engine").info("INSERT %s", "Doe^Jane")
    assert out.getvalue() == ""
    logging.getLogger("sqlalchemy").error("no connection")
    assert "no connection" in out.getvalue()


def test_a_defect_tells_what_the_system_said_and_a_recursion_fills_no_log() -> None:
    """Neither quotes a value: the path may have a patient's name in it."""

    def again(n: int) -> int:
        return again(n + 1)

    with pytest.raises(FileNotFoundError) as failed:
        Path("/nowhere/DOE").read_bytes()
    told = defect(failed.value)
    assert told.endswith("FileNotFoundError ENOENT")
    assert "DOE" not in told
    with pytest.raises(RecursionError) as deep:
        again(0)
    assert len(defect(deep.value).splitlines()) < 100
    assert ", in again" in defect(deep.value)
