"""The laws of every destination: all or a resumable part; an idempotent resend; refusal is typed."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from node.deliver.destination import Destination
from node.deliver.files import echo
from node.deliver.kinds import KINDS, UnknownDestination, destination, settings_of
from node.deliver.parcel import Parcel
from node.errors import DeliveryError
from node.model import Outcome
from node.trial.pacs import Pacs
from tests.parcels import ct_parcels
from tests.peers import free_port
from tests.scripted import dimse_settings


@dataclass
class Place:
    """A destination of some kind that works, and what it holds."""

    settings: dict[str, Any]
    held: Callable[[], dict[str, bytes]]
    dead: dict[str, Any]

    @property
    def destination(self) -> Destination:
        return destination(self.settings)


def files_of(folder: Path) -> dict[str, bytes]:
    """SOP Instance UID -> pixels of all instances in a folder, anything else being a fault."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            assert path.suffix == ".dcm", path
            ds = dcmread(path)
            assert str(ds.SOPInstanceUID) not in found
            found[str(ds.SOPInstanceUID)] = bytes(ds.PixelData)
    return found


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    with Pacs(tmp_path_factory.mktemp("pacs")) as one:
        yield one


@pytest.fixture
def dimse(pacs: Pacs) -> Place:
    shutil.rmtree(pacs.shelf.folder)
    assert pacs.shelf.fill() == 0
    return Place(
        settings=dimse_settings(pacs.port, "PACS"),
        held=lambda: files_of(pacs.shelf.folder),
        dead=dimse_settings(free_port(), "PACS", timeout=2),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Place:
    (tmp_path / "file").write_text("in the way")
    return Place(
        settings={"kind": "folder", "path": str(tmp_path / "out" / "here")},
        held=lambda: files_of(tmp_path / "out" / "here"),
        dead={"kind": "folder", "path": str(tmp_path / "file" / "below")},
    )


@pytest.fixture(params=sorted(KINDS))
def place(request: pytest.FixtureRequest) -> Place:
    """A place of each kind in turn: a new kind brings a fixture of its name."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def parcels(tmp_path: Path) -> list[Parcel]:
    return ct_parcels(tmp_path / "spool", 8)


def pixels(parcels: list[Parcel]) -> dict[str, bytes]:
    return {p.sop_instance_uid: bytes(dcmread(p.path).PixelData) for p in parcels}


def sent(place: Place, parcels: list[Parcel], **how: Any) -> list[Outcome]:
    told: list[Outcome] = []
    place.destination.send(parcels, on_outcome=told.append, **how)
    return told


def test_all_of_it_arrives_and_is_told_once_each(place: Place, parcels: list[Parcel]) -> None:
    told = sent(place, parcels)
    assert [o.sop_instance_uid for o in told] == [p.sop_instance_uid for p in parcels]
    assert all(o.done and not o.retryable for o in told)
    assert place.held() == pixels(parcels)


def test_nothing_to_send_is_nothing_to_do(place: Place) -> None:
    assert sent(place, []) == []


def test_a_resend_is_harmless(place: Place, parcels: list[Parcel]) -> None:
    sent(place, parcels)
    told = sent(place, parcels)
    assert all(o.done for o in told)
    assert place.held() == pixels(parcels)


def test_what_is_done_is_not_sent_again(place: Place, parcels: list[Parcel]) -> None:
    done = frozenset(p.sop_instance_uid for p in parcels[:5])
    told = sent(place, parcels, done=done)
    assert [o.sop_instance_uid for o in told] == [p.sop_instance_uid for p in parcels[5:]]
    assert set(place.held()) == {p.sop_instance_uid for p in parcels[5:]}


def test_a_stop_leaves_a_part_that_is_told_truly_and_can_be_resumed(
    place: Place, parcels: list[Parcel]
) -> None:
    told: list[Outcome] = []
    many = [*parcels, *ct_parcels(parcels[0].path.parent / "more", 40, first=101, side=8)]
    place.destination.send(many, on_outcome=told.append, stop=lambda: len(told) >= 3)
    done = {o.sop_instance_uid for o in told if o.done}
    assert 3 <= len(done) < len(many)
    assert done <= set(place.held())
    place.destination.send(many, on_outcome=told.append, done=done)
    assert len(told) == len({o.sop_instance_uid for o in told}) == len(many)
    assert place.held() == pixels(many)


def test_damaged_bytes_are_never_sent_and_do_not_hold_up_the_rest(
    place: Place, parcels: list[Parcel]
) -> None:
    rotten, short, gone = parcels[2], parcels[4], parcels[6]
    data = bytearray(rotten.path.read_bytes())
    data[-7] ^= 1
    rotten.path.write_bytes(data)
    os.truncate(short.path, short.size - 2)
    gone.path.unlink()
    good = [p for p in parcels if p not in (rotten, short, gone)]
    told = {o.sop_instance_uid: o for o in sent(place, parcels)}
    for one in (rotten, short, gone):
        assert not told[one.sop_instance_uid].done
        assert not told[one.sop_instance_uid].retryable
        assert "not sent" in told[one.sop_instance_uid].comment
    assert place.held() == pixels(good)


def test_a_link_in_the_spool_is_not_followed(place: Place, parcels: list[Parcel], tmp_path: Path) -> None:
    secret = tmp_path / "elsewhere.dcm"
    parcels[0].path.rename(secret)
    parcels[0].path.symlink_to(secret)
    told = sent(place, parcels)
    assert [o.done for o in told] == [False] + [True] * 7


def test_a_place_that_is_not_there_is_a_typed_retryable_refusal(place: Place, parcels: list[Parcel]) -> None:
    told: list[Outcome] = []
    with pytest.raises(DeliveryError) as refused:
        destination(place.dead).send(parcels, on_outcome=told.append)
    assert refused.value.retryable
    assert told == []


def test_an_echo_tells_whether_it_is_there(place: Place) -> None:
    there, gone = echo(place.settings), echo(place.dead)
    assert there.ok
    assert there.text
    assert not gone.ok
    assert gone.text


def test_an_endpoint_tells_places_apart(place: Place) -> None:
    assert place.destination.endpoint != destination(place.dead).endpoint


def test_settings_of_a_later_release_still_lead_where_they_were_meant_to(
    place: Place, parcels: list[Parcel]
) -> None:
    later = {"key_of_a_later_release": 1, "retry": {"for": "2d", "politely": True}}
    newer = replace(place, settings={**place.settings, **later})
    assert settings_of(newer.settings).retry.for_ == 2 * 86400
    assert all(o.done for o in sent(newer, parcels))


@pytest.mark.parametrize("how", [{"mode": "json"}, {"mode": "json", "by_alias": True}, {}], ids=str)
def test_settings_survive_being_recorded(place: Place, how: dict[str, Any]) -> None:
    settings = settings_of({**place.settings, "retry": {"for": "2d"}})
    recorded = json.loads(json.dumps(settings.model_dump(**how)))
    assert settings_of(recorded) == settings
    assert destination(recorded).endpoint == place.destination.endpoint


def test_settings_that_make_no_sense_are_refused_by_name() -> None:
    with pytest.raises(UnknownDestination, match="carrier pigeon"):
        destination({"kind": "carrier pigeon"})
    with pytest.raises(UnknownDestination, match="path"):
        destination({"kind": "folder"})


# folder -------------------------------------------------------------------------------------------


def test_names_in_a_folder_are_uids_or_digests_never_paths(folder: Place, parcels: list[Parcel]) -> None:
    hostile = ["../../etc/passwd", "/etc/passwd", "..", "1.2/../../x", "1.2\0.3", "", "1" * 65, "CON"]
    odd = [
        replace(p, series_uid=uid, sop_instance_uid=uid)
        for p, uid in zip(parcels, hostile, strict=True)
    ]  # fmt: skip
    assert all(o.done for o in sent(folder, odd))
    root = Path(folder.settings["path"])
    found = sorted(p.relative_to(root) for p in root.rglob("*.dcm"))
    assert len(found) == len(hostile)
    assert all(len(p.parts) == 2 and p.parts[0].startswith("x") for p in found)
    assert [p.name for p in root.parent.iterdir()] == ["here"]


def test_a_file_that_was_damaged_there_is_mended(folder: Place, parcels: list[Parcel]) -> None:
    sent(folder, parcels)
    path = next(Path(folder.settings["path"]).rglob(f"{parcels[0].sop_instance_uid}.dcm"))
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    assert [o.status for o in sent(folder, parcels)] == [0x0000] + [0x0111] * 7
    assert folder.held() == pixels(parcels)


def test_a_link_planted_for_the_series_is_not_followed(
    folder: Place, parcels: list[Parcel], tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    trap.mkdir()
    root = Path(folder.settings["path"])
    root.mkdir(parents=True)
    (root / parcels[0].series_uid).symlink_to(trap)
    with pytest.raises(DeliveryError):
        sent(folder, parcels)
    assert list(trap.iterdir()) == []


def test_a_full_disk_is_retryable_and_leaves_nothing_half_written(
    folder: Place, parcels: list[Parcel]
) -> None:
    told: list[Outcome] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # a file may not grow: EFBIG
    try:
        with pytest.raises(DeliveryError) as refused:
            folder.destination.send(parcels, on_outcome=told.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refused.value.retryable
    assert not any(o.done for o in told)
    assert folder.held() == {}
    assert all(o.done for o in sent(folder, parcels))
