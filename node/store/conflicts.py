"""Other bytes under a SOP Instance UID that is known: both are kept, one is in force, an event tells."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, delete

from node.model import Instance
from node.store import events
from node.store.dialect import upsert
from node.store.tables import ConflictRow

_KEPT = (
    "series_id", "sop_class_uid", "sop_instance_uid", "transfer_syntax_uid", "association", "path", "size",
    "offset", "sha256", "received_at",
)  # fmt: skip


def keep_aside(
    connection: Connection, row: Mapping[str, Any], kept: Literal["first", "replaced"], at: datetime
) -> bool:
    """Note bytes that are not in force; False if the same bytes of this UID are noted already.

    ``row`` has the columns of an instance; ``kept`` says whether it came later (``first`` won) or was
    ``replaced``.
    """
    values = {name: row[name] for name in _KEPT} | {"at": at, "kept": kept}
    statement = upsert(connection, ConflictRow).values(**values)
    once = statement.on_conflict_do_nothing(index_elements=["sop_instance_uid", "sha256"])
    return connection.execute(once.returning(ConflictRow.id)).first() is not None


def forget(connection: Connection, one: Instance) -> None:
    """These bytes come into force: should they have been kept aside under another policy, no more."""
    connection.execute(
        delete(ConflictRow).where(
            ConflictRow.sop_instance_uid == one.sop_instance_uid, ConflictRow.sha256 == one.sha256
        )
    )


def tell(connection: Connection, series_id: int, policy: str, one: Instance) -> None:
    """The event of a conflict: a UID and a digest, nothing of what the instance says."""
    body = {
        "policy": policy,
        "sop_instance_uid": one.sop_instance_uid,
        "sha256": one.sha256,
        "calling_ae": one.calling_ae,
    }
    events.add(connection, "warning", "instance.conflict", body, one.received_at, series_id=series_id)
