"""What deploy/ holds, checked without a Docker engine: image, compose file, systemd unit, configurations."""

from __future__ import annotations

import getpass
import importlib.util
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from node.config.load import load
from node.config.schema import DimseDestination
from tests import dockerfile

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SECRETS = {"DB_PASSWORD": "canary-db", "ORTHANC_PASSWORD": "canary-orthanc"}

# The compose specification's keys, as far as a file like ours may use them.
TOP = {"name", "services", "networks", "volumes", "secrets", "configs", "include"}
SERVICE = {
    "build", "cap_add", "cap_drop", "command", "configs", "depends_on", "deploy", "entrypoint", "env_file",
    "environment", "expose", "healthcheck", "hostname", "image", "init", "labels", "logging", "mem_limit", "networks",
    "pids_limit", "ports", "profiles", "read_only", "restart", "secrets", "security_opt", "shm_size",
    "stop_grace_period", "stop_signal", "tmpfs", "ulimits", "user", "volumes", "working_dir",
}  # fmt: skip
HEALTHCHECK = {"test", "interval", "timeout", "retries", "start_period", "start_interval", "disable"}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}
DURATION = re.compile(r"(\d+(us|ms|s|m|h))+")
SIZE = re.compile(r"\d+(b|k|m|g|kb|mb|gb)?", re.IGNORECASE)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return YAML(typ="safe").load(DEPLOY / "compose.yaml")


@pytest.fixture(scope="module")
def stages() -> tuple[dockerfile.Stage, ...]:
    return dockerfile.read(DEPLOY / "Dockerfile")


def services(compose: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from compose["services"].items()


# compose ------------------------------------------------------------------------------------------
def test_compose_uses_only_keys_of_the_specification(compose: dict[str, Any]) -> None:
    assert {k for k in compose if not k.startswith("x-")} <= TOP
    for name, service in services(compose):
        assert set(service) <= SERVICE, name
        assert set(service.get("healthcheck", {})) <= HEALTHCHECK
        for key in ("interval", "timeout", "start_period"):
            assert DURATION.fullmatch(service.get("healthcheck", {}).get(key, "1s"))
        for key in ("mem_limit", "shm_size"):
            assert SIZE.fullmatch(str(service.get(key, "1m")))
        assert DURATION.fullmatch(service.get("stop_grace_period", "10s"))
        for volume in service.get("volumes", []):
            assert set(volume) <= {"type", "source", "target", "read_only"}
            assert volume["target"].startswith("/")
        for port in service.get("ports", []):
            assert re.fullmatch(r"([\d.]+:)?\d+:\d+(/(tcp|udp))?", port)


def test_compose_names_nothing_that_is_not_there(compose: dict[str, Any]) -> None:
    for name, service in services(compose):
        assert set(service["networks"]) <= set(compose["networks"])
        assert set(service.get("secrets", [])) <= set(compose["secrets"])
        for volume in service.get("volumes", []):
            if volume["type"] == "volume":
                assert volume["source"] in compose["volumes"]
            else:
                assert (DEPLOY / volume["source"]).exists()
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] in CONDITIONS
            if how["condition"] == "service_healthy":
                assert "healthcheck" in compose["services"][other], f"{name} waits for {other}"
    build = compose["services"]["node"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    secret = compose["secrets"]["db_password"]
    assert set(secret) <= {"environment", "file", "external"}


def test_every_service_is_hardened(compose: dict[str, Any], stages: tuple[dockerfile.Stage, ...]) -> None:
    for name, service in services(compose):
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"]
        assert "cap_add" not in service
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["pids_limit"] > 0
        assert service["mem_limit"]
        assert not {"privileged", "network_mode", "pid", "ipc", "devices"} & set(service)
        assert not any("docker.sock" in str(v) for v in service.get("volumes", []))
        tag = service["image"].rpartition(":")[2]
        assert tag not in ("", "latest")
        user = service.get("user") or stages[-1].all("USER")[-1]
        assert int(user.split(":")[0]) > 0
        assert "healthcheck" in service or stages[-1].all("HEALTHCHECK")
    assert compose["networks"]["database"]["internal"] is True
    assert set(compose["services"]["db"]["networks"]) == {"database"}
    assert all(p.startswith("127.0.0.1:") for p in compose["services"]["orthanc"]["ports"])


def test_the_override_for_a_gpu_changes_nothing_else(
    compose: dict[str, Any], stages: tuple[dockerfile.Stage, ...]
) -> None:
    override = YAML(typ="safe").load(DEPLOY / "compose.gpu.yaml")
    assert set(override) == {"services"}
    assert set(override["services"]) == {"node"}
    node = override["services"]["node"]
    assert set(node) == {"image", "build", "environment", "deploy"}
    (argument,) = node["build"]["args"].items()
    assert argument == ("EXTRAS", "postgres,tensorrt")
    assert stages[0].all("ARG") == ["EXTRAS=postgres"]
    assert any("${EXTRAS" in step for step in stages[0].all("RUN"))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(argument[1].split(",")) <= set(extras)
    # What the page builds plans into has TensorRT in it.
    assert f"FROM {node['image']}\n" in (ROOT / "docs" / "operations" / "gpu.md").read_text()
    (device,) = node["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_no_password_is_written_down(compose: dict[str, Any]) -> None:
    harmless = ("${", "/run/secrets/", "...", "x ")
    for path in filter(Path.is_file, DEPLOY.rglob("*")):
        given = re.findall(
            r"(?i)\bpassword\b[\"']?[ \t]*[:=][ \t]*([^\n]+)", path.read_text().replace("_", " ")
        )
        assert all(any(h in value for h in harmless) for value in given), path.name
    assert compose["services"]["db"]["environment"]["POSTGRES_PASSWORD_FILE"].startswith("/run/secrets/")
    example = re.findall(r"^(\w+)=$", (DEPLOY / "example.env").read_text(), flags=re.MULTILINE)
    wanted = re.findall(r"\$\{(\w+):\?", (DEPLOY / "compose.yaml").read_text())
    assert set(example) == set(wanted)
    assert "/deploy/.env" in (ROOT / ".gitignore").read_text().splitlines()


# configurations -----------------------------------------------------------------------------------
def test_the_compose_configuration_is_valid_and_fits_the_other_containers(compose: dict[str, Any]) -> None:
    loaded = load(DEPLOY / "config.compose.yaml", SECRETS)
    assert loaded.warnings == ()
    config = loaded.config
    assert f"@{'db'}/" in config.store.database
    assert compose["services"]["db"]["environment"]["POSTGRES_USER"] in config.store.database
    assert config.store.spool.startswith("/var/lib/luminode")
    assert compose["services"]["node"]["ports"] == [f"{config.node.listen.port}:{config.node.listen.port}"]
    pacs = config.destinations["orthanc"]
    orthanc = orthanc_configuration()
    assert isinstance(pacs, DimseDestination)
    assert (pacs.ae_title, pacs.host, pacs.port) == (orthanc["DicomAet"], "orthanc", orthanc["DicomPort"])
    assert orthanc["DicomModalities"]["luminode"]["AET"] == config.node.ae_title
    assert orthanc["AuthenticationEnabled"] is True
    storage = orthanc["StorageDirectory"]
    assert any(t.startswith(storage + ":") for t in compose["services"]["orthanc"]["tmpfs"])


def orthanc_configuration() -> dict[str, Any]:
    text = re.sub(r"^\s*//.*$", "", (DEPLOY / "orthanc.json").read_text(), flags=re.MULTILINE)
    return json.loads(text)


# Dockerfile ---------------------------------------------------------------------------------------
def test_the_dockerfile_keeps_the_rules(stages: tuple[dockerfile.Stage, ...]) -> None:
    build, final = stages
    assert build.name == "build"
    known = {
        "ARG", "WORKDIR", "COPY", "RUN", "LABEL", "ENV", "VOLUME", "USER", "EXPOSE", "STOPSIGNAL",
        "HEALTHCHECK", "ENTRYPOINT", "CMD",
    }  # fmt: skip
    assert {s.word for stage in stages for s in stage.steps} <= known
    assert final.all("USER") == ["10001:10001"]
    assert json.loads(final.all("ENTRYPOINT")[0]) == ["luminode"]
    assert json.loads(final.all("CMD")[0]) == ["serve"]
    assert "luminode health --live" in final.all("HEALTHCHECK")[0]
    assert final.all("EXPOSE") == ["11112"]
    for text in build.all("COPY"):
        *sources, _ = text.split()
        for source in sources:
            assert (ROOT / source).exists()
            assert f"!{source}" in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert final.all("COPY") == ["--from=build /opt/luminode /opt/luminode"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="hatchling is not installed")
def test_the_build_steps_run(stages: tuple[dockerfile.Stage, ...], tmp_path: Path) -> None:
    """Every RUN of the build stage, as written; dependencies are those of this environment."""
    env = {
        "PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_CONFIG_FILE": "/dev/null",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say: build with what is here
        "PYTHONPATH": sysconfig.get_paths()["purelib"],
    }  # fmt: skip
    dockerfile.run(stages[0], ROOT, tmp_path, env)
    installed = tmp_path / "opt" / "luminode"
    wheel = next((tmp_path / "wheels").glob("luminode-*.whl"))
    assert wheel.stat().st_size > 100_000
    package = next((installed / "lib").glob("python*/site-packages/node"))
    assert (package / "config" / "config.yaml").is_file()
    assert list((package / "store" / "migrations").rglob("*.py"))
    assert list((package.parent / "engines" / "zoo").glob("*/card.yaml"))
    told = subprocess.run(
        [installed / "bin" / "luminode", "config", "explain", "rules.when"],
        cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **env},
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    assert "DICOM" in told


# systemd ------------------------------------------------------------------------------------------
def analyse(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "--no-pager", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that is there in place of ours, so that systemd can look at the rest."""
    text = (DEPLOY / "systemd" / "luminode.service").read_text()
    assert "ExecStart=/opt/luminode/bin/luminode serve" in text
    path = tmp_path / "luminode.service"
    path.write_text(text.replace("/opt/luminode/bin/luminode", sys.executable))
    return path


needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")


@needs_systemd
def test_systemd_understands_the_unit(unit: Path) -> None:
    done = analyse("verify", "--man=no", str(unit))
    told = [line for line in (done.stdout + done.stderr).splitlines() if "luminode" in line]
    assert (done.returncode, told) == (0, [])


@needs_systemd
def test_systemd_finds_the_unit_hardened(unit: Path) -> None:
    done = analyse("security", "--offline=true", "--threshold=25", str(unit))
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd cannot judge a unit file")
    score = re.search(r"exposure level for luminode.service: ([\d.]+)", done.stdout)
    assert score, done.stderr
    assert float(score[1]) <= 2.5
    assert done.returncode == 0


@needs_systemd
def test_systemd_understands_the_drop_in_for_a_gpu(unit: Path) -> None:
    folder = unit.with_name("luminode.service.d")
    folder.mkdir()
    shutil.copy(DEPLOY / "systemd" / "luminode-gpu.conf", folder / "gpu.conf")
    done = analyse("verify", "--man=no", str(unit))
    told = [line for line in (done.stdout + done.stderr).splitlines() if "luminode" in line]
    assert (done.returncode, [line for line in told if "nvidia-modprobe" not in line]) == (0, [])


def test_the_unit_stops_and_restarts_as_the_node_expects() -> None:
    text = (DEPLOY / "systemd" / "luminode.service").read_text()
    lines = {line for line in text.splitlines() if line and not line.startswith("#")}
    assert {
        "Restart=always",
        "RestartPreventExitStatus=78",
        "KillMode=mixed",
        "UMask=0077",
        "LimitCORE=0",
    } <= lines
    assert "MemoryDenyWriteExecute" not in text  # runtimes generate code


@needs_systemd
@pytest.mark.skipif(not shutil.which("systemd-sysusers"), reason="systemd-sysusers is not installed")
def test_account_and_folders_are_made(tmp_path: Path) -> None:
    for kind in ("sysusers", "tmpfiles"):
        folder = tmp_path / "etc" / f"{kind}.d"
        folder.mkdir(parents=True)
        shutil.copy(DEPLOY / "systemd" / f"luminode.{kind}", folder / "luminode.conf")
    done = subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", "luminode.conf"],
        capture_output=True,
        text=True,
        check=False,
    )
    if "Permission denied" in done.stderr or "not permitted" in done.stderr:
        pytest.skip("needs root")
    assert done.returncode == 0, done.stderr
    assert "luminode:x:" in (tmp_path / "etc" / "passwd").read_text()
    done = subprocess.run(
        ["systemd-tmpfiles", f"--root={tmp_path}", "--create", "luminode.conf"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "not permitted" in done.stderr:
        pytest.skip("needs root")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "var" / "lib" / "luminode").stat().st_mode & 0o777 == 0o700


# the command for admins ---------------------------------------------------------------------------
REPORT = """#!/bin/sh
id -u
pwd
for argument; do echo "$argument"; done
echo --
env
"""
ENVIRONMENT = """\
# DB_PASSWORD=old
DB_PASSWORD=p$w;d#`id` 'x"
QUOTED="two words"
ALSO='single'
not a line
1=2
"""


@pytest.fixture
def everywhere() -> Iterator[Path]:
    """A folder that other users may look into."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "etc").mkdir()
        (folder / "program").write_text(REPORT)
        (folder / "program").chmod(0o755)
        yield folder


@dataclass(frozen=True)
class Handed:
    """What the command handed on."""

    user: int
    folder: str
    arguments: list[str]
    environment: dict[str, str]


def _wrapped(folder: Path, user: str, *arguments: str) -> Handed:
    """Run it with places of this test."""
    text = (DEPLOY / "systemd" / "luminode.sh").read_text()
    places = {"user": user, "home": folder, "etc": folder / "etc", "program": folder / "program"}
    for name, value in places.items():
        text, n = re.subn(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
        assert n == 1
    script = folder / "luminode.sh"
    script.write_text(text)
    told = subprocess.run(["sh", script, *arguments], capture_output=True, text=True, check=True)
    before, _, environment = told.stdout.partition("--\n")
    number, where, *words = before.splitlines()
    named = (line.partition("=") for line in environment.splitlines())
    return Handed(int(number), where, words, {name: value for name, _, value in named})


def test_the_command_for_admins_is_the_node_itself_for_its_own_user(everywhere: Path) -> None:
    told = _wrapped(everywhere, getpass.getuser(), "series", "show", "a b")
    assert told.arguments == ["series", "show", "a b"]
    assert told.folder == str(everywhere)
    assert told.environment["LUMINODE_CONFIG"] == f"{everywhere}/etc/config.yaml"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_the_command_for_admins_becomes_the_nodes_user_with_its_secrets(everywhere: Path) -> None:
    (everywhere / "etc" / "environment").write_text(ENVIRONMENT)
    (everywhere / "etc" / "environment").chmod(0o600)
    told = _wrapped(everywhere, "nobody", "check", "--offline")
    assert told.user == pwd.getpwnam("nobody").pw_uid
    assert told.arguments == ["check", "--offline"]
    environment = told.environment
    assert environment["DB_PASSWORD"] == "p$w;d#`id` 'x\""
    assert (environment["QUOTED"], environment["ALSO"]) == ("two words", "single")
    assert environment["HOME"] == str(everywhere)
    assert "1" not in environment
