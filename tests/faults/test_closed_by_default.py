"""Rows of the security model on a node as an admin runs it: what it opens, who may read its files, what it needs."""

from __future__ import annotations

import re
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from node.config.load import load
from node.store import Spool
from tests.faults.ledger import record
from tests.faults.scanners import Log, Scanner, at_work
from tests.faults.site import child
from tests.peers import free_port, listens, wait_until
from tests.pipeline.harness import REPOSITORY, Node, make_node
from tests.scripted import ScriptedScp

pytestmark = pytest.mark.timeout(600)

DECODERS = (
    "node.dicom.pixels", "node.dicom.frames", "node.dicom.jpeg", "imagecodecs", "onnxruntime", "torch", "scipy",
)  # fmt: skip
"""What the receiver's process has not loaded cannot be reached through a data set. pydicom loads its decoders itself,
where they are installed; nothing of the receiver calls them."""


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, set[tuple[str, int]], int]]:
    """A node that received, enhanced and delivered: it, who it listened for and talked to, and the PACS's port."""

    def slowly(_n: int, _uid: str) -> int:
        time.sleep(0.2)  # so that the connection is there to be seen
        return 0x0000

    folder, pacs, log = tmp_path_factory.mktemp("lived"), ScriptedScp(store=slowly), Log()
    node = make_node(folder, pacs_ae="SCRIPTED", pacs_port=pacs.port, ct_engine="identity", quiet_after="1s")
    node.config.write_text(node.config.read_text() + f'monitoring: {{listen: "127.0.0.1:{free_port()}"}}\n')
    node.start()
    try:
        seen: set[tuple[str, int]] = set()
        scanners = [Scanner(log, "CT1", n_slices=4)]
        for thread in at_work(scanners, node.port, threading.Event(), n_new=1):
            thread.join(60)
        assert len(log.acknowledged) == 4
        wait_until(lambda: _look(node, seen) or len(pacs.uids()) == 4, 120, "all is delivered", every_s=0.02)
        yield node, seen, pacs.port
    finally:
        node.stop()
        pacs.stop()


def _look(node: Node, seen: set[tuple[str, int]]) -> None:
    for process in node.tree():
        for one in process.net_connections():
            at = one.laddr if one.status == psutil.CONN_LISTEN else one.raddr
            if (at and one.laddr.port != node.port) or one.status == psutil.CONN_LISTEN:
                seen.add((f"{one.status} {at.ip}", at.port))


def test_a_node_listens_and_connects_where_it_was_told_and_nowhere_else(
    lived: tuple[Node, set[tuple[str, int]], int],
) -> None:
    node, seen, pacs = lived
    listening = {at for at in seen if at[0].startswith("LISTEN")}
    pages = load(node.config, {}, files=False).config.monitoring.listen
    assert pages is not None
    told = {("LISTEN 127.0.0.1", node.port), ("LISTEN 127.0.0.1", pages.port)}
    record(
        "S1",
        load="every listening socket of every process of luminode serve",
        count=len(listening),
        result=f"{len(listening)}, which are what node.listen and monitoring.listen say",
        ok=listening == told,
    )
    others = {at for at in seen - listening if at[1] != pacs}
    looked = len(seen - listening - others)
    record(
        "S11",
        load="connections of every process of luminode serve, looked at every 20 ms from the start to the delivery",
        count=len(seen - listening),
        result=f"{len(others)} to anywhere but the PACS",
        ok=not others and looked > 0,
    )
    assert listening == told
    assert others == set()
    assert looked > 0, "not even the connection to the PACS was seen"


def test_nobody_else_may_read_what_a_node_keeps(
    lived: tuple[Node, set[tuple[str, int]], int], tmp_path: Path
) -> None:
    node = lived[0]
    kept = [*node.folder.glob("luminode.db*"), *(node.folder / "spool").rglob("*"), node.folder / "spool"]
    open_ = {
        p.relative_to(node.folder).as_posix(): oct(stat.S_IMODE(p.stat().st_mode))
        for p in kept if p.exists() and p.stat().st_mode & 0o077
    }  # fmt: skip
    planted = _planted_links(tmp_path)
    record(
        "S8",
        load="modes of the database and of everything in the spool after a whole job; a link planted for a folder",
        count=len(kept),
        result=f"{len(open_)} readable for others; planted links followed: {len(planted)}",
        ok=not open_ and not planted,
    )
    assert open_ == {}
    assert planted == []


def _planted_links(folder: Path) -> list[str]:
    """Folders outside that a spool wrote to through a link."""
    outside = folder / "outside"
    outside.mkdir()
    spool = Spool(folder / "spool")
    for number in range(256):
        (spool.root / f"{number:02x}").symlink_to(outside)
    with spool.create() as writer:
        writer.write(b"x")
        with pytest.raises(Exception, match="something else lies where"):
            writer.publish("1.2.3", "1.2.3.4", "0" * 64)
    return [p.name for p in outside.iterdir()]


def test_the_receiver_loads_nothing_that_decodes(lived: tuple[Node, set[tuple[str, int]], int]) -> None:
    receiver = child(lived[0], "receive")
    assert receiver is not None
    there = {path.split("/site-packages/")[-1].split("/")[0] for path in mapped(receiver.pid)}
    assert "numpy" in there, "what it did load is seen"
    program = f"import sys, node.receive.server; print(*sorted(set({DECODERS!r}) & set(sys.modules)))"
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    decoders = told.stdout.split() + sorted(there & set(DECODERS))
    unsafe = [
        f"{path.relative_to(REPOSITORY)}:{number}"
        for room in ("node", "engines") for path in sorted((REPOSITORY / room).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"\b(pickle\.loads?|torch\.load|yaml\.load|eval|exec)\(", line)
    ]  # fmt: skip
    record(
        "S12",
        load="modules that the receiver loads, libraries in its process at work; every line of node and engines",
        count=len(DECODERS),
        result=f"{len(decoders)} decoders loaded, {len(unsafe)} lines that unpickle or evaluate",
        ok=not decoders and not unsafe,
    )
    assert decoders == []
    assert unsafe == []


def mapped(pid: int) -> set[str]:
    """Files in the memory of a process."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {fields[5] for line in lines if len(fields := line.split(maxsplit=5)) == 6}


WRONG = {
    "no file": "",
    "no YAML": "node: {listen: [",
    "an unknown key": "node: {listn: 127.0.0.1:1, accept_from: [CT1]}\n",
    "nobody may send": 'node: {{listen: "127.0.0.1:{port}"}}\nrules: [{{name: r, when: any, ignore: true}}]\n',
    "TLS files that are absent": 'node: {{listen: "127.0.0.1:{port}", accept_from: [CT1], '
    "tls: {{certificate: a, key: b}}}}\n"
    "rules: [{{name: r, when: any, ignore: true}}]\n",
    "an engine that is not there": 'node: {{listen: "127.0.0.1:{port}", accept_from: [CT1]}}\n'
    "engines: {{x: {{engine: none}}}}\nrules: [{{name: r, when: any, enhance: x, send_to: []}}]\n",
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_not_configured_stays_closed(what: str, tmp_path: Path) -> None:
    port, config = free_port(), tmp_path / "config.yaml"
    if WRONG[what]:
        config.write_text(WRONG[what].format(port=port) if "{port}" in WRONG[what] else WRONG[what])
    process = subprocess.Popen(
        [sys.executable, "-m", "node", "serve", "--config", str(config)],
        cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    opened = threading.Event()

    def look() -> None:
        while process.poll() is None:
            if listens(port):
                opened.set()
                process.terminate()
                return
            time.sleep(0.02)

    watching = threading.Thread(target=look)
    watching.start()
    try:
        told, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        watching.join(10)
    closed = process.returncode != 0 and bool(told.strip()) and not opened.is_set()
    record(
        "S16",
        load=f"luminode serve with {len(WRONG)} kinds of bad or missing configuration",
        count=1,
        result="no listener, an exit status and a text",
        ok=closed,
    )
    assert process.returncode not in (0, None), told
    assert told.strip()
    assert "Traceback" not in told
    assert not opened.is_set()


def test_an_open_node_says_so_and_a_port_elsewhere_is_not_ours() -> None:
    """The check of S1 is one that can fail: a socket elsewhere is seen."""
    with closing(socket.create_server(("127.0.0.1", 0))) as one:
        found = {c.laddr.port for c in psutil.Process().net_connections() if c.status == psutil.CONN_LISTEN}
        assert one.getsockname()[1] in found
