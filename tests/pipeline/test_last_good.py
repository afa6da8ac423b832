"""A role that dies while config.yaml is bad comes back and works, on the last good configuration."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from node.deliver.files import send_files
from node.model import DeliveryState
from node.trial.phantoms import small_ct, write_series
from tests.peers import free_port, wait_until
from tests.pipeline.harness import REPOSITORY, Node

CONFIG = """\
node: {{listen: "127.0.0.1:{port}", accept_from: [CT1]}}
store: {{spool: spool, database: "sqlite:///luminode.db", refuse_below: 100MB}}
series: {{settle: 300ms}}
engines: {{ct: {{engine: identity}}}}
destinations: {{outbox: {{kind: folder, path: {outbox}}}}}
rules: [{{name: ct, when: {{Modality: CT}}, enhance: ct, send_to: [outbox]}}]
log: {{format: json}}
"""


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setenv("OUTBOX", "outbox")
    port = free_port()
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(port=port, outbox="'${OUTBOX}'"))
    one = Node(folder=tmp_path, config=config, port=port, database=f"sqlite:///{tmp_path}/luminode.db")
    one.start()
    yield one
    assert one.stop() == 0


def child(node: Node, role: str) -> psutil.Process | None:
    for process in node.tree()[1:]:
        with suppress(psutil.Error):  # it died meanwhile
            if process.cmdline()[1:4] == ["-m", "node.app", role]:
                return process
    return None


def crash(node: Node, role: str) -> None:
    """kill -9 of a role's process; returns when the supervisor has another one in its place."""
    victim = child(node, role)
    assert victim is not None
    victim.send_signal(signal.SIGKILL)
    wait_until(
        lambda: (now := child(node, role)) is not None and now.pid != victim.pid, 30, f"{role} comes back"
    )


def works(node: Node, tmp_path: Path, seed: int, *, calling_ae: str = "CT1", folder: str = "outbox") -> None:
    """A series goes in by C-STORE, and comes out in a folder."""
    files = write_series(small_ct(seed=seed, size=64, n_slices=4, noise_hu=15.0), tmp_path / f"scan{seed}")
    before = len(list((node.folder / folder).rglob("*.dcm")))
    peer = {"kind": "dimse", "ae_title": "LUMINODE", "address": f"127.0.0.1:{node.port}"}
    # Each role sees an edit in its own time: the door may know a new sender a moment after the record does.
    wait_until(lambda: send_files(files, peer, calling_ae=calling_ae).ok, 20, "the door takes it")
    wait_until(
        lambda: len(list((node.folder / folder).rglob("*.dcm"))) == before + len(files), 60, "it is delivered"
    )


def logged(node: Node, event: str, *also: str) -> bool:
    lines = node.log.read_text().splitlines()
    return any(f'"event": "{event}"' in line and all(a in line for a in also) for line in lines)


def test_roles_come_back_on_the_last_good_configuration(node: Node, tmp_path: Path) -> None:
    kept = node.folder / "spool" / "last-good.yaml"
    good = node.config.read_text()
    assert kept.read_text() == good
    assert "${OUTBOX}" in kept.read_text()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600

    node.config.write_text(good.replace("settle:", "setle:"))
    wait_until(lambda: logged(node, "config.refused", '"role": "gather"'), 20, "the bad edit is refused")
    for role in ("gather", "receive"):
        crash(node, role)
    for role in ("gather", "receive"):
        wait_until(
            lambda role=role: logged(node, "config.last_good_used", f'"role": "{role}"'),  # type: ignore[misc]
            30,
            f"{role} says so",
        )
    told = [line for line in node.log.read_text().splitlines() if '"config.refused"' in line]
    assert all("config.yaml:3:10: series.setle" in line for line in told)
    node.wait_for_port()
    works(node, tmp_path, 1)
    assert kept.read_text() == good

    # They keep watching: the next good edit takes effect, and is what is kept.
    better = good.replace("[CT1]", "[CT1, CT2]")
    node.config.write_text(better)
    wait_until(lambda: kept.read_text() == better, 20, "the good edit is kept")
    wait_until(lambda: logged(node, "config.applied"), 20, "the good edit is applied")
    with node.store() as store:
        assert [h.text for h in store.configs.history()] == [better, good]
        assert store.events.list(name="config.refused")
    works(node, tmp_path, 2, calling_ae="CT2")

    # An edit that waits for the next start of the node does not tear it apart when one role starts again.
    node.config.write_text(better.replace("luminode.db", "other.db").replace("spool: spool", "spool: other"))
    wait_until(lambda: logged(node, "config.needs_restart", "store.database"), 20, "the edit waits")
    for role in ("gather", "receive"):
        crash(node, role)
    node.wait_for_port()
    works(node, tmp_path, 3)
    assert kept.read_text() == better
    assert not (node.folder / "other.db").exists()
    with node.store() as store:
        assert len(store.series.list()) == 3
        wait_until(
            lambda: {d.state for d in store.deliveries.list()} == {DeliveryState.SENT}, 30, "it is on record"
        )


def test_a_first_start_with_a_bad_file_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "last-good.yaml").write_text(CONFIG.format(port=free_port(), outbox="outbox"))
    config.write_text(CONFIG.format(port=free_port(), outbox="outbox").replace("settle:", "setle:"))
    command = [sys.executable, "-m", "node", "serve", "--config", str(config)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    told = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert told.returncode == 78
    assert f"{config}:3:10: series.setle" in told.stderr
