"""A real PostgreSQL for tests: Debian's server, started by the tests in a folder of its own.

It listens on a Unix socket only, in a folder that nobody else can enter, and runs as ``postgres`` or
``nobody`` where the tests run as root (the server refuses root). ``LUMINODE_TEST_POSTGRES`` names a server
to use instead (a URL of a role that may create databases).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, create_engine, make_url

ENVIRONMENT = "LUMINODE_TEST_POSTGRES"
_SETTINGS = (
    "listen_addresses=",
    "fsync=off",  # the tests kill the server, never the machine
    "full_page_writes=off",
    "max_connections=200",
    "shared_buffers=32MB",
    "log_min_messages=fatal",
    "timezone=America/New_York",  # not UTC, so that a time stored without its zone is found out
)


class Server:
    """A PostgreSQL server that can be stopped, killed and started again."""

    def __init__(self, binaries: Path, *, standby_of: Server | None = None) -> None:
        self._bin = binaries
        self.folder = Path(tempfile.mkdtemp(prefix="lumpg"))
        self._user = _unprivileged()
        if self._user is not None:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        if standby_of is None:
            self._run(
                "initdb", "-D", self._data, "-A", "trust", "-U", "luminode", "-E", "UTF8", "--no-locale", "-N"
            )
        else:
            self._run(
                "pg_basebackup", "-D", self._data, "-h", str(standby_of.folder), "-U", "luminode", "-R",
                "--checkpoint=fast", "--no-sync",
            )  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    @property
    def url(self) -> URL:
        """Of the database ``postgres``."""
        return URL.create(
            "postgresql+psycopg", username="luminode", database="postgres", query={"host": str(self.folder)}
        )

    def start(self) -> None:
        arguments = [a for setting in _SETTINGS for a in ("-c", setting)]
        self._process = subprocess.Popen(
            [str(self._bin / "postgres"), "-D", self._data, "-k", str(self.folder), *arguments],
            preexec_fn=_die_with_parent,
            **self._how(),
        )
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(Exception):
                _execute(self.url, "SELECT 1")
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("PostgreSQL did not start")
            time.sleep(0.05)

    def kill(self) -> None:
        """kill -9 of the postmaster and, with it, of every server process."""
        assert self._process is not None
        self.send(signal.SIGKILL)
        self._process.wait()
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)

    def send(self, number: signal.Signals) -> None:
        """A signal to the postmaster and to every server process."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in (self._process.pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def send_nothing_more(self) -> None:
        """Stop the processes that send the log to standbys: what is written from here on stays here."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        senders = [p for p in children if b"walsender" in Path(f"/proc/{p}/cmdline").read_bytes()]
        assert senders, "no standby follows"
        for pid in senders:
            os.kill(int(pid), signal.SIGSTOP)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)  # immediate shutdown
            self._process.wait(timeout=30)

    def promote(self) -> None:
        """A standby becomes the primary; returns when it is."""
        _execute(self.url, "SELECT pg_promote(true, 30)")

    def set(self, statement: str) -> None:
        """``ALTER SYSTEM SET`` and read it."""
        _execute(self.url, f"ALTER SYSTEM SET {statement}")
        _execute(self.url, "SELECT pg_reload_conf()")

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run([str(self._bin / program), *arguments], check=True, **self._how())

    def _how(self) -> dict[str, Any]:
        how: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": self.folder}
        if self._user is not None:
            how |= {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        return how


class Pair:
    """A primary and its synchronous standby, which changes places with it again and again.

    ``url`` names both folders, so that a client finds whichever takes writes (libpq's ``target_session_attrs``).
    Folders of servers to come are links, since a client is given its URL once.
    """

    def __init__(self, binaries: Path) -> None:
        self._bin = binaries
        self.primary = Server(binaries)
        self.standby: Server | None = None
        self.places = [Path(tempfile.mkdtemp(prefix="lumpg")) for _ in range(2)]
        for place in self.places:
            place.chmod(0o755)

    @property
    def url(self) -> URL:
        hosts = tuple(f"{place / 'here'}:5432" for place in self.places)
        query = {"host": hosts, "target_session_attrs": "read-write"}
        return URL.create("postgresql+psycopg", username="luminode", database="postgres", query=query)

    def start(self) -> None:
        self.primary.start()
        self._at(0, self.primary)
        self.pair_again(place=1)

    def pair_again(self, place: int | None = None) -> None:
        """Give the primary a new standby; returns when commits wait for it."""
        if place is None:
            place = next(
                k for k, at in enumerate(self.places) if (at / "here").resolve() != self.primary.folder
            )
        self.standby = Server(self._bin, standby_of=self.primary)
        self.standby.start()
        self._at(place, self.standby)
        self.primary.set("synchronous_standby_names = '*'")
        deadline = time.monotonic() + 30
        while not _scalar(
            self.primary.url, "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
        ):
            if time.monotonic() > deadline:
                raise RuntimeError("the standby does not follow")
            time.sleep(0.05)

    def fail_over(self, behind_s: float = 0.6) -> None:
        """kill -9 of the primary, and its standby takes over.

        Just before, the standby hears nothing for ``behind_s`` seconds: what the primary would acknowledge then
        without waiting for it is lost.
        """
        assert self.standby is not None
        old = self.primary
        old.send_nothing_more()  # were the standby stopped, it would find it all in its socket afterwards
        time.sleep(behind_s)
        old.kill()
        self.standby.promote()
        self.standby.set("synchronous_standby_names = ''")
        self.primary, self.standby = self.standby, None
        old.remove()

    def remove(self) -> None:
        for one in (self.standby, self.primary):
            if one is not None:
                one.remove()
        for place in self.places:
            shutil.rmtree(place, ignore_errors=True)

    def _at(self, place: int, server: Server) -> None:
        link = self.places[place] / "here"
        link.unlink(missing_ok=True)
        link.symlink_to(server.folder)


def binaries() -> Path | None:
    """Folder of the newest server that Debian installed."""
    found = sorted(
        (p.parent for p in Path("/usr/lib/postgresql").glob("*/bin/postgres")),
        key=lambda p: int(p.parent.name) if p.parent.name.isdigit() else 0,
    )
    if found:
        return found[-1]
    other = shutil.which("postgres")
    return Path(other).parent if other else None


def create_database(server: URL, template: str = "template0") -> URL:
    """A new database on a server."""
    name = f"luminode_{secrets.token_hex(6)}"
    _execute(server, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    return server.set(database=name)


def drop_database(server: URL, database: URL) -> None:
    _execute(server, f'DROP DATABASE IF EXISTS "{database.database}" WITH (FORCE)')


def told(url: URL) -> str:
    """A URL as config.yaml would have it."""
    return url.render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def postgres_binaries() -> Path:
    """For tests that start, kill and restart a `Server` of their own."""
    found = binaries()
    if found is None:
        pytest.skip("no PostgreSQL server is installed")
    return found


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[URL]:
    """URL of a running server; skips with a reason where there is none."""
    given = os.environ.get(ENVIRONMENT)
    if given:
        yield make_url(given)
        return
    found = binaries()
    if found is None:
        pytest.skip(f"no PostgreSQL server is installed, and {ENVIRONMENT} is not set")
    server = Server(found)
    try:
        server.start()
        yield server.url
    finally:
        server.remove()


@pytest.fixture(scope="session")
def postgres_shared(postgres_server: URL) -> Iterator[URL]:
    """A database with the current schema, which one test after another uses."""
    from node.store.db import Database
    from node.store.migrate import upgrade

    url = create_database(postgres_server)
    database = Database(told(url))
    upgrade(database)
    database.close()
    yield url
    drop_database(postgres_server, url)


@pytest.fixture
def postgres_empty(postgres_server: URL) -> Iterator[str]:
    """URL of a new, empty database."""
    url = create_database(postgres_server)
    yield told(url)
    drop_database(postgres_server, url)


@pytest.fixture
def postgres_url(postgres_shared: URL) -> str:
    """URL of a database with the current schema and nothing in it."""
    empty(postgres_shared)
    return told(postgres_shared)


def empty(url: URL) -> None:
    """Empty a database of all but its schema; whoever is connected to it is thrown out."""
    _execute(url, _EMPTY)


_EMPTY = """
DO $$
DECLARE name text;
BEGIN
    PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid();
    SET LOCAL session_replication_role = replica;  -- past the triggers that keep provenance
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'
    LOOP
        EXECUTE 'DELETE FROM ' || quote_ident(name);
    END LOOP;
    FOR name IN SELECT sequencename FROM pg_sequences WHERE schemaname = 'public'
    LOOP
        EXECUTE 'ALTER SEQUENCE ' || quote_ident(name) || ' RESTART';
    END LOOP;
    INSERT INTO provenance_chain (id, head, hash) VALUES (1, 0, repeat('0', 64));
END $$
"""
"""Making a database anew costs a hundred times as much."""


def _execute(url: URL, statement: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT", hide_parameters=True)
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
    finally:
        engine.dispose()


def _scalar(url: URL, statement: str) -> Any:
    engine = create_engine(url, hide_parameters=True)
    try:
        with engine.connect() as connection:
            return connection.exec_driver_sql(statement).scalar_one()
    finally:
        engine.dispose()


def _die_with_parent() -> None:
    """A test run that is killed leaves no server behind (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)


def _unprivileged() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    pytest.skip("the tests run as root and there is no other user to run PostgreSQL as")
