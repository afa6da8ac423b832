"""Deliveries of originals: a delivery is of a derived series or of a received one.

Revision ID: 0002
Revises: 0001
SQLite cannot take NOT NULL off a column: both tables are made anew there, and change names only when nothing
points to the old ones any more, so that no reference dangles in between.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEPT = (
    "id, derived_id, destination, settings, state, attempt, not_before, created_at, started_at,"
    " finished_at, lease_owner, lease_until, failure"
)


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("delivery", "derived_id", nullable=True)
        op.add_column("delivery", sa.Column("series_id", BIG, sa.ForeignKey("series.id"), nullable=True))
        op.add_column("delivery", sa.Column("wakes", sa.Boolean(), server_default="0", nullable=False))
        op.create_unique_constraint("uq_delivery_originals", "delivery", ["series_id", "destination"])
        return
    op.create_table(
        "delivery_new",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("derived_id", BIG, nullable=True),
        sa.Column("series_id", BIG, nullable=True),
        sa.Column("destination", sa.String(length=128), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_owner", sa.String(length=128), server_default="", nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failure", sa.Text(), server_default="", nullable=False),
        sa.Column("wakes", sa.Boolean(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(["derived_id"], ["derived.id"]),
        sa.ForeignKeyConstraint(["series_id"], ["series.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("derived_id", "destination", name="uq_delivery_destination"),
        sa.UniqueConstraint("series_id", "destination", name="uq_delivery_originals"),
    )
    op.create_table(
        "outcome_new",
        sa.Column("delivery_id", BIG, nullable=False),
        sa.Column("instance_id", BIG, nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("done", sa.Boolean(), nullable=False),
        sa.Column("retryable", sa.Boolean(), nullable=False),
        sa.Column("comment", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(["delivery_id"], ["delivery_new.id"]),
        sa.PrimaryKeyConstraint("delivery_id", "instance_id"),
        sqlite_with_rowid=False,
    )
    op.execute(f"INSERT INTO delivery_new ({KEPT}) SELECT {KEPT} FROM delivery")  # noqa: S608 - constant
    op.execute("INSERT INTO outcome_new SELECT * FROM outcome")
    op.drop_table("outcome")
    op.drop_table("delivery")
    op.rename_table("delivery_new", "delivery")
    op.rename_table("outcome_new", "outcome")
    op.create_index("ix_delivery_destination", "delivery", ["destination", "state"], unique=False)
    op.create_index("ix_delivery_due", "delivery", ["state", "not_before", "id"], unique=False)
