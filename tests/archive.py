"""A store as years of work leave it: seeded rows in realistic shares, written in bulk.

Files of the spool are not made: what is measured on such a store reads the database. Shares: two series to a study; of
the series 40 % were enhanced, a fifth went on as originals, every hundredth is what came late of the one before; every
fiftieth came over an association for each of its instances. Before the series that are here lie a fifth as many that
retention removed. What waits or runs now is as little in a large archive as in a small one.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import repeat
from random import Random
from typing import Any

from sqlalchemy import Connection, text

from node.dicom.headers import merge
from node.model import Instance
from node.store import codec, provenance, rows
from node.store.db import Database, to_json
from node.store.spool import spool_path
from node.store.tables import (
    AssociationRow,
    Base,
    CarriedRow,
    ChainRow,
    ConfigRow,
    ConflictRow,
    DeliveryRow,
    DerivedInstanceRow,
    DerivedRow,
    EventRow,
    InstanceRow,
    JobRow,
    OutcomeRow,
    OutlookRow,
    ProvenanceRow,
    SeriesRow,
    SubjectRow,
    TurnRow,
)
from tests.storing import CT, EXPLICIT, decision, header

UNTIL = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
"""When the last instance came."""

A_DAY = 40
"""Series that come in a day, in every archive: a larger one is an older one."""

OPEN, QUEUED, RUNNING, PENDING = 4, 5, 1, 4
"""What is open, waits, runs and is to be sent."""

HELD_FIRST = 10
"""The oldest series whose job is held: what retention looks at again and again."""

_CHUNK = 25
_SIZE = 525_000
_ORDER: tuple[type[Base], ...] = (
    AssociationRow, SeriesRow, InstanceRow, ConflictRow, CarriedRow, JobRow, OutlookRow, DerivedRow,
    DerivedInstanceRow, DeliveryRow, OutcomeRow, ProvenanceRow, SubjectRow, EventRow, ConfigRow, TurnRow,
)  # fmt: skip
"""Tables, those first that others refer to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """What is in a store: counts, and some of each kind to be asked for.

    ``routed``, ``forwarded`` and ``open``: series. ``before``: a time before which only series came whose job is held.
    """

    n_series: int
    n_instances: int
    until: datetime
    before: datetime
    routed: int
    forwarded: int
    open: int
    job: int
    derived: int
    delivery: int
    originals: int
    study_uid: str
    series_uid: str
    sop_uid: str
    derived_uid: str
    derived_sop_uid: str
    paths: tuple[str, ...]


class _Writer:
    """Rows by table, written in bulk: SQLite's executemany, PostgreSQL's COPY."""

    def __init__(self, database: Database) -> None:
        self._postgresql = database.kind == "postgresql"
        self._columns: dict[type[Base], tuple[str, ...]] = {}
        self._rows: dict[type[Base], list[tuple[Any, ...]]] = {table: [] for table in _ORDER}

    def add(self, table: type[Base], **values: Any) -> None:
        """One row; all of a table name the same columns in the same order."""
        if table not in self._columns:
            known = {c.name for c in table.__table__.columns}
            assert set(values) <= known, set(values) - known
            self._columns[table] = tuple(values)
        self._rows[table].append(tuple(values.values()))

    def time(self, at: datetime | None) -> Any:
        """As tables.Utc stores it."""
        if at is None or self._postgresql:
            return at
        return at.replace(tzinfo=None).isoformat(" ", "microseconds")

    def flush(self, connection: Connection) -> None:
        cursor: Any = connection.connection.cursor()
        for table in _ORDER:
            waiting, self._rows[table] = self._rows[table], []
            if not waiting:
                continue
            names = ", ".join(f'"{name}"' for name in self._columns[table])
            if self._postgresql:
                with cursor.copy(f"COPY {table.__tablename__} ({names}) FROM STDIN") as copy:
                    for row in waiting:
                        copy.write_row(row)
            else:
                marks = ", ".join("?" * len(self._columns[table]))
                cursor.executemany(
                    f"INSERT INTO {table.__tablename__} ({names}) VALUES ({marks})", waiting
                )  # fmt: skip
        cursor.close()


def fill(
    database: Database,
    *,
    n_series: int,
    n_instances: int,
    seed: int = 6,
    until: datetime = UNTIL,
    tell: Callable[[str], None] = lambda _: None,
) -> Archive:
    """Fill an empty store whose schema is current; returns what is in it.

    Parameters
    ----------
    n_series
        Series that are here; at least 20.
    n_instances
        Instances of all of them together.
    until
        When the last one came.
    """
    maker = _Maker(database, n_series, n_instances, seed, until)
    with database.write() as connection:
        if database.kind == "sqlite":
            connection.exec_driver_sql("PRAGMA cache_size=-262144")
        for number, done in enumerate(maker.make(), 1):
            maker.writer.flush(connection)
            if number % 20 == 0:
                tell(f"{database.kind}: {done:,} series")
        connection.execute(ChainRow.__table__.update().values(head=maker.link, hash=maker.hash))  # type: ignore[attr-defined]
        if database.kind == "postgresql":
            _set_sequences(connection)
    if database.kind == "postgresql":  # as autovacuum does
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as plain:
            plain.execute(text("SET statement_timeout = 0"))
            plain.execute(text("VACUUM ANALYZE"))
    else:
        database.engine.dispose()  # its cache and its log were of a size for this
    return maker.told()


def _set_sequences(connection: Connection) -> None:
    for table in _ORDER:
        name = table.__tablename__
        if "id" in table.__table__.columns and table.__table__.columns["id"].autoincrement is True:
            connection.execute(
                text(f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), (SELECT max(id) FROM {name}))")
            )


class _Maker:
    """Thinks the rows out, series by series, the oldest first."""

    def __init__(
        self, database: Database, n_series: int, n_instances: int, seed: int, until: datetime
    ) -> None:
        self.writer = _Writer(database)
        self.link, self.hash = 0, provenance.GENESIS
        self._until = until
        self._n, self._gone = n_series, n_series // 5
        self._states = Random(seed).choices(
            ("ROUTED", "IGNORED", "REJECTED"), (40, 56, 4), k=self._n + self._gone
        )
        self._each, self._more = divmod(n_instances, n_series)
        self._n_instances = n_instances
        self._job = self._derived = self._delivery = self._made = self._instance = 0
        self._jobs: dict[str, list[tuple[int, int]]] = {}
        self._paths: list[str] = []
        self._last: dict[str, Any] = {}
        self._template()

    def told(self) -> Archive:
        return Archive(
            n_series=self._n,
            n_instances=self._n_instances,
            until=self._until,
            before=self._at(self._gone + HELD_FIRST) + timedelta(seconds=1),
            open=self._gone + self._n,
            paths=tuple(self._paths[-500:]),
            **self._last,
        )

    def make(self) -> Iterator[int]:
        """Yields after each chunk, with how many series were made."""
        for k in range(1, self._gone + self._n + 1):
            self._series(k)
            if k % _CHUNK == 0:
                yield k
        for digest in range(20):
            self.writer.add(
                ConfigRow, at=self._time(self._until - timedelta(days=20 - digest)), digest=f"{digest:064x}",
                text="node:\n  ae_title: LUMINODE\n" * 40, diff="+  ae_title: LUMINODE\n",
            )  # fmt: skip
        for name in ("retention", "reconcile", "report", "health"):
            at = self._time(self._until)
            self.writer.add(TurnRow, name=name, owner="h", started_at=at, until=at, finished_at=at)
        yield self._gone + self._n

    # ----------------------------------------------------------------------------------------------
    def _template(self) -> None:
        """Headers as they are stored: of every series the same but for its UIDs."""
        n = self._each + 1
        one = Instance(
            sop_class_uid=CT, sop_instance_uid="SOP", study_uid="STUDY", series_uid="SERIES",
            transfer_syntax_uid=EXPLICIT, calling_ae="CT1", called_ae="LUMINODE", association="", path="",
            size=_SIZE, offset=500, sha256="", received_at=self._until,
        )  # fmt: skip
        headers = [header(one, k) for k in range(1, n + 1)]
        base = codec.pack_base(headers[0])
        self._base = to_json(base)
        self._headers = [to_json(codec.pack(each, base)).partition("SOP") for each in headers]
        numbered = [replace(each, sop_instance_uid=f"1.{k}") for k, each in enumerate(headers)]
        self._merged = to_json(codec.pack_series_header(merge(numbered)))
        self._decided = {
            action: to_json({**rows.decision_document(decision("pacs")), "action": action})
            for action in ("enhance", "ignore", "reject")
        }

    def _time(self, at: datetime | None) -> Any:
        return self.writer.time(at)

    def _at(self, k: int) -> datetime:
        """When the last instance of a series came."""
        return self._until - timedelta(seconds=(self._gone + self._n - k) * 86400 / A_DAY)

    def _series(self, k: int) -> None:
        here, age = k > self._gone, self._gone + self._n - k
        late = age % 100 == 50
        own = age + 1 if late else age
        study, uid = f"1.2.826.0.1.{own // 2}", f"1.2.826.0.1.{own // 2}.{own}"
        n = self._each + (k - self._gone <= self._more) if here else self._each
        state = self._state(k, age)
        at = self._at(k)
        told = self._time(at)
        closed = state != "OPEN"
        action = {"ROUTED": "enhance", "IGNORED": "ignore", "REJECTED": "reject"}.get(state)
        self.writer.add(
            SeriesRow, id=k, study_uid=study, series_uid=uid, calling_ae=f"CT{age % 7}", called_ae="LUMINODE",
            generation=1 + late, state=state, count=n, size=n * _SIZE,
            opened_at=self._time(at - timedelta(seconds=n / 10)), last_received_at=told,
            closed_at=told if closed else None, closed_because="quiet" if age % 10 == 5 else "count",
            header=self._merged if closed else None,
            base=self._base.replace("STUDY", study).replace("SERIES", uid), decided_at=told if closed else None,
            decision=self._decided[action] if action else None, config_digest="c" * 64,
            purged_at=None if here else self._time(min(self._until, at + timedelta(days=30))),
        )  # fmt: skip
        uids = [f"{uid}.{1 + late}.{i}" for i in range(1, n + 1)]
        digests = [hashlib.sha256(each.encode()).hexdigest() for each in uids] if here else []
        self._associations(k, age, uids, told, here=here, open_=not closed)
        if here:
            self._instances(k, age, uid, uids, digests, told)
        self._events(k, age, late, at)
        if closed:
            self._tell("series.routed", (study, uid), {"series": k, "decision": self._decided["ignore"]}, at)
        if here and age % 5 == 0:
            self._deliver(
                k, "archive", "SENT" if closed else "PENDING", at, n, self._instance - n, of="series"
            )
            if closed:
                self._last |= {"originals": self._delivery, "forwarded": k}
        if state == "ROUTED":
            self._enhanced(k, study, uid, uids, digests, at, here=here, age=age)
        elif not closed and age < 2:
            self.writer.add(
                OutlookRow, series_id=k, engine="ct-nlm", params="{}", owner="", whole=0, tries=0
            )  # fmt: skip

    def _state(self, k: int, age: int) -> str:
        if age < OPEN:
            return "OPEN"
        if age < OPEN + QUEUED + RUNNING + PENDING + 2 or self._gone < k <= self._gone + HELD_FIRST:
            return "ROUTED"
        return self._states[age]

    def _associations(
        self, k: int, age: int, uids: Sequence[str], told: Any, *, here: bool, open_: bool
    ) -> None:
        if not here:
            return
        n_each = len(uids) if age % 50 == 40 else 1
        for i in range(n_each + 1):
            name = hashlib.md5(f"{k} {i}".encode(), usedforsecurity=False).hexdigest()
            lives = open_ and i == 0
            self.writer.add(
                AssociationRow, id=name, calling_ae=f"CT{age % 7}", called_ae="LUMINODE", address=f"10.0.0.{age % 7}",
                receiver="r1", opened_at=told, ended_at=None if lives else told,
                ending="OPEN" if lives else "RELEASED",
            )  # fmt: skip
            if i < n_each:  # the last one was an echo
                share = len(uids) // n_each
                self.writer.add(CarriedRow, series_id=k, association=name, n_new=share, n_seen=share)
        self._name = hashlib.md5(f"{k} 0".encode(), usedforsecurity=False).hexdigest()

    def _instances(
        self, k: int, age: int, uid: str, uids: Sequence[str], digests: Sequence[str], told: Any
    ) -> None:
        paths = [spool_path(uid, sop, sha) for sop, sha in zip(uids, digests, strict=True)]
        self._paths = paths if len(self._paths) >= 500 else self._paths + paths
        for sop, sha, path, (before, _, after) in zip(uids, digests, paths, self._headers, strict=False):
            self._instance += 1
            self.writer.add(
                InstanceRow, id=self._instance, series_id=k, sop_class_uid=CT, sop_instance_uid=sop,
                transfer_syntax_uid=EXPLICIT, association=self._name, path=path, size=_SIZE, offset=500,
                sha256=sha, received_at=told, current=True, indexed=1, header=before + sop + after,
            )  # fmt: skip
        if age % 25 == 20:
            other = hashlib.sha256(f"other {uids[0]}".encode()).hexdigest()
            self.writer.add(
                ConflictRow, at=told, series_id=k, kept="first", sop_class_uid=CT, sop_instance_uid=uids[0],
                transfer_syntax_uid=EXPLICIT, association=self._name, path=spool_path(uid, uids[0], other),
                size=_SIZE, offset=500, sha256=other, received_at=told,
            )  # fmt: skip

    def _events(self, k: int, age: int, late: bool, at: datetime) -> None:
        told = [("info", "series.closed")] if age % 10 == 5 else []
        told += [("warning", "series.late")] if late else []
        told += [("warning", "instance.conflict")] if age % 25 == 20 else []
        if age % A_DAY == A_DAY - 1:
            told += [("info", "report.daily"), ("warning", "destination.down"), ("info", "destination.up")]
        for level, name in told:
            about = k if name.startswith(("series", "instance")) else None
            self.writer.add(
                EventRow, at=self._time(at), level=level, name=name, series_id=about, body='{"n":1}'
            )

    def _enhanced(
        self, k: int, study: str, uid: str, uids: Sequence[str], digests: Sequence[str], at: datetime, *,
        here: bool, age: int,
    ) -> None:  # fmt: skip
        self._job += 1
        state = self._job_state(k, age)
        told = self._time(at)
        working = state == "RUNNING"
        self.writer.add(
            JobRow, id=self._job, series_id=k, rule="chest", engine="ct-nlm", params='{"strength":1.0}',
            destinations='{"pacs":{"kind":"folder","path":"out"}}',
            derivation_key=hashlib.sha256(f"key {k}".encode()).hexdigest(), config_digest="c" * 64,
            only_after_generation=0, revision=1,
            state=state, attempt=0 if state == "QUEUED" else 1, not_before=told, created_at=told,
            started_at=None if state == "QUEUED" else told,
            finished_at=None if state in ("QUEUED", "RUNNING") else told,
            lease_owner="w" if working else "",
            lease_until=self._time(self._until + timedelta(hours=1)) if working else None,
            failure="it was not decided well" if state in ("HELD", "FAILED") else "", progress=None,
        )  # fmt: skip
        if state in ("HELD", "FAILED"):
            self.writer.add(
                EventRow, at=told, level="error", name=f"job.{state.lower()}", series_id=k, body='{"n":1}'
            )
        if state != "DONE":
            return
        self._derived += 1
        new = f"2.25.{k}"
        self.writer.add(
            DerivedRow, id=self._derived, job_id=self._job, study_uid=study, series_uid=new, number=1001,
            description="CHEST", created_at=told, purged_at=None if here else told,
        )  # fmt: skip
        first = self._made
        sops = [f"{new}.{i}" for i in range(1, len(uids) + 1)]
        if here:
            for sop, source, sha in zip(sops, uids, digests, strict=True):
                self._made += 1
                self.writer.add(
                    DerivedInstanceRow, id=self._made, derived_id=self._derived, sop_class_uid=CT,
                    sop_instance_uid=sop, source_sop_instance_uid=source, transfer_syntax_uid=EXPLICIT,
                    path=spool_path(new, sop, sha, "derived"), size=_SIZE, offset=700, sha256=sha,
                )  # fmt: skip
        body = {
            "job": self._job, "source_series": uid, "derived_series": new, "derived": self._derived,
            "runtime": "onnx", "instances": [[a, "d" * 64, b, "e" * 64] for a, b in zip(sops, uids, strict=True)],
        }  # fmt: skip
        self._tell("series.derived", (study, uid, new, *uids, *sops), body, at)
        state = self._sending(age, here)
        self._deliver(self._derived, "pacs", state, at, len(uids) if here else 0, first, of="derived")
        if state == "SENT":
            self._tell("series.delivered", (study, uid, new), {"delivery": self._delivery}, at)
        if age % 20 == 15:
            self._deliver(self._derived, "second", "SENT", at, len(uids) if here else 0, first, of="derived")
        if here and state == "SENT" and age % 100 not in (49, 50, 51):
            self._last |= {
                "routed": k, "job": self._job, "derived": self._derived, "delivery": self._delivery,
                "study_uid": study, "series_uid": uid, "sop_uid": uids[0], "derived_uid": new,
                "derived_sop_uid": sops[0],
            }  # fmt: skip

    def _job_state(self, k: int, age: int) -> str:
        if age < OPEN + QUEUED:
            return "QUEUED"
        if age < OPEN + QUEUED + RUNNING:
            return "RUNNING"
        if self._gone < k <= self._gone + HELD_FIRST:
            return "HELD"
        if k > self._gone and age % 50 in (17, 21, 23):
            return {17: "HELD", 21: "FAILED", 23: "CANCELLED"}[age % 50]
        return "DONE"

    def _sending(self, age: int, here: bool) -> str:
        if age < OPEN + QUEUED + RUNNING + PENDING:
            return "PENDING"
        return "FAILED" if here and age % 60 == 24 else "SENT"

    def _deliver(
        self, about: int, name: str, state: str, at: datetime, n: int, first: int, *, of: str
    ) -> None:
        self._delivery += 1
        waits, told = state == "PENDING", self._time(at)
        asleep = waits and of == "series"
        self.writer.add(
            DeliveryRow, id=self._delivery, derived_id=about if of == "derived" else None,
            series_id=about if of == "series" else None, destination=name,
            settings='{"kind":"folder","path":"out","ae_title":"PACS"}', state=state, attempt=0 if waits else 1,
            not_before=self._time(self._until + timedelta(hours=12)) if asleep else told, created_at=told,
            started_at=None if waits else told, finished_at=None if waits else told, lease_owner="",
            lease_until=None, failure="", wakes=asleep,
        )  # fmt: skip
        n_done = 0 if waits and not asleep else n // 2 if state == "FAILED" else n
        for instance in range(first + 1, first + 1 + n_done):
            self.writer.add(
                OutcomeRow, delivery_id=self._delivery, instance_id=instance, status=0, done=True, retryable=False,
                comment="",
            )  # fmt: skip

    def _tell(self, kind: str, subjects: Sequence[str], body: dict[str, Any], at: datetime) -> None:
        """A link of the chain that holds."""
        self.link += 1
        document = provenance.canonical(kind, subjects, body, at)
        digest = provenance.link(self.hash, document)
        self.writer.add(
            ProvenanceRow, id=self.link, at=self._time(at), kind=kind, document=zlib.compress(document, 1),
            previous=self.hash, hash=digest,
        )  # fmt: skip
        for key, link in zip(
            sorted({provenance.subject_key(s) for s in subjects}), repeat(self.link), strict=False
        ):
            self.writer.add(SubjectRow, key=key, provenance_id=link)
        self.hash = digest
