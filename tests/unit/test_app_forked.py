"""Forked roles: each in a process of its own, for that a fork of pytest's would run its tests a second time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers import wait_until
from tests.pipeline.harness import REPOSITORY

HEAD = """\
import os, signal, subprocess, sys, time
from pathlib import Path
from node.app.forked import fork
from node.log import configure, get_logger
configure("info", waits=False)
log = get_logger()
log.info("parent.speaks")
"""


def ran(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HEAD + script, "so that there is room for the command of a child"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_it_has_a_status_a_name_and_nothing_to_read() -> None:
    told = ran("""
def work():
    assert sys.stdin.read() == "" and os.read(0, 1) == b""
    print(Path("/proc/self/cmdline").read_bytes().rstrip(b"\\0").decode().split("\\0"))
    return 7
child = fork(work, ["python", "-m", "node.app", "receive"])
assert child.wait(20) == 7 and child.poll() == 7
child.kill()
print("the parent goes on")
""")
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines() == ["['python', '-m', 'node.app', 'receive']", "the parent goes on"]


def test_a_command_that_is_too_long_is_cut() -> None:
    told = ran("""
def work():
    shown = Path("/proc/self/cmdline").read_bytes().rstrip(b"\\0")
    assert set(shown) == {ord("x")}, shown
    assert "PATH" in os.environ
    return 0
assert fork(work, ["x" * 1_000_000]).wait(20) == 0
""")
    assert told.returncode == 0, told.stderr


def test_its_lines_are_written_and_those_of_its_parent_once() -> None:
    told = ran("""
def work():
    log.info("child.speaks")
    return 0
assert fork(work, ["child"]).wait(20) == 0
log.info("parent.ends")
""")
    assert told.returncode == 0, told.stderr
    for event in ("parent.speaks", "child.speaks", "parent.ends"):
        assert told.stderr.count(event) == 1


def test_an_error_of_its_own_ends_it_and_nothing_of_the_parent_runs_in_it() -> None:
    told = ran("""
def work():
    raise OSError("it cannot")
child = fork(work, ["child"])
print("once")
assert child.wait(20) == 1
""")
    assert told.returncode == 0, told.stderr
    assert told.stdout == "once\n"
    assert "OSError: it cannot" in told.stderr


@pytest.mark.parametrize(("how", "number"), [("terminate", 15), ("kill", 9)])
def test_it_is_ended_and_waiting_has_an_end(how: str, number: int) -> None:
    told = ran(f"""
def work():
    time.sleep(60)
    return 0
child = fork(work, ["child"])
assert child.poll() is None
try:
    child.wait(0.1)
except subprocess.TimeoutExpired:
    print("it lives")
child.{how}()
assert child.wait(20) == -{number}
""")
    assert told.returncode == 0, told.stderr
    assert told.stdout == "it lives\n"


def test_its_end_is_seen_where_the_system_keeps_no_status() -> None:
    told = ran("""
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
child = fork(lambda: time.sleep(0.2) or 5, ["child"])
assert child.poll() is None
assert child.wait(20) == 0
child.terminate()
""")
    assert told.returncode == 0, told.stderr


def test_what_a_fork_needs_is_loaded_without_what_a_node_does_not() -> None:
    told = ran("""
from node.app.forked import load
load()
print([m for m in ("torch", "tensorrt", "tensorrt_rtx", "cuda", "onnxruntime", "scipy", "pytest") if m in sys.modules])
print([m for m in ("node.enhance.worker", "node.gather.gatherer", "node.deliver.deliverer") if m not in sys.modules])
""")
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines() == ["[]", "[]"]


def test_whoever_asks_first_all_hear_how_it_ended() -> None:
    told = ran("""
import threading
def work():
    return 7
for _ in range(40):
    child, heard = fork(work, ["x"]), []
    def ask(child=child, heard=heard):
        while (status := child.poll()) is None:
            pass
        heard.append(status)
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for one in threads: one.start()
    for one in threads: one.join(20)
    assert heard == [7, 7], heard
""")
    assert told.returncode == 0, told.stderr


def test_it_does_not_outlive_a_parent_that_dies_at_once() -> None:
    told = ran("""
def between():
    def work():
        print(os.getpid(), flush=True)
        time.sleep(60)
        return 0
    fork(work, ["x"])
    os._exit(0)
pid = os.fork()
if not pid:
    between()
os.waitpid(pid, 0)
""")
    assert told.returncode == 0, told.stderr
    for pid in map(int, told.stdout.split()):  # it may have died before it could tell its number
        wait_until(lambda pid=pid: not Path(f"/proc/{pid}/cmdline").exists(), 20)  # type: ignore[misc]
