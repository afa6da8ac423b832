"""Reading derived series with their instances."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from node.model import DerivedInstance, DerivedSeries
from node.store import rows
from node.store.tables import DerivedInstanceRow, DerivedRow


def read_derived(connection: Connection, *where: Any) -> list[DerivedSeries]:
    """Derived series that meet conditions on `DerivedRow`, with instances in the order of derivation."""
    found = connection.execute(rows.whole(DerivedRow).where(*where).order_by(DerivedRow.id)).all()
    instances: dict[int, list[DerivedInstance]] = {row.id: [] for row in found}
    for row in connection.execute(
        rows.whole(DerivedInstanceRow)
        .where(DerivedInstanceRow.derived_id.in_(list(instances)))
        .order_by(DerivedInstanceRow.id)
    ):
        instances[row.derived_id].append(rows.derived_instance(row))
    return [
        DerivedSeries(
            id=row.id,
            job_id=row.job_id,
            study_uid=row.study_uid,
            series_uid=row.series_uid,
            number=row.number,
            description=row.description,
            instances=tuple(instances[row.id]),
        )
        for row in found
    ]
