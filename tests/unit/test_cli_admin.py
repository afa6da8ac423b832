"""config, db, spool, check: the verbs of the admin, on a real configuration and a real store."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from engines import catalog
from node import __version__
from node.config.explain import keys, markdown
from node.config.load import load
from node.store import Store
from node.store.migrate import HEAD
from node.trial.phantoms import small_ct, write_series
from tests.cli import luminode
from tests.sites import CONFIG
from tests.storing import received, spool_bytes

pytestmark = pytest.mark.usefixtures("site")


# the configuration --------------------------------------------------------------------------------
def test_show_fills_in_defaults_and_masks_secrets(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PW", "hunter2")
    url = "postgresql+psycopg://luminode:${PW}@db.lan/luminode"
    (site / "config.yaml").write_text(CONFIG.replace("sqlite:///luminode.db", url))
    told = luminode("config", "show")
    assert told.status == 0
    assert told.json["store"]["database"] == url
    assert told.json["store"]["keep"]["received"] == 604800.0
    assert "hunter2" not in told.out + told.err


def test_show_takes_the_file_that_is_named(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = site / "other.yaml"
    other.write_text(CONFIG.replace("ae_title: LUMINODE", "ae_title: OTHER"))
    assert luminode("config", "show", "--config", other).json["node"]["ae_title"] == "OTHER"
    monkeypatch.setenv("LUMINODE_CONFIG", str(other))
    assert luminode("config", "show").json["node"]["ae_title"] == "OTHER"
    assert luminode("config", "show", "-c", "config.yaml").json["node"]["ae_title"] == "LUMINODE"


def test_explain_one_key_and_all_of_them() -> None:
    one = luminode("config", "explain", "rules.when")
    assert one.status == 0
    assert one.out.startswith("rules.when\n")
    everything = luminode("config", "explain")
    assert everything.out.strip() == markdown().strip()
    assert all(f"`{doc.path}`" in everything.out for doc in keys() if "." in doc.path)


def test_explain_a_key_that_is_none() -> None:
    told = luminode("config", "explain", "nod.listen")
    assert told.status == 2
    assert "did you mean node.listen?" in told.err


def test_schema_is_json_schema() -> None:
    told = luminode("config", "schema")
    assert told.json["$schema"].startswith("https://json-schema.org/")


def test_history_tells_every_version_with_its_difference(site_store: Store) -> None:
    assert luminode("config", "history").out == ""
    for n, digest in enumerate(("a" * 64, "b" * 64)):
        change = "-old\n+[bold]new" if n else ""
        site_store.configs.applied(digest, f"text {n}", change, datetime(2026, 1, 1 + n, tzinfo=UTC))
    told = luminode("config", "history")
    assert told.out.splitlines() == [
        f"2026-01-02T00:00:00+00:00  {'b' * 64}", "-old", "+[bold]new", f"2026-01-01T00:00:00+00:00  {'a' * 64}",
    ]  # fmt: skip
    assert [v["digest"] for v in luminode("config", "history", "--json").json] == ["b" * 64, "a" * 64]


# what is wrong with it ----------------------------------------------------------------------------
VERBS = (
    ("check",), ("config", "show"), ("config", "history"), ("db", "upgrade"), ("spool", "fsck"), ("serve",),
    ("series", "list"), ("jobs", "show", "1"), ("deliveries", "retry", "1"), ("provenance", "--verify"),
    ("route", "."), ("echo", "pacs"), ("send", "pacs", "."),
)  # fmt: skip


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_bad_configuration_ends_with_78_and_every_fault(site: Path, verb: tuple[str, ...]) -> None:
    bad = CONFIG.replace("Modality: CT", "Modalty: CT").replace("PACS", "P" * 17)
    (site / "config.yaml").write_text(bad)
    told = luminode(*verb)
    assert told.status == 78
    assert told.out == ""
    assert f"{site}/config.yaml:8:33: destinations.pacs.ae_title: " in told.err
    assert f'{site}/config.yaml:10:26: rules.1.when.Modalty: "Modalty" is no DICOM keyword' in told.err
    assert "(did you mean Modality?)" in told.err
    assert told.err.count("error ") == 2
    assert not (site / "luminode.db").exists()


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_configuration_that_is_not_there(site: Path, verb: tuple[str, ...]) -> None:
    (site / "config.yaml").unlink()
    told = luminode(*verb)
    assert told.status == 78
    assert "config.yaml:0:0: there is no such file" in told.err
    assert "--config" in told.err


# check --------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("site_store")
def test_check_offline_says_that_all_is_well(site: Path) -> None:
    told = luminode("check", "--json", "--offline")
    assert told.status == 0, told
    assert {f["what"]: f["ok"] for f in told.json} == {
        "config.yaml": True, "database": True, "provenance": True, "spool": True,
        "engine ct": True, "engine mr": True,
    }  # fmt: skip
    assert load(site / "config.yaml", os.environ).digest[:12] in told.json[0]["text"]
    assert "ok   engine mr" in luminode("check", "--offline").out


def test_check_asks_destinations() -> None:
    told = luminode("check", "--json")
    assert told.status == 1
    by_name = {f["what"]: f for f in told.json}
    assert by_name["destination outbox"]["ok"]
    assert not by_name["destination pacs"]["ok"]
    assert "FAIL destination pacs" in luminode("check").out


def test_check_tells_what_is_wrong_with_the_store(site: Path) -> None:
    (site / "spool").write_text("a file where a folder should be")
    told = luminode("check", "--offline", "--json")
    assert told.status == 1
    spool = next(f for f in told.json if f["what"] == "spool")
    assert spool["text"] == f"{site}/spool is no folder"
    assert spool["hint"]


@pytest.mark.usefixtures("site_store")
def test_check_tells_of_too_little_space(site: Path) -> None:
    (site / "config.yaml").write_text(CONFIG.replace("1MB", "900000GB"))
    told = luminode("check", "--offline")
    assert told.status == 1
    assert "FAIL spool" in told.out
    assert "free space, or lower store.refuse_below" in told.out


@pytest.fixture
def broken_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped engines, one of them with a card that is none."""
    zoo = tmp_path / "zoo"
    shutil.copytree(catalog.ZOO, zoo)
    (zoo / "ct-wavelet" / "card.yaml").write_text("name: ct-wavelet\n")
    monkeypatch.setattr(catalog, "ZOO", zoo)
    return zoo


@pytest.mark.usefixtures("broken_engine")
def test_check_lists_broken_engine_folders(site: Path) -> None:
    (site / "config.yaml").write_text(CONFIG.replace("ct-wavelet", "ct-nlm"))
    told = luminode("check", "--offline", "--json")
    assert told.status == 1
    broken = next(f for f in told.json if f["what"] == "engine folder ct-wavelet")
    assert not broken["ok"]
    assert broken["text"]


@pytest.mark.usefixtures("broken_engine")
def test_check_tells_why_an_engine_of_the_configuration_is_not_there() -> None:
    told = luminode("check", "--offline")
    assert told.status == 78
    assert "engine folder ct-wavelet: " in told.err
    assert "engines.ct.engine" in told.err


# database and spool -------------------------------------------------------------------------------
def test_upgrade_makes_the_database(site: Path) -> None:
    assert luminode("db", "upgrade").status == 0
    assert (site / "luminode.db").exists()
    assert luminode("db", "upgrade").out == "the schema is up to date\n"


def test_a_database_that_is_none_is_told_with_a_hint(site: Path) -> None:
    (site / "luminode.db").write_bytes(b"this is no database " * 100)
    told = luminode("series", "list")
    assert told.status == 1
    assert told.err.startswith("error the database refused")
    assert "restore a backup" in told.err


def test_a_path_that_cannot_be_made_is_told(site: Path) -> None:
    (site / "config.yaml").write_text(CONFIG.replace("luminode.db", "config.yaml/x.db"))
    told = luminode("db", "upgrade")
    assert told.status == 1
    assert "config.yaml" in told.err
    assert "check path, owner" in told.err


def test_fsck_of_a_sound_spool(site_store: Store) -> None:
    site_store.reception.record([received(site_store, n) for n in range(3)])
    told = luminode("spool", "fsck", "--verify")
    assert (told.status, told.out) == (0, "3 files, 3 records\n")


def test_fsck_finds_what_is_missing_and_what_is_corrupt(site_store: Store) -> None:
    gone, bad, _ = instances = [received(site_store, n) for n in range(3)]
    site_store.reception.record(instances)
    site_store.spool.path(gone.path).unlink()
    site_store.spool.path(bad.path).write_bytes(b"other bytes")
    told = luminode("spool", "fsck", "--json")
    assert told.status == 1
    assert (told.json["missing"], told.json["corrupt"]) == ([gone.path], [])
    told = luminode("spool", "fsck", "--verify")
    assert told.status == 1
    assert f"1 on record whose file is missing:\n  {gone.path}" in told.out
    assert f"1 that are not what was received:\n  {bad.path}" in told.out


def test_fsck_adopts_what_has_no_record(site: Path, site_store: Store) -> None:
    ds = small_ct(size=64, n_slices=1)[0]
    data = write_series([ds], site / "one")[0].read_bytes()
    offset = 144 + int.from_bytes(data[140:144], "little")
    sha256 = hashlib.sha256(data[offset:]).hexdigest()
    with site_store.spool.create() as writer:
        writer.write(data)
        writer.sync()
        path = writer.publish(ds.SeriesInstanceUID, ds.SOPInstanceUID, sha256)
    old = datetime(2020, 1, 1, tzinfo=UTC).timestamp()
    os.utime(site_store.spool.path(path), (old, old))
    told = luminode("spool", "fsck")
    assert told.status == 1
    assert f"1 without a record:\n  {path}" in told.out
    told = luminode("spool", "fsck", "--adopt", "--json")
    assert told.status == 0, told
    assert (told.json["adopted"], told.json["unknown"]) == ([path], [])
    assert [s.key.calling_ae for s in site_store.series.list()] == ["RECOVERED"]
    assert json.loads(luminode("spool", "fsck", "--json").out)["n_rows"] == 1


def test_fsck_tells_of_what_it_cannot_adopt(site_store: Store) -> None:
    path, _ = spool_bytes(site_store, "1.2.3", "1.2.3.4", b"no DICOM")
    told = luminode("spool", "fsck", "--adopt")
    assert told.status == 1
    assert path in told.out


# usage --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",), ("check", "--frobnicate"), ("series",), ("series", "show"), ("series", "show", "x"),
        ("jobs", "list", "--state", "LOST"), ("deliveries", "list", "-n", "0"), ("provenance",),
        ("provenance", "1.2.3", "--verify"), ("serve", "--role", "cook"),
        ("serve", "--role", "gather", "--role", "receive"), ("route", "nowhere"), ("route",),
        ("enhance", "."), ("enhance", ".", "-e", "ct-tv", "-o", "out", "-s", "2"), ("echo", "nobody"),
        ("echo", "PACS@nowhere"), ("echo", "@127.0.0.1:104"), ("echo", "PACS@127.0.0.1:99999"),
        ("send", "pacs", "nowhere"), ("send", "pacs", ".", "--from", "seventeen letters"),
        ("pacs", "--move-to", "WS1"), ("demo", "--series", "nowhere"), (),
    ],
    ids=" ".join,
)  # fmt: skip
@pytest.mark.usefixtures("site_store")
def test_usage_errors_end_with_2(arguments: tuple[str, ...]) -> None:
    told = luminode(*arguments)
    assert told.status == 2
    assert "luminode" in told.err
    assert told.out == ""


def test_help_is_no_error() -> None:
    told = luminode("--help")
    assert told.status == 0
    assert "provenance" in told.out


# GPUs and plans -----------------------------------------------------------------------------------
LEARNED = CONFIG.replace("engine: ct-wavelet", "engine: ct-cnn")


@pytest.fixture
def learned_site(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node with a learned engine, and an environment that verbs may change."""
    for name in ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    (site / "config.yaml").write_text(LEARNED)
    return site


def no_gpu() -> None:
    from engines.runtime.gpu import local

    if local():
        pytest.skip("there is a GPU here")


def test_check_on_a_host_without_a_gpu_alarms_nobody(learned_site: Path) -> None:
    no_gpu()
    told = luminode("check", "--offline", "--json")
    assert told.status == 0, told
    by_name = {f["what"]: f for f in told.json}
    assert by_name["gpu"]["text"] == "there is none here, or no driver: learned engines run on the CPU"
    assert "onnx on cpu" in by_name["engine ct"]["text"]
    assert by_name["TensorRT"]["text"]
    assert not any(
        f["note"] or f["hint"] for f in told.json if f["ok"] and f["what"].startswith(("gpu", "engine"))
    )


def test_check_fails_where_the_gpu_of_the_configuration_is_not_there(learned_site: Path) -> None:
    no_gpu()
    (learned_site / "config.yaml").write_text(LEARNED + "gpu: {devices: [0, MIG-0123456789abcdef]}\n")
    told = luminode("check", "--offline", "--json")
    assert told.status == 1
    missing = {f["what"]: f for f in told.json if not f["ok"]}
    assert set(missing) == {"gpu 0", "gpu MIG-0123456789abcdef"}
    assert all("nvidia-smi" in f["hint"] for f in missing.values())
    (learned_site / "config.yaml").write_text(LEARNED + "gpu: {devices: []}\n")
    told = luminode("check", "--offline")
    assert told.status == 0, told
    assert "none is used: gpu.devices is empty" in told.out


@pytest.mark.tensorrt
def test_plans_are_built_ahead_of_time_listed_and_checked(learned_site: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed")
    no_gpu()
    told = luminode("plans")
    assert (told.status, told.out.splitlines()[0]) == (0, "no plans")
    told = luminode("plans", "--build")
    assert told.status == 1
    assert "there is no GPU here, or no driver" in told.err
    for state in ("built", "kept"):
        told = luminode("plans", "--for", "8.6,89", "--json")
        assert told.status == 0, told
        assert [(o["engine"], o["precision"], o["flavour"], o["state"]) for o in told.json] == [
            ("ct-cnn", "fp16", "tensorrt_rtx", state), ("ct-cnn", "fp32", "tensorrt_rtx", state),
        ]  # fmt: skip
    listed = luminode("plans", "--json").json
    assert listed["folder"] == str(learned_site / "plans")  # beside store.spool
    assert [p["state"] for p in listed["plans"]] == ["ready", "ready"]
    checked = luminode("check", "--offline", "--json")
    assert checked.status == 0, checked
    assert [f["text"] for f in checked.json if f["what"] == "plan ct-cnn"] == [
        "tensorrt_rtx fp16: ready for capability 8.6, 8.9", "tensorrt_rtx fp32: ready for capability 8.6, 8.9",
    ]  # fmt: skip

    told = luminode("plans", "ct-wavelet", "--for", "86")
    assert (told.status, told.out) == (0, "nothing to build: none of these engines has a network\n")
    told = luminode("plans", "--for", "90")
    assert told.status == 1
    assert "does not run on capability 9.0" in told.err
    assert luminode("plans", "--for", ",").status == 2

    # A folder that others may write holds code of others'.
    (learned_site / "plans").chmod(0o777)
    told = luminode("check", "--offline")
    assert told.status == 1
    assert "chmod 700" in told.out
    assert luminode("plans", "--for", "86").status == 1


def test_check_tells_of_a_driver_that_does_not_start_and_what_serves_meanwhile(
    learned_site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.errors import GpuUnusable

    def refuse() -> None:
        raise GpuUnusable("the driver does not start: SYSTEM_DRIVER_MISMATCH", hint="start again")

    monkeypatch.setattr("engines.runtime.gpu.local", refuse)
    told = luminode("check", "--offline")
    assert told.status == 1
    assert "FAIL gpu                      the driver does not start: SYSTEM_DRIVER_MISMATCH" in told.out
    assert "start again" in told.out
    assert "onnx on cpu" in told.out


@pytest.mark.tensorrt
def test_check_tells_of_a_gpu_whose_plan_is_missing_how_to_build_it(
    learned_site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed")
    from engines.runtime.gpu import Gpu

    made_up = Gpu(name="GeForce of this test", compute_capability="86", driver="999.1")
    monkeypatch.setattr("engines.runtime.gpu.local", lambda: (made_up,))
    told = luminode("check", "--offline")
    assert told.status == 0, told
    assert (
        "ok   gpu                      GeForce of this test, compute capability 8.6, driver 999.1" in told.out
    )
    assert "note engine ct                not on tensorrt_rtx: no plan for capability 8.6" in told.out
    assert "note plan ct-cnn              tensorrt_rtx fp16: missing" in told.out
    assert "luminode plans --build" in told.out
    assert "engines build" not in told.out
    assert "--plans" not in told.out
    assert luminode("plans").status == 1
    assert luminode("plans", "--for", "86,89").status == 0
    assert luminode("plans").status == 0
    told = luminode("check", "--offline")
    assert "tensorrt_rtx fp16: ready for capability 8.6, 8.9" in told.out
    assert "no plan" not in told.out


def test_the_version_is_told_without_a_configuration(site: Path) -> None:
    (site / "config.yaml").unlink()
    assert luminode("--version").out == f"luminode {__version__}, database schema {HEAD}\n"
