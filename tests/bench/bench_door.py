"""How fast the door is beside DCMTK's storescp: ``python tests/bench/bench_door.py``. Not part of the tests.

A sender that has everything encoded beforehand, and TCP_NODELAY on, sends simulated CT slices (0.5 MB each,
distinct UIDs) on one or several associations, in turn to ``storescp +B``, which neither syncs nor records,
and to a Receiver in a process of its own, which does both. Only ratios on one quiet machine mean anything.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

CT = b"1.2.840.10008.5.1.4.1.1.2\0"
SERVER = """
import datetime, signal, sys, threading
import node.log
from node.config.network import HostPort
from node.config.schema import Config, NodeSettings, StoreSettings
from node.receive import Receiver
from node.store.store import Store
node.log.configure("error")
root, port = sys.argv[1], int(sys.argv[2])
config = Config(
    node=NodeSettings(accept_from="any", listen=HostPort(host="127.0.0.1", port=port), max_associations=256,
                      require_called_ae=False, max_associations_per_address=256),
    store=StoreSettings(spool=root + "/spool", database=f"sqlite:///{root}/l.db", refuse_below=0),
)
store = Store.open(config.store.database, config.store.spool)
receiver = Receiver(config, store, lambda: datetime.datetime.now(datetime.UTC))
receiver.start()
done = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: done.set())
done.wait()
receiver.stop(5.0)
store.close()
"""


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    if vr in (b"OB", b"OW"):
        return struct.pack("<HH2sHL", group, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def data_set(uid: bytes, series: bytes, pixels: bytes) -> bytes:
    return b"".join(
        (
            element(8, 0x16, b"UI", CT.rstrip(b"\0")), element(8, 0x18, b"UI", uid),
            element(8, 0x60, b"CS", b"CT"), element(0x10, 0x10, b"PN", b"BENCH"),
            element(0x20, 0x0D, b"UI", series + b".1"), element(0x20, 0x0E, b"UI", series),
            element(0x28, 0x02, b"US", b"\1\0"), element(0x28, 0x10, b"US", b"\0\2"),
            element(0x28, 0x11, b"US", b"\0\2"), element(0x28, 0x100, b"US", b"\x10\0"),
            element(0x7FE0, 0x10, b"OW", pixels),
        )
    )  # fmt: skip


def command(uid: bytes, number: int) -> bytes:
    uid += b"\0" * (len(uid) % 2)
    body = b"".join(
        struct.pack("<HHL", 0, tag, len(value)) + value
        for tag, value in (
            (2, CT), (0x100, b"\1\0"), (0x110, struct.pack("<H", number & 0xFFFF)), (0x700, b"\0\0"),
            (0x800, b"\1\0"), (0x1000, uid),
        )
    )  # fmt: skip
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def message(uid: bytes, series: bytes, pixels: bytes, number: int, pdu: int) -> bytes:
    out = bytearray()
    for control, data in ((1, command(uid, number)), (0, data_set(uid, series, pixels))):
        for at in range(0, len(data), pdu - 6):
            piece = data[at : at + pdu - 6]
            last = 2 if at + len(piece) == len(data) else 0
            out += struct.pack(">BBLLBB", 4, 0, len(piece) + 6, len(piece) + 2, 1, control | last) + piece
    return bytes(out)


def associate(port: int) -> tuple[socket.socket, int]:
    def item(kind: int, value: bytes) -> bytes:
        return struct.pack(">BBH", kind, 0, len(value)) + value

    body = struct.pack(">HH16s16s32x", 1, 0, b"LUMINODE".ljust(16), b"BENCH".ljust(16))
    body += item(0x10, b"1.2.840.10008.3.1.1.1")
    body += item(0x20, b"\1\0\0\0" + item(0x30, CT.rstrip(b"\0")) + item(0x40, b"1.2.840.10008.1.2.1"))
    body += item(0x50, item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3"))
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(struct.pack(">BBL", 1, 0, len(body)) + body)
    kind, answer = read_pdu(sock)
    if kind != 2:
        raise SystemExit(f"association refused: PDU {kind}")
    at = answer.index(b"\x51\0\0\4") + 4
    return sock, struct.unpack(">L", answer[at : at + 4])[0]


def read_pdu(sock: socket.socket) -> tuple[int, bytes]:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    head = b""
    while len(head) < 6:
        got = sock.recv(6 - len(head))
        if not got:
            raise SystemExit("the peer closed")
        head += got
    length = struct.unpack(">L", head[2:])[0]
    body = bytearray()
    while len(body) < length:
        body += sock.recv(length - len(body))
    return head[0], bytes(body)


def blast(port: int, n: int, seed: str, pdu: int, one_each: bool) -> float:
    pixels = os.urandom(512 * 512 * 2)
    series = f"1.2.826.0.1.{int(seed, 16)}".encode()
    sock, largest = associate(port)
    size = min(pdu, largest or pdu)
    messages = [message(series + f".{i}".encode(), series, pixels, i, size) for i in range(n)]
    began = time.perf_counter()
    for i, each in enumerate(messages):
        if one_each and i:
            sock.sendall(b"\5\0\0\0\0\4\0\0\0\0")
            read_pdu(sock)
            sock.close()
            sock, _ = associate(port)
        sock.sendall(each)
        _, answer = read_pdu(sock)
        at = answer.index(b"\0\0\0\x09\2\0\0\0") + 8
        if answer[at : at + 2] != b"\0\0":
            raise SystemExit(f"status {answer[at : at + 2].hex()}")
    took = time.perf_counter() - began
    sock.sendall(b"\5\0\0\0\0\4\0\0\0\0")
    read_pdu(sock)
    sock.close()
    return took


def run(port: int, args: argparse.Namespace) -> float:
    times: list[float] = []

    def one() -> None:
        times.append(blast(port, args.n, os.urandom(6).hex(), args.pdu, args.one_each))

    if args.associations == 1:
        one()
        return args.n / times[0]
    threads = [threading.Thread(target=one) for _ in range(args.associations)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return args.n * args.associations / max(times)


def cpu(process: subprocess.Popen[bytes]) -> float:
    """Seconds of CPU that a process, and its children that ended, have used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def wait_for(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("a server did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=200, help="instances an association")
    parser.add_argument("-a", "--associations", type=int, default=1)
    parser.add_argument("--pdu", type=int, default=16384, help="PDU length of the sender")
    parser.add_argument("--one-each", action="store_true", help="one association an instance")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", default=None, help="where both write; the default is a temporary folder")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=args.dir))
    (root / "dcmtk").mkdir()
    fork = ["--fork"] if args.associations > 1 else []
    theirs = subprocess.Popen(
        ["storescp", *fork, "+B", "-q", "-pdu", "131072", "-od", str(root / "dcmtk"), "11513"],
        env={**os.environ, "TCP_NODELAY": "1"},
    )
    ours = subprocess.Popen([sys.executable, "-c", SERVER, str(root), "11514"], cwd=Path(__file__).parents[2])
    try:
        wait_for(11513)
        wait_for(11514)
        at_start = cpu(ours)
        told: dict[str, list[float]] = {"storescp": [], "luminode": []}
        for _ in range(args.rounds):
            told["storescp"].append(run(11513, args))
            told["luminode"].append(run(11514, args))
        medians = {name: statistics.median(rates) for name, rates in told.items()}
        for name, rates in told.items():
            each = " ".join(f"{rate:.0f}" for rate in rates)
            print(f"{name:10s} {medians[name]:8.0f} instances/s   {each}")
        print(f"ratio      {medians['luminode'] / medians['storescp']:8.2f}")
        n = args.n * args.associations * args.rounds
        spent = 1e3 * cpu(theirs) / n, 1e3 * (cpu(ours) - at_start) / n
        print(f"CPU ms an instance: storescp {spent[0]:.2f}, luminode {spent[1]:.2f}")
        usage = Path(f"/proc/{ours.pid}/status").read_text().split("VmHWM:")[1].split("\n")[0].strip()
        print(f"luminode's largest resident size {usage}")
    finally:
        for process in (theirs, ours):
            process.send_signal(signal.SIGTERM)
        for process in (theirs, ours):
            process.wait(20)
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
