"""Peers for tests, all of them real: DCMTK's storescp, Orthanc, and those of scripted.py. Each listens on a
free port of the loopback and is gone at the end."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.scripted import HOST, ScriptedScp, SlowProxy, dimse_settings

IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED, J2K_LOSSLESS = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.90"


_NEXT = itertools.count()


def free_port() -> int:
    """A TCP port of the loopback on which nobody listens, and that no connection is given by chance.

    It lies below the ports from which the kernel takes those of clients: one of these would be somebody's before the
    peer listens on it. Each process of the tests goes through a row of its own.
    """
    first, n_rows, row = 12000, 64, os.getpid() % 64
    for _ in range(320):
        port = first + row + n_rows * (next(_NEXT) % 320)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind((HOST, port))
            return port
    raise AssertionError("no port is free")


def wait_until(
    what: Callable[[], object],
    within_s: float = 10.0,
    told: str = "it happens",
    every_s: float | None = None,
) -> None:
    """Poll until ``what()`` is true; fails with ``told`` otherwise.

    Without ``every_s`` it looks ever more seldom, down to 20 times a second: what looks is often a query, and takes
    its time from what is waited for.
    """
    began = time.monotonic()
    while not what():
        waited = time.monotonic() - began
        if waited > within_s:
            raise AssertionError(f"not within {within_s:.0f} s: {told}")
        time.sleep(min(max(0.01, waited / 10), 0.05) if every_s is None else every_s)


def listens(port: int) -> bool:
    """Whether somebody accepts connections on a port of the loopback."""
    with socket.socket() as s:
        s.settimeout(0.5)
        return s.connect_ex((HOST, port)) == 0


def needs(*programs: str) -> None:
    """Skip the test unless these programs are installed."""
    missing = [p for p in programs if program(p) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (Debian: dcmtk, orthanc, dicom3tools)")


def program(name: str) -> str | None:
    """Path of a program; Debian keeps Orthanc where an ordinary PATH does not look."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


class _Process:
    """A peer that is a process of its own."""

    def __init__(
        self, command: Sequence[str], port: int, log: Path, env: dict[str, str] | None = None
    ) -> None:
        self.port = port
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                list(command), stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=env
            )
        try:
            wait_until(self._ready, 30.0, f"{command[0]} listens")
        except BaseException:
            self.stop()
            raise

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text(errors="replace")[-2000:]
        return listens(self.port)

    def freeze(self) -> None:
        """SIGSTOP: the kernel goes on acknowledging, the program does nothing any more."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)


class StoreScp(_Process):
    """DCMTK's storescp, storing what it gets, bit by bit, in ``folder``."""

    def __init__(self, folder: Path, *options: str, ae_title: str = "STORESCP", port: int = 0) -> None:
        self.folder = folder
        self.ae_title = ae_title
        self.options = options
        folder.mkdir(parents=True, exist_ok=True)
        port = port or free_port()
        # DCMTK reads TCP_NODELAY from the environment: without it both sides wait for each other.
        super().__init__(
            ["storescp", "+B", "-aet", ae_title, "-od", str(folder), *options, str(port)],
            port, folder.parent / f"{folder.name}.log", {**os.environ, "TCP_NODELAY": "1"},
        )  # fmt: skip

    def settings(self, **more: Any) -> dict[str, Any]:
        """A destination's settings that lead here."""
        return dimse_settings(self.port, self.ae_title, **more)

    def uids(self) -> list[str]:
        """SOP Instance UIDs of what is stored (from the file names: ``MODALITY.UID``)."""
        return sorted(p.name.split(".", 1)[1] for p in self.folder.iterdir())


class OrthancPeer(_Process):
    """Orthanc, as Debian packages it, with nothing but a folder of its own."""

    def __init__(self, folder: Path, *, ae_title: str = "ORTHANC", **configuration: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.ae_title = ae_title
        self.http_port = free_port()
        port = free_port()
        path = folder / "orthanc.json"
        settings = {
            "Name": "test",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "index"),
            "Plugins": [],
            "DicomAet": ae_title,
            "DicomPort": port,
            "DicomCheckCalledAet": True,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "SyncStorageArea": False,
            "OverwriteInstances": False,
            **configuration,
        }
        path.write_text(json.dumps(settings))
        super().__init__([program("Orthanc") or "Orthanc", str(path)], port, folder / "orthanc.log")

    def _ready(self) -> bool:
        return super()._ready() and listens(self.http_port)

    def settings(self, **more: Any) -> dict[str, Any]:
        """A destination's settings that lead here."""
        return dimse_settings(self.port, self.ae_title, **more)

    def get(self, path: str) -> Any:
        """GET of its REST interface, JSON decoded."""
        with urllib.request.urlopen(f"http://{HOST}:{self.http_port}{path}", timeout=10) as answer:
            return json.load(answer)

    def instance_file(self, identifier: str) -> bytes:
        """The stored Part 10 file of one of its instances."""
        url = f"http://{HOST}:{self.http_port}/instances/{identifier}/file"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return bytes(answer.read())

    def uids(self) -> list[str]:
        """SOP Instance UIDs of what is stored."""
        return sorted(i["MainDicomTags"]["SOPInstanceUID"] for i in self.get("/instances?expand"))

    def series(self) -> dict[str, list[str]]:
        """Series Instance UID -> sorted SOP Instance UIDs."""
        names = {i["ID"]: i["MainDicomTags"]["SOPInstanceUID"] for i in self.get("/instances?expand")}
        return {
            s["MainDicomTags"]["SeriesInstanceUID"]: sorted(names[i] for i in s["Instances"])
            for s in self.get("/series?expand")
        }


# --- fixtures -------------------------------------------------------------------------------------


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedScp]]:
    """Make scripted SCPs: ``scripted(store=..., associate=...)``."""
    made: list[ScriptedScp] = []

    def make(**script: Any) -> ScriptedScp:
        made.append(ScriptedScp(**script))
        return made[-1]

    yield make
    for each in made:
        each.stop()
    assert [f for each in made for f in each.faults] == []


@pytest.fixture
def storescps(tmp_path: Path) -> Iterator[Callable[..., StoreScp]]:
    """Start DCMTK storescps: ``storescps("+xi")``, each with a folder of its own."""
    needs("storescp")
    made: list[StoreScp] = []

    def make(*options: str, **more: Any) -> StoreScp:
        made.append(StoreScp(tmp_path / f"storescp{len(made)}", *options, **more))
        return made[-1]

    yield make
    for each in made:
        each.stop()


@pytest.fixture
def storescp(storescps: Callable[..., StoreScp]) -> StoreScp:
    """A DCMTK storescp that takes every transfer syntax it knows."""
    return storescps("+xa")


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[OrthancPeer]:
    """An empty Orthanc."""
    needs("Orthanc")
    peer = OrthancPeer(tmp_path / "orthanc")
    yield peer
    peer.stop()


@pytest.fixture
def slow_network() -> Iterator[Callable[..., SlowProxy]]:
    """Make slow proxies: ``slow_network(port, bytes_per_s=65536)``."""
    made: list[SlowProxy] = []

    def make(port: int, **how: Any) -> SlowProxy:
        made.append(SlowProxy(port, **how))
        return made[-1]

    yield make
    for each in made:
        each.stop()
