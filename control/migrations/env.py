"""Runs migrations over the connection that `control.database` gives it, inside its transaction."""

from alembic import context

from control.database import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    transactional_ddl=False,
)
context.run_migrations()
