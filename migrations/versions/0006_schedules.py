"""How far schedules are, and who paused them. No version before has written any."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_INSTANT = sa.BigInteger().with_variant(sa.DateTime(timezone=True), "postgresql")
_ZERO = sa.text("0")

# A schedule's row is written at every tick, and found by the time of the next one.
_TICKING = """ALTER TABLE {schema}schedules SET (
    autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.0, autovacuum_analyze_threshold = 10000,
    autovacuum_vacuum_cost_delay = 0
)"""


def _columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("revision", sa.BigInteger, nullable=False, server_default=_ZERO),
        sa.Column("tick", _INSTANT),
        sa.Column("last_tick", _INSTANT),
        sa.Column("last_seq", sa.BigInteger),
        sa.Column("last_position", sa.BigInteger),
        sa.Column("queued_until", _INSTANT),
        sa.Column("missed", sa.BigInteger, nullable=False, server_default=_ZERO),
        sa.Column("skipped", sa.BigInteger, nullable=False, server_default=_ZERO),
        sa.Column("paused_at", _INSTANT),
        sa.Column("paused_by", sa.Text),
    ]


def _schema() -> str | None:
    schema: str | None = op.get_context().opts["version_table_schema"]
    return schema


def upgrade() -> None:
    for column in _columns():
        op.add_column("schedules", column, schema=_schema())
    op.create_index("schedules_next_at", "schedules", ["next_at"], schema=_schema())
    if op.get_context().dialect.name == "postgresql":
        schema = _schema()
        prefix = "" if schema is None else '"' + schema.replace('"', '""') + '".'
        op.execute(_TICKING.replace("{schema}", prefix))


def downgrade() -> None:
    op.drop_index("schedules_next_at", "schedules", schema=_schema())
    for column in _columns():
        op.drop_column("schedules", column.name, schema=_schema())
