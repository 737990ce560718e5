"""Alembic's entry. The connection and its transaction are given by `farm.db.migrate`; there is no other way in."""

from alembic import context

from farm.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
