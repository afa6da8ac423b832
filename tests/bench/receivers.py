"""Who receives: this node's receiver role, DCMTK, Orthanc, pynetdicom, and a sink that only counts bytes.

Each is a process of its own on a free port and keeps what it gets under a folder of its own; all but the sink
with the settings that its makers ship, and TCP_NODELAY where that can be set from outside.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from node.store import Store
from tests.peers import OrthancPeer, free_port, listens, program, wait_until
from tests.scripted import HOST

REPOSITORY = Path(__file__).resolve().parents[2]

CONFIG = """\
node:
  ae_title: LUMINODE
  listen: {host}:{port}
  accept_from: any
  max_associations: 256
  max_associations_per_address: 256
store: {{spool: {folder}/spool, database: "sqlite:///{folder}/luminode.db", refuse_below: 100MB}}
rules: [{{name: all, when: any, ignore: true}}]
"""


class Receiver:
    """A receiving process. ``ae_title`` is what it wants to be called.

    Parameters
    ----------
    command
        What runs it.
    folder
        Where its files lie.
    clean
        Tells the files that may be removed between two runs, so that disks do not fill.
    """

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        folder: Path,
        *,
        ae_title: str = "LUMINODE",
        clean: Callable[[], Sequence[Path]] = list,
        nodelay: bool = True,
    ) -> None:
        self.port, self.folder, self.ae_title, self._clean = port, folder, ae_title, clean
        environment = {k: v for k, v in os.environ.items() if k != "TCP_NODELAY"}
        if nodelay:
            environment["TCP_NODELAY"] = "1"
        environment["PYTHONPATH"] = str(REPOSITORY)
        self._log = folder / "log"
        with self._log.open("ab") as out:
            self.process = subprocess.Popen(
                list(command), stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=environment, cwd=folder
            )
        try:
            wait_until(self._ready, 60.0, f"{command[0]} listens", every_s=0.05)
        except BaseException:
            self.stop()
            raise

    def _ready(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(self._log.read_text(errors="replace")[-2000:])
        return listens(self.port)

    @property
    def cpu_s(self) -> float:
        return cpu_s(self.process.pid)

    @property
    def peak_mb(self) -> float:
        """Its largest resident size so far; of the first process, where there are several."""
        told = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(told.split("VmHWM:")[1].split()[0]) / 1024

    def clean(self) -> None:
        """Empty what came, and let the disk finish, so that nobody pays for another's writing.

        The files stay, empty: without a journal, ext4 goes through all inodes that were freed in the last minutes
        before it gives a new one, and whoever makes files next would pay for that.
        """
        for path in self._clean():
            os.truncate(path, 0)
        os.sync()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait(10)


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used, with its children, those that ended too."""
    total = 0.0
    for each in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        try:
            fields = Path(f"/proc/{each.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):  # it ended: its parent has counted it
            continue
        total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return total


def luminode(folder: Path) -> Receiver:
    """The receiver role as the supervisor starts it, durability on as always, SQLite."""
    return _luminode(folder, ["node.app", "receive"], "last-good.yaml")


def two(folder: Path) -> Receiver:
    """Two receivers on one port, with the supervisor that gave it to them."""
    return _luminode(folder, ["tests.together"], "2")


def _luminode(folder: Path, module: Sequence[str], last: str) -> Receiver:
    port = free_port()
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(host=HOST, port=port, folder=folder))
    Store.open(f"sqlite:///{folder}/luminode.db", folder / "spool").close()
    return Receiver(
        [sys.executable, "-m", *module, str(config), last],
        port,
        folder,
        clean=lambda: list((folder / "spool").glob("??/*.dcm")),
    )


def storescp(folder: Path, *options: str, nodelay: bool = True) -> Receiver:
    """DCMTK's storescp, bit-preserving; it neither syncs nor records."""
    port, out = free_port(), folder / "out"
    out.mkdir()
    return Receiver(
        ["storescp", "+B", "-q", "-pdu", "131072", *options, "-od", str(out), str(port)],
        port,
        folder,
        clean=lambda: list(out.iterdir()),
        nodelay=nodelay,
    )


def forking(folder: Path) -> Receiver:
    """storescp with a process for each association."""
    return storescp(folder, "--fork")


def as_shipped(folder: Path) -> Receiver:
    """storescp with Nagle's algorithm on, as it comes."""
    return storescp(folder, nodelay=False)


class _Orthanc(Receiver):
    def __init__(self, folder: Path) -> None:
        self._peer = OrthancPeer(folder / "orthanc", DicomCheckCalledAet=False, SyncStorageArea=True)
        self.process = self._peer.process
        self.port, self.folder, self.ae_title = self._peer.port, folder, "ORTHANC"
        self._clean = list

    def stop(self) -> None:
        self._peer.stop()


def orthanc(folder: Path) -> Receiver:
    """Orthanc with its default settings, which sync every file; without plugins."""
    return _Orthanc(folder)


PYNETDICOM = """
import os, sys
from pynetdicom import AE, AllStoragePresentationContexts, evt
folder = sys.argv[1]
def store(event):
    name = str(event.request.AffectedSOPInstanceUID)
    with open(os.path.join(folder, name), "wb") as file:
        file.write(event.encoded_dataset())
    return 0
ae = AE(ae_title="PLAIN")
ae.maximum_pdu_size = 0
ae.supported_contexts = AllStoragePresentationContexts
ae.start_server(("127.0.0.1", int(sys.argv[2])), block=True, evt_handlers=[(evt.EVT_C_STORE, store)])
"""


def pynetdicom(folder: Path) -> Receiver:
    """pynetdicom, tuned: PDUs without limit, data sets written as they were encoded, no logging."""
    port, out = free_port(), folder / "out"
    out.mkdir()
    return Receiver(
        [sys.executable, "-c", PYNETDICOM, str(out), str(port)],
        port,
        folder,
        clean=lambda: list(out.iterdir()),
    )


def sink(folder: Path, message_bytes: int, *, durable: bool = False) -> Receiver:
    """Reads and answers: what the sender can do at most; ``durable``: what a synced, digested file costs anybody."""
    port, out = free_port(), folder / "out"
    out.mkdir()
    command = [sys.executable, "-m", "tests.bench.sink", str(port), str(message_bytes)]
    return Receiver([*command, str(out)] if durable else command, port, folder)


def is_there(name: str) -> bool:
    """Whether the program behind a receiver is installed."""
    return {
        "orthanc": "Orthanc",
        "storescp": "storescp",
        "forking": "storescp",
        "as_shipped": "storescp",
    }.get(name) is None or program({"orthanc": "Orthanc"}.get(name, "storescp")) is not None


MAKERS: dict[str, Callable[[Path], Receiver]] = {
    "luminode": luminode,
    "two": two,
    "storescp": storescp,
    "forking": forking,
    "as_shipped": as_shipped,
    "orthanc": orthanc,
    "pynetdicom": pynetdicom,
}
