"""Order per key, rates over all instances, circuit breakers, cancelled events, and what an instance says of itself."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_INSTANT = sa.BigInteger().with_variant(sa.DateTime(timezone=True), "postgresql")

# Rows that live for seconds, like those of the queue, but are never updated.
_QUEUE = {
    "autovacuum_vacuum_scale_factor": 0.0,
    "autovacuum_vacuum_threshold": 5000,
    "autovacuum_analyze_scale_factor": 0.0,
    "autovacuum_analyze_threshold": 50000,
    "autovacuum_vacuum_cost_delay": 0,
}

_COLUMNS = {
    "events": (sa.Column("cancelled_at", _INSTANT),),
    "subscriptions": (
        sa.Column("breaker_until", _INSTANT),
        sa.Column("breaker_trips", sa.Integer, nullable=False, server_default=sa.text("0")),
    ),
    "instances": (
        sa.Column("progress_at", _INSTANT),
        sa.Column("lag_us", sa.BigInteger),
        sa.Column("running", sa.Integer),
        sa.Column("sinks", sa.JSON),
    ),
}


def _schema() -> str | None:
    schema: str | None = op.get_context().opts["version_table_schema"]
    return schema


def upgrade() -> None:
    op.create_table(
        "turns",
        sa.Column("subscription_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("order_key", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), primary_key=True),
        sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("event_seq", sa.BigInteger, nullable=False),
        postgresql_with=_QUEUE,
        schema=_schema(),
    )
    op.create_index("turns_delivery", "turns", ["event_seq", "subscription_id"], schema=_schema())
    op.create_table(
        "paces",
        sa.Column("subscription_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("next_at", _INSTANT, nullable=False),
        schema=_schema(),
    )
    for table, columns in _COLUMNS.items():
        for column in columns:
            op.add_column(table, column, schema=_schema())


def downgrade() -> None:
    for table, columns in _COLUMNS.items():
        for column in columns:
            op.drop_column(table, column.name, schema=_schema())
    op.drop_table("paces", schema=_schema())
    op.drop_table("turns", schema=_schema())
