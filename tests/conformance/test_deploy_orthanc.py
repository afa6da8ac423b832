"""The trial PACS of deploy/: Orthanc itself takes our configuration, its password from the environment."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers import free_port, listens, needs, program, wait_until

CONFIGURATION = Path(__file__).resolve().parents[2] / "deploy" / "orthanc.json"

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """DICOM and HTTP port of an Orthanc on deploy/orthanc.json, other ports and folders apart."""
    needs("Orthanc", "echoscu")
    folder = tmp_path_factory.mktemp("orthanc")
    dicom, http = free_port(), free_port()
    text = CONFIGURATION.read_text()
    for old, new in (
        ('"DicomPort": 4242', f'"DicomPort": {dicom}'),
        ('"HttpPort": 8042', f'"HttpPort": {http}'),
        ('"/var/lib/orthanc/db"', json.dumps(str(folder / "db"))),
    ):
        assert old in text
        text = text.replace(old, new)
    path = folder / "orthanc.json"
    path.write_text(text)
    log = (folder / "log").open("wb")
    server = subprocess.Popen(
        [program("Orthanc") or "", str(path)],
        env={"ORTHANC_PASSWORD": "canary", "PATH": "/usr/bin:/bin"}, stdout=log, stderr=log,
    )  # fmt: skip
    try:
        wait_until(lambda: listens(dicom) and listens(http), 30, "Orthanc listens")
        yield dicom, http
    finally:
        server.terminate()
        server.wait(20)
        log.close()


def status(http: int, password: str) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{http}/system")
    if password:
        request.add_header("Authorization", "Basic " + b64encode(f"trial:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as e:
        return e.code


def test_the_password_comes_from_the_environment(ports: tuple[int, int]) -> None:
    assert status(ports[1], "canary") == 200
    assert [status(ports[1], p) for p in ("", "wrong", "${ORTHANC_PASSWORD}")] == [401, 401, 401]


def test_it_answers_to_its_own_name_only(ports: tuple[int, int]) -> None:
    def echo(called: str) -> int:
        command = ["echoscu", "-aet", "LUMINODE", "-aec", called, "127.0.0.1", str(ports[0])]
        return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode

    name = re.search(r'"DicomAet": "(\w+)"', CONFIGURATION.read_text())
    assert name
    assert echo(name[1]) == 0
    assert echo("SOMEBODY") != 0
