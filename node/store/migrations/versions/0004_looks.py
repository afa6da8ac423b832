"""Indices of what people and the node look for: lists by state, associations that ended, what was removed of late.

Revision ID: 0004
Revises: 0003
None of them has an entry for every instance.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ENDED = sa.text("ended_at IS NOT NULL")
PURGED = sa.text("purged_at IS NOT NULL")


def upgrade() -> None:
    op.create_index("ix_job_state", "job", ["state", "id"], unique=False)
    op.create_index("ix_delivery_state", "delivery", ["state", "id"], unique=False)
    op.create_index(
        "ix_association_ended", "association", ["ended_at"],
        unique=False, sqlite_where=ENDED, postgresql_where=ENDED,
    )
    op.create_index(
        "ix_series_purged", "series", ["purged_at"],
        unique=False, sqlite_where=PURGED, postgresql_where=PURGED,
    )
