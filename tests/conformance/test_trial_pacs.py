"""The trial PACS, asked by DCMTK's programs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from node.deliver.files import echo, read_parcel, send_files
from node.deliver.kinds import destination
from node.model import Outcome
from node.trial.pacs import Pacs
from tests.parcels import CT, EXPLICIT, STUDY, ct, part10
from tests.peers import J2K_LOSSLESS, StoreScp, free_port, needs
from tests.scripted import dimse_settings

pytestmark = pytest.mark.peer

MR = "1.2.840.10008.5.1.4.1.1.4"
FIRST, SECOND, OTHER = f"{STUDY}.1", f"{STUDY}.2", f"{STUDY}.3"


def instances() -> list[tuple[Dataset, str]]:
    """Two series of one study and one of another, of another patient; one of them compressed."""
    made = [(ct(number, series=FIRST, side=32), EXPLICIT) for number in range(1, 5)]
    for number in range(1, 4):
        ds = ct(number, series=SECOND, side=32, sop_class=MR)
        ds.Modality, ds.SeriesNumber, ds.SeriesDescription = "MR", 7, "T1 AX"
        made.append((ds, J2K_LOSSLESS))
    for number in range(1, 3):
        ds = ct(number, series=OTHER, side=32)
        ds.StudyInstanceUID, ds.PatientID, ds.PatientName = f"{STUDY}.99", "P2", "Doe^Jane"
        ds.StudyDate, ds.StudyTime, ds.StudyDescription = "20260401", "113000", "HEAD"
        made.append((ds, EXPLICIT))
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, found = tmp_path_factory.mktemp("files"), []
    for n, (ds, syntax) in enumerate(instances()):
        found.append(folder / f"{n}.dcm")
        found[-1].write_bytes(part10(ds, syntax))
    return found


@pytest.fixture(scope="module")
def move_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory, files: list[Path], move_port: int) -> Iterator[Pacs]:
    needs("findscu", "movescu", "getscu")
    folder = tmp_path_factory.mktemp("pacs")
    move_to = {"THERE": f"127.0.0.1:{move_port}", "NOWHERE": f"127.0.0.1:{free_port()}"}
    with Pacs(folder, "TRIAL", move_to=move_to) as one:
        sent = send_files(files, dimse_settings(one.port, "TRIAL"))
        assert (sent.ok, sent.n_done) == (True, 9)
        yield one


def find(pacs: Pacs, folder: Path, model: str, level: str, *keys: str) -> list[Dataset]:
    out = folder / "answers"
    out.mkdir()
    options = [o for key in (f"QueryRetrieveLevel={level}", *keys) for o in ("-k", key)]
    done = subprocess.run(
        ["findscu", model, "-aec", "TRIAL", *options, "-X", "-od", str(out), "127.0.0.1", str(pacs.port)],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "E:" not in done.stderr, done.stderr
    found = [dcmread(p, force=True) for p in sorted(out.iterdir())]
    for path in out.iterdir():
        path.unlink()
    out.rmdir()
    return found


def told(answers: list[Dataset], keyword: str) -> list[str]:
    return sorted(str(a[keyword].value) for a in answers)


def test_it_answers_an_echo_by_its_name_only(pacs: Pacs) -> None:
    assert echo(dimse_settings(pacs.port, "TRIAL")).ok
    stranger = echo(dimse_settings(pacs.port, "SOMEBODY"))
    assert not stranger.ok
    assert "1/1/7" in stranger.text


@pytest.mark.parametrize("model", ["-S", "-P"])
def test_studies_are_found_with_what_is_in_them(pacs: Pacs, tmp_path: Path, model: str) -> None:
    answers = find(
        pacs, tmp_path, model, "STUDY", "StudyInstanceUID", "PatientName", "ModalitiesInStudy", "StudyDate",
        "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances", "InstitutionalDepartmentName",
    )  # fmt: skip
    assert told(answers, "StudyInstanceUID") == [STUDY, f"{STUDY}.99"]
    one = next(a for a in answers if a.StudyInstanceUID == STUDY)
    assert list(one.ModalitiesInStudy) == ["CT", "MR"]
    assert (one.NumberOfStudyRelatedSeries, one.NumberOfStudyRelatedInstances) == (2, 7)
    assert one.PatientName == "Müller^Jürgen"
    assert one.RetrieveAETitle == "TRIAL"
    assert not one.get("InstitutionalDepartmentName")  # asked for, not known: empty


@pytest.mark.parametrize(
    ("level", "keys", "count"),
    [
        ("STUDY", ["StudyDate=20260330-"], 1),
        ("STUDY", ["StudyDate=-20260330"], 1),
        ("STUDY", ["StudyDate=20260301-20260430"], 2),
        ("STUDY", ["StudyDate=20260301-20260430", "StudyTime=1100-12"], 1),
        ("STUDY", ["PatientName=doe*"], 1),
        ("STUDY", ["PatientID=P?"], 2),
        ("STUDY", ["PatientID=P3"], 0),
        ("STUDY", ["ModalitiesInStudy=MR"], 1),
        ("STUDY", [f"StudyInstanceUID={STUDY}\\{STUDY}.99"], 2),
        ("STUDY", ["StudyDescription=*HE*"], 2),
        ("SERIES", [f"StudyInstanceUID={STUDY}", "SeriesInstanceUID"], 2),
        ("SERIES", [f"StudyInstanceUID={STUDY}", "Modality=MR", "SeriesInstanceUID"], 1),
        ("SERIES", ["SeriesNumber=1002", "SeriesInstanceUID"], 2),
        ("SERIES", ["SeriesDescription=T1*", "SeriesInstanceUID"], 1),
        ("IMAGE", [f"SeriesInstanceUID={FIRST}", "SOPInstanceUID"], 4),
        ("IMAGE", [f"SeriesInstanceUID={FIRST}", "InstanceNumber=3", "SOPInstanceUID"], 1),
        ("IMAGE", [f"SOPInstanceUID={FIRST}.1\\{OTHER}.2"], 2),
    ],
    ids=str,
)
def test_keys_are_matched(pacs: Pacs, tmp_path: Path, level: str, keys: list[str], count: int) -> None:
    assert len(find(pacs, tmp_path, "-S", level, *keys)) == count


def test_patients_and_series_and_images_tell_their_own(pacs: Pacs, tmp_path: Path) -> None:
    patients = find(pacs, tmp_path, "-P", "PATIENT", "PatientID", "NumberOfPatientRelatedInstances")
    assert {(a.PatientID, a.NumberOfPatientRelatedInstances) for a in patients} == {("P1", 7), ("P2", 2)}
    series = find(
        pacs, tmp_path, "-S", "SERIES", f"SeriesInstanceUID={SECOND}", "NumberOfSeriesRelatedInstances",
        "SeriesDescription",
    )  # fmt: skip
    assert [(a.NumberOfSeriesRelatedInstances, a.SeriesDescription) for a in series] == [(3, "T1 AX")]
    images = find(pacs, tmp_path, "-S", "IMAGE", f"SOPInstanceUID={OTHER}.2", "Rows", "ImagePositionPatient")
    assert [(a.Rows, list(a.ImagePositionPatient)) for a in images] == [(32, [-100, -100, 2.5])]


def test_a_query_for_patients_in_the_study_root_is_no_query(pacs: Pacs, tmp_path: Path) -> None:
    done = subprocess.run(
        ["findscu", "-v", "-S", "-aec", "TRIAL", "-k", "QueryRetrieveLevel=PATIENT", "-k", "PatientID",
         "127.0.0.1", str(pacs.port)],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert "DataSetDoesNotMatchSOPClass" in done.stdout + done.stderr


def get(pacs: Pacs, folder: Path, *keys: str) -> list[Path]:
    folder.mkdir()
    options = [o for key in keys for o in ("-k", key)]
    done = subprocess.run(
        ["getscu", "-S", "-aec", "TRIAL", *options, "-od", str(folder), "127.0.0.1", str(pacs.port)],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return sorted(folder.iterdir())


def test_get_brings_a_series_to_whoever_asks(pacs: Pacs, tmp_path: Path) -> None:
    got = get(
        pacs, tmp_path / "got", "QueryRetrieveLevel=SERIES", f"StudyInstanceUID={STUDY}",
        f"SeriesInstanceUID={FIRST}",
    )  # fmt: skip
    assert len(got) == 4
    for path in got:
        there = dcmread(path)
        here = ct(int(there.InstanceNumber), series=FIRST, side=32)
        assert there.PixelData == here.PixelData
        assert there.PatientName == here.PatientName


def test_get_decompresses_for_whoever_takes_nothing_else(pacs: Pacs, tmp_path: Path) -> None:
    got = get(
        pacs, tmp_path / "got", "QueryRetrieveLevel=IMAGE", f"StudyInstanceUID={STUDY}",
        f"SeriesInstanceUID={SECOND}", f"SOPInstanceUID={SECOND}.2",
    )  # fmt: skip
    assert [dcmread(p).PixelData for p in got] == [ct(2, series=SECOND, side=32).PixelData]


def move(pacs: Pacs, to: str, *keys: str) -> str:
    options = [o for key in keys for o in ("-k", key)]
    done = subprocess.run(
        ["movescu", "-v", "-S", "-aec", "TRIAL", "-aem", to, *options, "127.0.0.1", str(pacs.port)],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_move_sends_a_study_elsewhere_as_it_is_kept(
    pacs: Pacs, storescps: Callable[..., StoreScp], move_port: int
) -> None:
    there = storescps("+xa", ae_title="THERE", port=move_port)
    text = move(pacs, "THERE", "QueryRetrieveLevel=STUDY", f"StudyInstanceUID={STUDY}")
    assert "Success" in text, text
    assert there.uids() == sorted(
        [f"{FIRST}.{n}" for n in range(1, 5)] + [f"{SECOND}.{n}" for n in range(1, 4)]
    )
    syntaxes = {p.name[:2]: dcmread(p).file_meta.TransferSyntaxUID for p in there.folder.iterdir()}
    assert syntaxes == {"CT": EXPLICIT, "MR": J2K_LOSSLESS}


@pytest.mark.parametrize("to", ["UNKNOWN", "NOWHERE"])
def test_move_to_where_nobody_is_is_refused(pacs: Pacs, to: str) -> None:
    text = move(pacs, to, "QueryRetrieveLevel=STUDY", f"StudyInstanceUID={STUDY}")
    assert "MoveDestinationUnknown" in text or "Destination Unknown" in text, text


def test_move_of_nothing_is_nothing(pacs: Pacs, storescps: Callable[..., StoreScp], move_port: int) -> None:
    there = storescps("+xa", ae_title="THERE", port=move_port)
    text = move(pacs, "THERE", "QueryRetrieveLevel=STUDY", "StudyInstanceUID=1.2.3.4.5")
    assert "Success" in text, text
    assert there.uids() == []


# keeping ------------------------------------------------------------------------------------------


def test_a_restart_finds_everything_and_sweeps_what_was_half_written(
    tmp_path: Path, files: list[Path]
) -> None:
    new: list[str] = []
    with Pacs(tmp_path / "pacs", on_stored=new.append) as one:
        settings = dimse_settings(one.port, "PACS")
        assert send_files(files, settings).ok
        assert send_files(files, settings).ok  # a duplicate is a success, and no news
        before, by_series = one.uids(), one.series()
    assert sorted(new) == before
    assert {uid: len(held) for uid, held in by_series.items()} == {FIRST: 4, SECOND: 3, OTHER: 2}
    (tmp_path / "pacs" / "notes.txt").write_text("put here by a person")
    half = tmp_path / "pacs" / FIRST / ".incoming-0123"
    half.write_bytes(b"half")
    with Pacs(tmp_path / "pacs") as one:
        assert one.uids() == before
        assert one.series() == by_series
        kept = one.path(before[0])
        assert kept is not None
        assert kept.is_file()
        assert one.path("1.2.3") is None
    assert not half.exists()
    assert (tmp_path / "pacs" / "notes.txt").exists()


def test_the_first_bytes_of_a_uid_stay(tmp_path: Path) -> None:
    first, second = ct(1, side=32), ct(1, side=32)
    second.PatientComments = "changed"
    with Pacs(tmp_path / "pacs") as one:
        for n, ds in enumerate((first, second)):
            path = tmp_path / f"{n}.dcm"
            path.write_bytes(part10(ds))
            assert send_files([path], dimse_settings(one.port, "PACS")).ok
        kept = one.path(str(first.SOPInstanceUID))
        assert kept is not None
        assert "PatientComments" not in dcmread(kept)


def test_a_data_set_that_is_another_than_announced_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "1.dcm"
    path.write_bytes(part10(ct(1, side=32)))
    lie = replace(read_parcel(path), sop_instance_uid="1.2.3")
    told: list[Outcome] = []
    with Pacs(tmp_path / "pacs") as one:
        destination(dimse_settings(one.port, "PACS")).send([lie], on_outcome=told.append)
        assert [o.status for o in told] == [0xA900]
        assert one.uids() == []


def test_every_class_can_be_stored_even_those_that_nobody_enhances(tmp_path: Path) -> None:
    ds = ct(1, side=32, sop_class="1.2.840.10008.5.1.4.1.1.77.1.5.1")  # ophthalmic photography
    path = tmp_path / "1.dcm"
    path.write_bytes(part10(ds))
    with Pacs(tmp_path / "pacs") as one:
        assert send_files([path], dimse_settings(one.port, "PACS")).ok
        assert CT not in {h.parcel.sop_class_uid for h in one.shelf.all()}
