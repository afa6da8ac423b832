"""What destinations were asked to commit to, and what they said.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "pledge",
        sa.Column("delivery_id", BIG, autoincrement=False, nullable=False),
        sa.Column("destination", sa.String(length=128), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("rounds", sa.Integer(), server_default="0", nullable=False),
        sa.Column("opened_at", TIME, nullable=False),
        sa.Column("not_before", TIME, nullable=False),
        sa.Column("give_up_at", TIME, nullable=False),
        sa.Column("asked_at", TIME, nullable=True),
        sa.Column("lease_owner", sa.String(length=128), server_default="", nullable=False),
        sa.Column("lease_until", TIME, nullable=True),
        sa.Column("failure", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(["delivery_id"], ["delivery.id"]),
        sa.PrimaryKeyConstraint("delivery_id"),
    )
    op.create_index("ix_pledge_due", "pledge", ["state", "not_before"], unique=False)
    op.create_table(
        "asked",
        sa.Column("transaction_uid", sa.String(length=64), nullable=False),
        sa.Column("delivery_id", BIG, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["delivery_id"], ["delivery.id"]),
        sa.PrimaryKeyConstraint("transaction_uid"),
    )
    op.create_index("ix_asked_delivery", "asked", ["delivery_id"], unique=False)
