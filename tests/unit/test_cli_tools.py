"""route, enhance, send, echo on phantoms: what an admin tries before a scanner is pointed here."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest

from node.trial.pacs import Pacs
from node.trial.phantoms import small_ct, small_mr, write_series
from tests.cli import luminode
from tests.sites import CONFIG

pytestmark = pytest.mark.usefixtures("site")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CT and an MR series."""
    folder = tmp_path_factory.mktemp("scans")
    write_series(small_ct(size=192, noise_hu=15), folder / "ct")
    write_series(small_mr(), folder / "mr")
    return folder


# route --------------------------------------------------------------------------------------------
def test_route_tells_which_rule_takes_a_series_and_why(scans: Path) -> None:
    (scans / "notes.txt").write_text("no DICOM")
    told = luminode("route", scans)
    assert told.status == 0
    assert "CT, 6 instances\n  enhance to outbox, pacs by rule chest: " in told.out
    assert "yes chest: Modality CT  (found CT)" in told.out
    assert "MR, 6 instances\n  ignore by rule the rest: " in told.out
    assert "no  brain: InstanceCount at least 100  (found 6)" in told.out
    assert f"unreadable {scans}/notes.txt: not a DICOM file" in told.out


def test_route_for_machines(scans: Path) -> None:
    told = luminode("route", scans / "ct", "--json").json
    (series,) = told["series"]
    assert (series["modality"], series["instances"]) == ("CT", 6)
    assert series["decision"]["action"] == "enhance"
    assert series["decision"]["destinations"] == ["outbox", "pacs"]
    assert told["unreadable"] == []


def test_route_as_if_somebody_had_sent_it(site: Path, scans: Path) -> None:
    (site / "config.yaml").write_text(CONFIG.replace("Modality: CT", "Modality: CT, CallingAE: CT7"))
    assert "ignore by rule the rest" in luminode("route", scans / "ct").out
    assert "enhance to outbox, pacs by rule chest" in luminode("route", scans / "ct", "--from", "CT7").out


def test_what_is_never_enhanced_is_told_with_its_reason(site: Path) -> None:
    localizer = small_ct(size=64, n_slices=3)
    for ds in localizer:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_series(localizer, site / "scout")
    (site / "config.yaml").write_text(CONFIG.replace(", ImageType: not LOCALIZER", ""))
    assert "  reject by rule chest: It is a localizer" in luminode("route", "scout").out


@pytest.mark.parametrize("json", [(), ("--json",)])
def test_a_folder_without_dicom(site: Path, json: tuple[str, ...]) -> None:
    (site / "empty").mkdir()
    assert luminode("route", "empty", *json).status == 1
    assert luminode("enhance", "empty", "-e", "ct-wavelet", "-o", "out", *json).status == 1
    assert luminode("send", "pacs", "empty", *json).status == 1


# enhance ------------------------------------------------------------------------------------------
def test_enhance_writes_a_derived_series(site: Path, scans: Path) -> None:
    told = luminode("enhance", scans / "ct", "--engine", "ct-wavelet", "--output", "out", "--json")
    assert told.status == 0, told
    (made,) = told.json
    assert (made["n_sources"], made["n_made"], made["reason"]) == (6, 6, "")
    figures = made["report"]["figures"]
    assert figures["noise_after"] < figures["noise_before"]
    derived = [pydicom.dcmread(p) for p in sorted((site / made["folder"]).iterdir())]
    assert {d.SeriesInstanceUID for d in derived} == {made["derived_series_uid"]}
    assert {len(d.SourceImageSequence) for d in derived} == {1}


def test_enhance_at_strength_0_gives_the_pixels_back(site: Path, scans: Path) -> None:
    told = luminode("enhance", scans / "ct", "-e", "ct-wavelet", "-o", "out", "-s", "0")
    assert told.status == 0
    head, row = told.out.splitlines()
    assert head.split()[:4] == ["series", "UID", "sources", "made"]
    assert row.split()[1:3] == ["6", "6"]
    before = {d.SOPInstanceUID: d.PixelData for d in map(pydicom.dcmread, (scans / "ct").iterdir())}
    for path in (site / "out" / "series-001").iterdir():
        derived = pydicom.dcmread(path)
        assert derived.PixelData == before[derived.SourceImageSequence[0].ReferencedSOPInstanceUID]


def test_enhance_twice_makes_the_same_bytes(site: Path, scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1750000000")
    for folder in ("one", "two"):
        assert luminode("enhance", scans / "ct", "-e", "ct-wavelet", "-o", folder).status == 0
    one, two = ([p.read_bytes() for p in sorted((site / f / "series-001").iterdir())] for f in ("one", "two"))
    assert one == two


def test_enhance_leaves_alone_what_the_engine_is_not_for(site: Path, scans: Path) -> None:
    told = luminode("enhance", scans / "mr", "-e", "ct-wavelet", "-o", "out")
    assert told.status == 0
    assert "ct-wavelet is for CT" in told.out
    assert not list(site.rglob("out/series-001/*"))


def test_an_engine_that_is_not_there(scans: Path) -> None:
    told = luminode("enhance", scans, "-e", "ct-wavelets", "-o", "out")
    assert told.status == 1
    assert told.err == "error there is no engine 'ct-wavelets'\n      did you mean ct-wavelet?\n"
    told = luminode("enhance", scans, "-e", "ct-wavelet", "-o", "out", "--runtime", "onnx")
    assert told.status == 1
    assert "say `runtime: auto`" in told.err


def test_a_series_that_fails_keeps_others_and_what_lies_in_the_folder(site: Path, scans: Path) -> None:
    broken = small_ct(size=64, n_slices=3, salt="other")
    for ds in broken:
        ds.PixelData = ds.PixelData[:100]
    write_series(broken, site / "in" / "a")
    write_series([pydicom.dcmread(p) for p in sorted((scans / "ct").iterdir())], site / "in" / "b")
    mine = site / "out" / "series-001" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    told = luminode("enhance", "in", "-e", "ct-wavelet", "-o", "out", "--json")
    assert told.status == 1
    assert "error series 1: " in told.err
    failed, made = told.json
    assert failed["reason"]
    assert (failed["n_made"], made["n_made"]) == (0, 6)
    assert mine.read_text() == "mine"


def test_an_output_folder_that_cannot_be_made(site: Path, scans: Path) -> None:
    (site / "out").write_text("a file")
    told = luminode("enhance", scans / "ct", "-e", "ct-wavelet", "-o", "out")
    assert told.status == 1
    assert told.err.startswith("error ")
    assert "out" in told.err


# send and echo ------------------------------------------------------------------------------------
def test_send_and_echo(site: Path, scans: Path) -> None:
    pacs = Pacs(site / "pacs", "PACS", "127.0.0.1", 0)
    pacs.start()
    try:
        peer = f"PACS@127.0.0.1:{pacs.port}"
        (site / "config.yaml").write_text(CONFIG.replace('127.0.0.1:1"', f'127.0.0.1:{pacs.port}"'))
        assert luminode("echo", peer).out.startswith("ok: ")
        assert luminode("echo", "pacs", "--json").json["ok"]
        told = luminode("send", "pacs", scans / "ct", scans / "mr", "-j", "2", "--from", "CT9", "--json")
        assert told.status == 0, told
        assert (told.json["n_files"], told.json["n_done"]) == (12, 12)
        assert luminode("send", peer, scans / "ct", "--pace", "1000").out.startswith("6 of 6 sent in ")
        assert len(list((site / "pacs").rglob("*.dcm"))) == 12
    finally:
        pacs.stop()


def test_a_folder_is_a_peer_too(site: Path, scans: Path) -> None:
    assert luminode("echo", "outbox").status == 0
    assert luminode("send", "outbox", scans / "ct").status == 0
    assert len(list((site / "outbox").rglob("*.dcm"))) == 6


def test_nobody_there(scans: Path) -> None:
    told = luminode("echo", "pacs")
    assert told.status == 1
    assert told.out.startswith("FAIL: 127.0.0.1:1 cannot be reached")
    told = luminode("send", "pacs", scans / "ct")
    assert told.status == 1
    assert told.out.startswith("0 of 6 sent")
    assert "cannot be reached" in told.out


def test_what_is_no_dicom_is_not_sent(site: Path) -> None:
    told = luminode("send", "outbox", site / "config.yaml", "--json")
    assert told.status == 1
    assert "not a DICOM file" in told.json["not_done"][0]["text"]


# as a process -------------------------------------------------------------------------------------
@pytest.mark.usefixtures("site_store")
def test_the_command_as_a_process(site: Path) -> None:
    command = [sys.executable, "-m", "node", "series", "show", "7"]
    told = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT)}, cwd=site
    )
    assert told.returncode == 1
    assert told.stderr == "error there is no series 7\n      `luminode series list` shows those there are\n"


def test_the_trial_pacs_ends_on_sigterm(site: Path) -> None:
    command = [sys.executable, "-m", "node", "pacs", "--port", "0", "--folder", "kept"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=site,
        env={"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert line.startswith("PACS PACS listens on 127.0.0.1:")
    assert (site / "kept").is_dir()
