"""Events that are of use only until some time."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_INSTANT = sa.BigInteger().with_variant(sa.DateTime(timezone=True), "postgresql")


def _schema() -> str | None:
    schema: str | None = op.get_context().opts["version_table_schema"]
    return schema


def upgrade() -> None:
    op.create_table(
        "expiries",
        sa.Column("event_seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("expires_at", _INSTANT, nullable=False),
        sa.Column("look_at", _INSTANT, nullable=False),
        schema=_schema(),
    )
    op.create_index("expiries_look_at", "expiries", ["look_at"], schema=_schema())
    _replace_function("0007_publish_event.sql")


def downgrade() -> None:
    _replace_function("0003_publish_event.sql")
    op.drop_table("expiries", schema=_schema())


def _replace_function(file: str) -> None:
    """Make `publish_event` what the file says; its owner and its grants stay."""
    if op.get_context().dialect.name != "postgresql":
        return
    statement = Path(__file__).with_name(file).read_text(encoding="utf-8")
    schema = _schema()
    if schema is not None:
        op.execute(statement.replace("{schema}", '"' + schema.replace('"', '""') + '".'))
    else:  # a script for the schema that it finds
        op.execute(
            f"DO $run$ BEGIN EXECUTE replace($statement${statement}$statement$, "
            "'{schema}', concat('\"', replace(current_schema(), '\"', '\"\"'), '\".')); END $run$"
        )
