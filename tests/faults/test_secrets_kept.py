"""S7: a node with secrets wherever its configuration takes one, at work and in every kind of trouble: every byte that
it writes anywhere is searched for them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
import pytest
from sqlalchemy import URL

from tests.cli import luminode
from tests.faults.canary import Canary, found, found_in
from tests.faults.ledger import record
from tests.faults.scale import FULL, SEED
from tests.faults.scanners import Log, Scanner, at_work
from tests.faults.site import child, outbox, site
from tests.faults.tls_samples import Authority
from tests.peers import free_port, wait_until
from tests.pipeline.harness import Node
from tests.postgres import ENVIRONMENT, _execute, _scalar, binaries, create_database, drop_database

__test__ = FULL  # in `make test` tests/faults/test_secrets_told.py has to do: this costs a node and a server

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(600)]

ROLE = "canary"
TROUBLE = """\
import os, sys

def trouble(event, arguments, folder=os.environ["CANARY_FOLDER"], said=os.environ["DB_PASSWORD"]):
    if event == "open" and arguments[0] == os.path.join(folder, "config.yaml"):
        if os.path.exists(os.path.join(folder, "crash-role")):
            raise RuntimeError(f"a defect that says {said}")
    if event == "socket.connect" and os.path.exists(os.path.join(folder, "crash-lane")):
        raise RuntimeError(f"a defect that says {said}")

sys.addaudithook(trouble)
"""
"""As a defect in a role would: it raises, deep below, with the secret in its text and in the variables around it."""

VERBS = (
    "config show", "config explain", "config explain store.database", "config history --json", "config schema",
    "config history", "check --json", "check", "health", "health --json", "series list", "series list --json",
    "jobs list --json", "deliveries list --json", "provenance", "db upgrade", "spool fsck --json", "plans --json",
)  # fmt: skip


@dataclass
class Said:
    """Everything that was said, by place, beside what lies in files."""

    told: dict[str, bytes] = field(default_factory=dict)
    n_verbs: int = 0

    def verbs(self, state: str, verbs: tuple[str, ...], config: Path) -> None:
        for verb in verbs:
            more = () if verb.startswith(("config explain", "config schema")) else ("--config", config)
            done = luminode(*verb.split(), *more)
            self.told[f"{state}: luminode {verb}"] = (done.out + done.err).encode()
            self.n_verbs += 1

    def processes(self, state: str, node: Node) -> None:
        for process in node.tree():
            with contextlib.suppress(psutil.Error):
                told = " ".join([process.name(), *process.cmdline()]).encode()
                self.told[f"{state}: {process.pid} {told[:60]!r}"] = told


@pytest.fixture
def guarded(postgres_server: URL, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[URL, Canary]]:
    """A database on the tests' server for whose role a password is really asked, and that password."""
    if os.environ.get(ENVIRONMENT):
        pytest.skip("the server is not of these tests: how it knows its users is not ours to change")
    canary = Canary(SEED + 7)
    hba = Path(str(_scalar(postgres_server, "SHOW hba_file")))
    before = hba.read_text()
    database = create_database(postgres_server)
    _execute(postgres_server, f"CREATE ROLE {ROLE} LOGIN PASSWORD '{canary.secret}'".replace("%", "%%"))
    _execute(postgres_server, f'ALTER DATABASE "{database.database}" OWNER TO {ROLE}')
    with hba.open("r+") as file:
        file.write(f"local all {ROLE} scram-sha-256\n{before}")
    _execute(postgres_server, "SELECT pg_reload_conf()")
    monkeypatch.setenv("DB_PASSWORD", canary.quoted)
    try:
        yield database, canary
    finally:
        with hba.open("r+") as file:
            file.write(before)
            file.truncate()
        _execute(postgres_server, "SELECT pg_reload_conf()")
        drop_database(postgres_server, database)
        _execute(postgres_server, f"DROP ROLE {ROLE}")


def told_times(node: Node, event: str) -> int:
    """How often an event stands in a node's log."""
    return node.log.read_text().count(event)


def more_than(node: Node, event: str, n: int) -> bool:
    """Whether it stands there more often than that."""
    return told_times(node, event) > n


def lines_of(path: Path) -> tuple[bytes, ...]:
    """A private key's own lines: none of them may stand anywhere else."""
    return tuple(line for line in path.read_bytes().splitlines() if b"-----" not in line and len(line) > 30)


@pytest.mark.parametrize("how", ["console", "json"])
def test_no_secret_is_told_or_kept_by_a_node(
    guarded: tuple[URL, Canary],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    postgres_server: URL,
) -> None:
    database, canary = guarded
    other, clear = Canary(SEED + 8), Canary(SEED + 9)
    keys, ahead, folder = tmp_path / "keys", tmp_path / "ahead", tmp_path / "node"
    for made in (keys, ahead, folder):
        made.mkdir()
    ours = Authority(keys, "ours").issue("node")
    server_folder = str(database.query["host"])
    url = f"postgresql+psycopg://{ROLE}:${{DB_PASSWORD}}@/{database.database}?host={server_folder}"
    tls = f"tls: {{authorities: {keys}/ours.pem, certificate: {ours.certificate}, key: {ours.key}}}"
    retry = f"retry: {{first: 200ms, at_most: 1s}}, {tls}"
    pacs = f'{{kind: dimse, ae_title: P, address: "127.0.0.1:{free_port()}", {retry}}}'
    node = site(folder, database=url, destination=pacs, quiet_after="1s")
    good = node.config.read_text().replace("format: json", f"format: {how}, level: debug")
    good = good.replace("destinations: {", "destinations: {outbox: {kind: folder, path: outbox}, ").replace(
        "[pacs]", "[outbox, pacs]"
    )
    node.config.write_text(good)
    (ahead / "sitecustomize.py").write_text(TROUBLE)
    node.first_on_path = ahead
    spied = tmp_path / "spied"
    _spy(ahead, spied)
    monkeypatch.setenv("CANARY_FOLDER", str(folder))
    monkeypatch.setenv("PATH", f"{ahead}:{os.environ['PATH']}")
    monkeypatch.chdir(folder)
    said, log = Said(), Log()
    node.start()
    try:
        said.processes("at work", node)
        for thread in at_work([Scanner(log, "CT1", n_slices=3)], node.port, threading.Event(), n_new=1):
            thread.join(60)
        wait_until(lambda: len(outbox(node)) == 3, 120, "all is delivered")
        said.verbs("at work", VERBS, node.config)
        said.verbs("at work", (f"backup {tmp_path / 'backup'}",), node.config)
        # edits that are refused, one with the secret in clear where it does not belong
        for wrong in (
            good.replace("spool: spool,", f'spool: ["postgresql+psycopg://l:{clear.quoted}@h/l"],'),
            good.replace("${DB_PASSWORD}@", f"{clear.quoted}@h@"),
            good.replace("quiet_after: 1s", "quiet_after: ${DB_PASSWORD}"),
        ):  # fmt: skip
            n_before = told_times(node, "config.refused")
            node.config.write_text(wrong)
            said.verbs("wrong edit", ("check", "config show", "health"), node.config)
            wait_until(partial(more_than, node, "config.refused", n_before), 60, "it is refused")
        node.config.write_text(good)
        # a defect in a lane of delivery, which is logged with its traceback
        (folder / "crash-lane").touch()
        wait_until(lambda: "delivery.broke" in node.log.read_text(), 60, "a defect is told")
        (folder / "crash-lane").unlink()
        # a defect in a role, which ends it
        (folder / "crash-role").touch()
        gather = child(node, "gather")
        assert gather is not None
        gather.kill()
        wait_until(lambda: told_times(node, "role.died") >= 2, 60, "it dies again, of the defect")
        said.processes("a role died", node)
        (folder / "crash-role").unlink()
        # the password is not the right one any more, and nobody is let in
        _execute(postgres_server, f"ALTER ROLE {ROLE} PASSWORD '{other.secret}'".replace("%", "%%"))
        _execute(
            postgres_server,
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'",
        )
        said.verbs(
            "wrong password", ("check", "health", "series list", "config history", "db upgrade"), node.config
        )
        said.verbs("wrong password", (f"backup {tmp_path / 'no-backup'}",), node.config)
        wait_until(lambda: told_times(node, "does not take the password") > 0, 60, "it is told")
        said.processes("wrong password", node)
    finally:
        node.stop()
    _execute(postgres_server, f"ALTER ROLE {ROLE} PASSWORD NULL")
    said.told["pg_dump of the node"] = spied.read_bytes() if spied.exists() else b""
    said.told["the database"] = _dumped(database)
    told = node.log.read_text()
    canaries = (canary, other, clear)
    hits = [hit for place, data in said.told.items() for hit in found(canaries, place, data)]
    n_files, in_files = found_in(canaries, tmp_path, but=(ahead / "sitecustomize.py", node.config))
    hits += in_files
    for line in lines_of(ours.key):
        hits += [f"{place}: the key" for place, data in said.told.items() if line in data]
        hits += [
            str(p) for p in tmp_path.rglob("*") if p.is_file() and p != ours.key and line in p.read_bytes()
        ]
    record(
        "S7",
        load=f"luminode serve, {how} log at debug, PostgreSQL that asks for the password: a job, a backup, "
        f"{said.n_verbs} verbs, wrong edits, a defect in a lane, a defect that ends a role, a password that is wrong: "
        "log, outputs, command lines, files, names, backup, dump of the database",
        count=len(said.told) + n_files,
        result=f"{len(hits)} hits in {len(said.told)} outputs and {n_files} files: clear, hex, base64, a word of it",
        ok=not hits,
        extra=len(hits),
    )
    assert hits == []
    assert "Traceback" in told
    assert "RuntimeError" in told
    assert b"does not take the password" in said.told["wrong password: luminode series list"]
    assert "does not take the password" in told
    assert b"pg_dump" in said.told["pg_dump of the node"]
    assert database.database is not None
    assert len(said.told["the database"]) > 10_000


def _spy(folder: Path, told: Path) -> None:
    """A pg_dump in front of the real one that notes with which arguments it was run."""
    real = shutil.which("pg_dump")
    assert real is not None
    spy = folder / "pg_dump"
    spy.write_text(f'#!/bin/sh\ntr "\\0" " " </proc/$$/cmdline >>{told}\nexec {real} "$@"\n')
    spy.chmod(0o755)


def _dumped(database: URL) -> bytes:
    """All of a database as SQL, by its superuser."""
    where = database.set(drivername="postgresql").render_as_string(hide_password=False)
    found_ = binaries()
    assert found_ is not None
    told = subprocess.run(
        [str(found_ / "pg_dump"), "--inserts", f"--dbname={where}"], capture_output=True, check=True
    )
    return told.stdout
