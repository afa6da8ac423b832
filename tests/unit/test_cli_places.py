"""Verbs in the wrong folder, as the wrong user, beside another node: nothing is made that misleads, nothing taken."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from node.deliver.folder import _told as folder_told
from node.errors import PeerUnreachable
from node.store import Store
from node.store.db import Database
from node.store.disk import disk_error, filesystem_type
from tests.cli import luminode
from tests.pipeline.harness import REPOSITORY
from tests.storing import received

pytestmark = pytest.mark.usefixtures("site")

LOOKS = (
    ("series", "list"), ("series", "retry", "1"), ("jobs", "list"), ("jobs", "retry", "--held"),
    ("deliveries", "list"), ("commitments", "list"), ("config", "history"), ("spool", "fsck", "--adopt"),
    ("provenance", "--verify"), ("backup", "copy"),
)  # fmt: skip


@pytest.mark.parametrize("verb", LOOKS, ids=" ".join)
def test_in_a_folder_where_no_node_runs_a_verb_says_so_and_makes_nothing(
    site: Path, verb: tuple[str, ...]
) -> None:
    told = luminode(*verb)
    assert (told.status, told.out) == (1, "")
    assert f"there is no database at {site}/luminode.db" in told.err
    assert "run this where the node runs" in told.err
    assert [p.name for p in site.iterdir()] == ["config.yaml"]


def test_check_before_the_first_start_notes_what_will_be_made_and_makes_nothing(site: Path) -> None:
    told = luminode("check", "--offline", "--json")
    assert told.status == 0
    found = {f["what"]: f for f in told.json}
    assert found["database"]["text"] == f"there is none at {site}/luminode.db yet"
    assert found["spool"]["text"] == f"there is none at {site}/spool yet"
    assert found["database"]["note"]
    assert "wrong folder" in found["spool"]["hint"]
    assert [p.name for p in site.iterdir()] == ["config.yaml"]


def test_check_leaves_an_older_schema_to_the_start_of_the_node(site: Path, site_store: Store) -> None:
    with site_store.database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    told = luminode("check", "--offline")
    assert told.status == 0
    assert "note database                 the database's schema is older than this Luminode" in told.out
    assert luminode("series", "list").status == 1
    with site_store.database.read() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "0001"


def test_nothing_is_rebuilt_where_there_is_no_spool(site: Path) -> None:
    told = luminode("db", "rebuild")
    assert told.status == 1
    assert f"there is no spool at {site}/spool" in told.err
    assert [p.name for p in site.iterdir()] == ["config.yaml"]


HOLDS = """
import sys
from node.app.alone import alone
from node.config.schema import StoreSettings

with alone(StoreSettings(spool=sys.argv[1], database=sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def node_at(spool: str, database: str) -> Iterator[None]:
    """Another process that holds what a node holds."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, spool, database],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        yield
        holder.stdin.close()


def test_a_second_node_on_the_same_data_is_refused(site: Path) -> None:
    for spool in ("spool", "another"):
        with node_at(spool, "sqlite:///luminode.db"):
            told = luminode("serve")
            assert told.status == 1
            assert "a node runs here already" in told.err
            assert "a database of its own" in told.err
            assert luminode("db", "upgrade").status == 1
    assert not (site / "luminode.db").exists()
    assert luminode("db", "upgrade").status == 0, "nobody holds it any more"


def test_an_upgrade_that_has_nothing_to_do_disturbs_no_node(site_store: Store) -> None:
    with node_at(str(site_store.spool.root), str(site_store.database.url)):
        assert luminode("db", "upgrade").out == "the schema is up to date\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be told that it is root")
@pytest.mark.parametrize("verb", [*LOOKS, ("serve",), ("db", "upgrade"), ("restore", "copy")], ids=" ".join)
def test_root_makes_nothing_among_the_files_of_the_nodes_user(site: Path, verb: tuple[str, ...]) -> None:
    os.chown(site, 12345, 12345)
    told = luminode(*verb)
    assert told.status == 1
    assert f"{site} belongs to #12345, and this is root" in told.err
    assert "sudo -u" in told.err
    assert [p.name for p in site.iterdir()] == ["config.yaml"]


def test_a_backup_says_what_it_could_not_find(site: Path, site_store: Store) -> None:
    gone, there = (received(site_store, n) for n in range(2))
    site_store.reception.record([gone, there])
    site_store.spool.path(gone.path).unlink()
    told = luminode("backup", "copy", "--json")
    assert told.status == 0
    assert (told.json["n_files"], told.json["missing"], told.json["gone"]) == (1, 1, 0)
    assert "1 files that are on record are not in the spool" in told.err
    with Database(f"sqlite:///{site}/copy/luminode.db").read() as connection:
        assert connection.execute(text("SELECT count(*) FROM instance")).scalar_one() == 2


def test_a_place_that_may_only_be_read_is_told_as_what_it_is() -> None:
    """As in the unit of systemd, where owner and mode are right and the file system is not."""
    refused = OSError(errno.EROFS, os.strerror(errno.EROFS), "/data/spool")
    assert "ReadWritePaths" in disk_error(refused, "open").hint
    with pytest.raises(PeerUnreachable) as raised, folder_told(Path("/data/out")):
        raise refused
    assert "ReadWritePaths" in raised.value.hint
    with pytest.raises(PeerUnreachable, match="permission denied") as raised, folder_told(Path("/data/out")):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    assert "ReadWritePaths" not in raised.value.hint


def test_a_mount_point_with_any_name_is_found_in_the_table_of_mounts(site: Path) -> None:
    names = ("plain", "with space", "Bildgebung Süd", "back\\slash")
    lines = [f"server:/x {site}/{name} nfs4 rw 0 0" for name in names]
    table = "\n".join(
        line.replace("\\", "\\134")
        .replace(f"{site}/with space", f"{site}/with\\040space")
        .replace("Bildgebung Süd", "Bildgebung\\040Süd")
        for line in lines
    )
    for name in names:
        assert filesystem_type(site / name / "spool", table) == "nfs4", name
