"""${message}

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
Written literally: a migration never imports node.store.tables, which goes on changing.
"""

import sqlalchemy as sa
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}
