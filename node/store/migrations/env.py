"""Alembic's environment: runs on the connection and inside the transaction that it is handed."""

from __future__ import annotations

from alembic import context

from node.store.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
context.run_migrations()
