"""What the digest of an instance is of: the bytes that came, in whatever pieces, hashed when it may be."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.dicom.status import Status
from node.model import Association
from node.receive import part10
from node.receive.commands import parse
from node.receive.intake import _LATER, Intake, Refusal
from node.receive.terms import terms
from node.store.spool import Spool
from tests.receiving import config, utc
from tests.senders import EXPLICIT, data_set, sha256, store_rq

UID = "1.2.3.1"


def intake(folder: Path) -> Intake:
    opened = Association(id="1", calling_ae="CT1", called_ae="LUMINODE", address="127.0.0.1", opened_at=utc())
    return Intake(Spool(folder), parse(store_rq(UID)), EXPLICIT, opened, terms(config()))


def takes(data: bytes, largest: int, seed: int) -> Iterator[list[memoryview]]:
    """The data as reads of a socket, each of a few pieces, in one buffer that every read overwrites."""
    chance, buffer, at = random.Random(seed), bytearray(largest), 0
    while at < len(data):
        size = min(chance.randint(1, largest), len(data) - at)
        buffer[:size] = data[at : at + size]
        cut = chance.randint(0, size)
        view = memoryview(buffer)
        yield [piece for piece in (view[:cut], view[cut:size]) if piece]
        at += size


@pytest.mark.parametrize("largest", [300, 70_000, 262_144, 3_000_000])
@pytest.mark.parametrize("size", [0, 9000, 525_000, _LATER - 400, _LATER, _LATER + 5_000_000])
def test_the_digest_is_that_of_the_bytes_that_came(tmp_path: Path, size: int, largest: int) -> None:
    if size // largest > 3000:
        largest = size // 3000
    data = data_set(UID, pixels=random.Random(size).randbytes(size // 2 * 2))
    one = intake(tmp_path)
    for pieces in takes(data, largest, size + largest):
        one.take(pieces)
    arrived = one.finish(utc())
    assert arrived.sha256 == sha256(data)
    assert (arrived.study_uid, arrived.series_uid) == ("1.2.3", "1.2.3.4")
    assert arrived.writer.path.read_bytes()[part10.OFFSET :] == data
    arrived.sync()
    arrived.publish()
    assert arrived.instance.size == part10.OFFSET + len(data)
    assert (tmp_path / arrived.instance.path).read_bytes()[part10.OFFSET :] == data


@pytest.mark.parametrize("size", [525_000, _LATER + 1_000_000])
def test_a_file_that_cannot_be_read_back_is_refused(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_fd: int, _n: int, _at: int) -> bytes:
        raise OSError(errno.EIO, "the medium is bad")

    monkeypatch.setattr(os, "pread", refuse)
    one = intake(tmp_path)
    for pieces in takes(data_set(UID, pixels=bytes(size)), 262_144, 1):
        one.take(pieces)
    with pytest.raises(Refusal) as refused:
        one.finish(utc())
    assert refused.value.status == Status.OUT_OF_RESOURCES
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    one = intake(tmp_path)
    for pieces in takes(data_set(UID, pixels=bytes(525_000)), 262_144, 1):
        one.take(pieces)
    (file,) = (tmp_path / "tmp").iterdir()
    os.truncate(file, 300_000)
    with pytest.raises(Refusal) as refused:
        one.finish(utc())
    assert refused.value.status == Status.OUT_OF_RESOURCES
    assert list((tmp_path / "tmp").iterdir()) == []
