"""
Alembic's entry point; `runner/storage/migrate.py` starts it, there is no alembic.ini.

`config.attributes` holds `schema` and either `connection`, in a transaction that the caller commits, or, to write a
script, `dialect`. `applied`, if there, receives the revisions. On SQLite `schema` is None. On PostgreSQL each migration
names it, and only PostgreSQL's own is on the search path, so that an operator or a function that a stranger made is
never taken for one of those. Only a script may have no schema: it is for the `current_schema()` of where it runs.
"""

from __future__ import annotations

from typing import Any

from alembic import context


def prepare(schema: str | None) -> list[str]:
    """Return the statements that begin a migration of PostgreSQL."""
    name = "current_schema()" if schema is None else "'" + schema.replace("'", "''") + "'"
    lock = f"SELECT pg_advisory_xact_lock(hashtextextended('runner.migrate.' || {name}, 0))"
    statements = [
        # Under a stricter level the statements after the lock would not see what was done while we waited for it.
        "SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
        "SET LOCAL search_path = pg_catalog, pg_temp"
        if schema is not None
        else "SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true)",
        # An index on a large table takes its time, and so does the migration that another runner makes.
        "SET LOCAL statement_timeout = 0",
        "SET LOCAL idle_in_transaction_session_timeout = 0",
        "SET LOCAL lock_timeout = 0",
        # Runners that start together migrate one after the other; the second one finds nothing to do.
        # The lock ends with the transaction: one held by the session would outlive it in a pool.
        lock,
        # All who publish queue behind a migration that waits for a table.
        "SET LOCAL lock_timeout = '5s'",
    ]
    if schema is not None:
        identifier = '"' + schema.replace('"', '""') + '"'
        # IF NOT EXISTS would ask for the right to create schemas even where there is nothing to create.
        statements.append(
            f"DO $do$ BEGIN IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = {name}) "
            f"THEN CREATE SCHEMA {identifier}; END IF; END $do$"
        )
    return statements


def run() -> None:
    """Apply the migrations that were asked for, or write them down."""
    attributes = context.config.attributes
    applied: list[str] = attributes.get("applied", [])
    options: dict[str, Any] = {"transactional_ddl": True, "version_table_schema": attributes["schema"]}
    if context.is_offline_mode():
        dialect = attributes["dialect"]
        options |= {"dialect_name": dialect, "dialect_opts": {"paramstyle": "named"}, "literal_binds": True}
    else:
        dialect = attributes["connection"].dialect.name
        options |= {"connection": attributes["connection"]}
    context.configure(on_version_apply=lambda step, **_: applied.append(step.up_revision_id), **options)
    with context.begin_transaction():
        for statement in prepare(attributes["schema"]) if dialect == "postgresql" else ():
            context.execute(statement)
        context.run_migrations()


run()
