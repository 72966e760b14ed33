"""Sources of the bus itself, and times too far ahead, are refused by `publish_event` as they are elsewhere."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0018"
down_revision = "0015"


def upgrade() -> None:
    _replace_function("0018_publish_event.sql")


def downgrade() -> None:
    _replace_function("0007_publish_event.sql")


def _replace_function(file: str) -> None:
    """Make `publish_event` what the file says; its owner and its grants stay."""
    if op.get_context().dialect.name != "postgresql":
        return
    statement = Path(__file__).with_name(file).read_text(encoding="utf-8")
    schema: str | None = op.get_context().opts["version_table_schema"]
    if schema is not None:
        op.execute(statement.replace("{schema}", '"' + schema.replace('"', '""') + '".'))
    else:  # a script for the schema that it finds
        op.execute(
            f"DO $run$ BEGIN EXECUTE replace($statement${statement}$statement$, "
            "'{schema}', concat('\"', replace(current_schema(), '\"', '\"\"'), '\".')); END $run$"
        )
