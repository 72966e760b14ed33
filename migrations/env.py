"""
Alembic's entry point; `runner/storage/migrate.py` starts it, there is no alembic.ini.

`config.attributes` holds `schema` (PostgreSQL; None is the connection's default) and either `connection`,
in a transaction that the caller commits, or, to write a script, `dialect`. `applied`, if there, receives the revisions.

No migration names the schema: on PostgreSQL it is the transaction's search path.
"""

from __future__ import annotations

from typing import Any

from alembic import context


def prepare(schema: str | None) -> list[str]:
    """Return the statements that begin a migration of PostgreSQL."""
    name = "current_schema()" if schema is None else "'" + schema.replace("'", "''") + "'"
    statements = [
        # Runners that start together migrate one after the other; who comes second finds nothing to do.
        # The lock ends with the transaction: one held by the session would outlive it in a pool.
        f"SELECT pg_advisory_xact_lock(hashtextextended('runner.migrate.' || {name}, 0))",
        f"SELECT set_config('search_path', quote_ident({name}) || ', pg_temp', true)",
    ]
    if schema is not None:
        identifier = '"' + schema.replace('"', '""') + '"'
        # IF NOT EXISTS would ask for the right to create schemas even where there is nothing to create.
        statements.insert(
            1,
            f"DO $do$ BEGIN IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = {name}) "
            f"THEN CREATE SCHEMA {identifier}; END IF; END $do$",
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
