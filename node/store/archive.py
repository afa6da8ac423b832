"""A backup of the node: the database as it was at one moment, and the files that something in it still needs.

::

    FOLDER/manifest.json      what there is, with sizes and SHA-256; written last
    FOLDER/luminode.db        SQLite; or luminode.dump, by pg_dump
    FOLDER/config.yaml        as written
    FOLDER/spool/<xx>/...     of what was not done

The database comes first, then the files: they never change, and what is not done is never removed (R58). Whatever
was acknowledged before the backup began is in it, or was already delivered (R57). A restore verifies everything
before it touches anything, and never overwrites.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

from sqlalchemy import inspect, select
from sqlalchemy.engine import URL

from node.errors import SchemaTooNew, StoreError
from node.store.backup import backup_sqlite
from node.store.db import Database
from node.store.disk import make_folders, sync_folder
from node.store.migrate import HEAD, KNOWN
from node.store.reconcile import Findings
from node.store.retention import unfinished
from node.store.spool import Spool
from node.store.store import Store
from node.store.tables import ConflictRow, DerivedInstanceRow, InstanceRow

MANIFEST: Final = "manifest.json"
_NAMES: Final = {"sqlite": "luminode.db", "postgresql": "luminode.dump"}
_MINUTES: Final = 600
_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A backup that was made. ``gone`` files were delivered and removed while it was being made; ``missing`` are on
    record, unfinished, and not in the spool: no backup has them."""

    folder: Path
    n_files: int
    n_bytes: int
    gone: int
    missing: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What came of a restore: ``forgotten`` series were done when the backup was made, and their files are
    not in it."""

    n_files: int
    forgotten: int
    findings: Findings
    chain_ok: bool

    @property
    def ok(self) -> bool:
        """Whether all that the records speak of is there and is what was received."""
        return self.findings.ok and self.chain_ok


def save(store: Store, folder: Path, config: str, at: datetime, *, whole: bool = False) -> Saved:
    """Make a backup of a store in use.

    Parameters
    ----------
    folder
        A folder that does not exist yet; it appears when the backup is complete.
    config
        Text of config.yaml.
    whole
        Also the files of what is done.

    Raises
    ------
    StoreError
        It could not be made; nothing is left of it.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    if folder.exists():
        raise StoreError(
            "there is something of that name already", hint="name another folder", retryable=False
        )
    shutil.rmtree(partial, ignore_errors=True)
    try:
        make_folders(folder.parent)
        partial.mkdir(mode=0o700)
        before = _wanted(store.database, whole)
        named = partial / _NAMES[store.database.kind]
        if store.database.kind == "sqlite":
            backup_sqlite(store.database, named)
            snapshot = Database(f"sqlite:///{named}")
            try:
                wanted = _wanted(snapshot, whole)
            finally:
                snapshot.close()
        else:
            _run("pg_dump", "--format=custom", "--no-owner", f"--file={named}", url=store.database.url)
            wanted = before | _wanted(store.database, whole)  # one of them saw what the dump saw
        files = dict(_copied(store.spool, wanted, partial))
        _write(partial / "config.yaml", config.encode())
        manifest = {
            "schema": HEAD,
            "at": at.isoformat(),
            "kind": store.database.kind,
            "whole": whole,
            "database": _digest(named),
            "files": files,
        }
        _write(partial / MANIFEST, json.dumps(manifest, indent=0).encode())
        for made in [p for p in partial.rglob("*") if p.is_dir()]:
            sync_folder(made)
        sync_folder(partial)
        partial.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        told = f"the backup could not be written: {error.strerror or type(error).__name__}"
        raise StoreError(told, hint="check path, owner and free space") from None
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    n_bytes = sum(size for size, _ in files.values())
    absent = wanted - files.keys()
    missing = len(absent & _wanted(store.database, whole)) if absent else 0
    return Saved(
        folder=folder, n_files=len(files), n_bytes=n_bytes, gone=len(absent) - missing, missing=missing
    )


def restore(folder: Path, database_url: str, spool_root: Path, at: datetime) -> Restored:
    """Put a backup in place of nothing.

    Parameters
    ----------
    folder
        A backup that :func:`save` made.
    database_url, spool_root
        Where to; neither may hold anything else. A restore that was cut off may be run again.

    Raises
    ------
    StoreError
        The backup is not whole, or there is something in its place already; nothing was changed.
    """
    manifest = _manifest(folder)
    files: Mapping[str, Any] = manifest["files"]
    target = Database(database_url)
    try:
        if target.kind != manifest["kind"]:
            told = f"the backup is of {manifest['kind']}, the configuration names {target.kind}"
            raise StoreError(told, hint="restore to a database of the same kind", retryable=False)
        spool = Spool(spool_root)
        _refuse_to_overwrite(target, spool, files)
        named = folder / _NAMES[target.kind]
        _verify(folder, named, manifest)
        for relative in files:
            _put(folder / "spool" / relative, spool, relative)
        spool.sync_dirs(files)
        if target.kind == "postgresql":
            _run("pg_restore", "--no-owner", "--single-transaction", str(named), url=target.url)
            return _finish(database_url, spool_root, manifest, at)
        place = Path(str(target.url.database))
        staged = place.with_name(f".{place.name}.restored")
        staged.unlink(missing_ok=True)
        shutil.copyfile(named, staged)
        staged.chmod(0o600)
        found = _finish(f"sqlite:///{staged}", spool_root, manifest, at)
        descriptor = os.open(staged, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        staged.rename(place)
        sync_folder(place.parent)
        return found
    except OSError as error:
        told = f"the backup could not be put in place: {error.strerror or type(error).__name__}"
        raise StoreError(told, hint="check path, owner and free space, then run it again") from None
    finally:
        target.close()


def _finish(url: str, spool_root: Path, manifest: Mapping[str, Any], at: datetime) -> Restored:
    with Store.open(url, spool_root) as store:
        forgotten = 0 if manifest["whole"] else store.retention.forget_done(at)
        return Restored(
            n_files=len(manifest["files"]),
            forgotten=forgotten,
            findings=store.reconcile.fsck(verify=True),
            chain_ok=store.provenance.verify().ok,
        )


def _wanted(database: Database, whole: bool) -> set[str]:
    with database.read() as connection:
        if not whole:
            return unfinished(connection)
        tables = (InstanceRow, ConflictRow, DerivedInstanceRow)
        return {path for t in tables for path in connection.execute(select(t.path)).scalars()}


def _copied(spool: Spool, wanted: Iterable[str], folder: Path) -> Iterable[tuple[str, tuple[int, str]]]:
    for relative in sorted(wanted):
        to = folder / "spool" / relative
        to.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with spool.open(relative) as file:
                told = _copy(file, to)
        except StoreError:
            if spool.exists(relative):
                raise
            continue
        yield relative, told


def _manifest(folder: Path) -> Mapping[str, Any]:
    try:
        manifest: Mapping[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        schema, kind = manifest["schema"], manifest["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        hint = "name a folder that `luminode backup` made"
        raise StoreError(
            "this is no whole backup: its manifest cannot be read", hint=hint, retryable=False
        ) from None
    if schema not in KNOWN or kind not in _NAMES:
        told = f"the backup has schema {schema}, which this Luminode (schema {HEAD}) does not know"
        raise SchemaTooNew(told, hint="install the Luminode that made it, or a newer one")
    return manifest


def _refuse_to_overwrite(target: Database, spool: Spool, files: Mapping[str, Any]) -> None:
    if target.kind == "sqlite":
        place = Path(str(target.url.database))
        taken = any(place.with_name(place.name + end).exists() for end in ("", "-wal"))
    else:
        with target.read() as connection:
            taken = bool(inspect(connection).get_table_names())
    if taken:
        hint = "move it away, or name another in config.yaml"
        raise StoreError("there is a database already, and none is overwritten", hint=hint, retryable=False)
    if any(found.path not in files for found in spool.walk()):
        hint = "move its files away, or name another folder in config.yaml"
        raise StoreError("the spool is not empty, and nothing is mixed with it", hint=hint, retryable=False)


def _verify(folder: Path, named: Path, manifest: Mapping[str, Any]) -> None:
    try:
        bad = [r for r, told in manifest["files"].items() if _digest(folder / "spool" / r) != tuple(told)]
        if _digest(named) != tuple(manifest["database"]):
            bad.append(named.name)
    except FileNotFoundError as error:
        bad = [Path(str(error.filename)).name]
    if bad:
        told = f"{len(bad)} files of the backup are not what was saved, the first is {bad[0]}"
        raise StoreError(told, hint="use an older backup", retryable=False)


def _put(source: Path, spool: Spool, relative: str) -> None:
    to = spool.path(relative)  # no name but such as the spool makes
    to.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with source.open("rb") as file:
        _copy(file, to.with_name(f".{to.name}"))
    to.with_name(f".{to.name}").rename(to)


def _write(path: Path, data: bytes) -> None:
    _copy(io.BytesIO(data), path)


def _copy(source: BinaryIO, to: Path) -> tuple[int, str]:
    """Write a file that is durable, in pieces; returns its size and SHA-256."""
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        while piece := source.read(_PIECE):
            digest.update(piece)
            size += file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return size, digest.hexdigest()


def _digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def _run(program: str, *arguments: str, url: URL) -> None:
    """One of PostgreSQL's own tools; the password goes by the environment, not the command line."""
    # Everybody on this machine may read a process's arguments, and nobody its environment.
    bare = URL.create(
        "postgresql",
        username=url.username,
        host=url.host,
        port=url.port,
        database=url.database,
        query=url.query,
    ).difference_update_query(["password"])  # `URL.set(password=None)` leaves it
    where = bare.render_as_string(hide_password=False)
    environment = dict(os.environ)
    password = url.password if url.password is not None else url.query.get("password")
    if password is not None:
        environment["PGPASSWORD"] = str(password)
    try:
        subprocess.run(
            [program, *arguments, f"--dbname={where}"], env=environment, check=True, capture_output=True,
            timeout=60 * _MINUTES,
        )  # fmt: skip
    except FileNotFoundError:
        hint = "install PostgreSQL's client programs, or run them where they are"
        raise StoreError(f"{program} is not installed here", hint=hint, retryable=False) from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = (error.stderr or b"").decode("utf-8", "replace").strip().splitlines()
        raise StoreError(f"{program} failed: {said[0][:200] if said else type(error).__name__}") from None
