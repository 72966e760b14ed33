"""The tables, the row of the bus, and on PostgreSQL the function `publish_event`."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_INSTANT = sa.BigInteger().with_variant(sa.DateTime(timezone=True), "postgresql")
_SERIAL = sa.BigInteger().with_variant(sa.Integer, "sqlite")

_QUEUE = {
    "fillfactor": 50,
    "autovacuum_vacuum_scale_factor": 0.0,
    "autovacuum_vacuum_threshold": 5000,
    "autovacuum_analyze_scale_factor": 0.0,
    "autovacuum_analyze_threshold": 50000,
    "autovacuum_vacuum_cost_delay": 0,
}

_TABLES = (
    "events",
    "dispatch",
    "scheduled",
    "deliveries",
    "attempts",
    "subscriptions",
    "schedules",
    "occurrences",
    "instances",
    "bus",
)


def _schema() -> str | None:
    schema: str | None = op.get_context().opts["version_table_schema"]
    return schema


def upgrade() -> None:
    _create_events()
    _create_work()
    _create_deliveries()
    _create_configuration()
    _create_participants()
    postgresql = op.get_context().dialect.name == "postgresql"
    now = "clock_timestamp()" if postgresql else "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"
    op.execute(f"INSERT INTO {_prefix()}bus (one, subscriptions_version, created_at) VALUES (1, 0, {now})")
    if postgresql:
        _create_function()


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute(f"DROP FUNCTION {_prefix()}publish_event")
    for table in reversed(_TABLES):
        op.drop_table(table, schema=_schema())


def _prefix() -> str:
    schema = _schema()
    return "" if schema is None else '"' + schema.replace('"', '""') + '".'


def _create_function() -> None:
    """Create `publish_event`, which keeps the search path it was created under: the schema of the tables."""
    if schema := _prefix().rstrip("."):
        op.execute(f"SET LOCAL search_path = {schema}, pg_temp")
    op.execute(Path(__file__).with_name("0001_publish_event.sql").read_text(encoding="utf-8"))
    if schema:
        op.execute("SET LOCAL search_path = pg_catalog, pg_temp")


def _create_events() -> None:
    op.create_table(
        "events",
        sa.Column("seq", _SERIAL, sa.Identity(), primary_key=True),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("subject", sa.Text),
        sa.Column("time", _INSTANT),
        sa.Column("datacontenttype", sa.Text),
        sa.Column("dataschema", sa.Text),
        sa.Column("extensions", sa.JSON),
        sa.Column("data", sa.LargeBinary),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.UniqueConstraint("source", "id", name="events_source_id"),
        sqlite_autoincrement=True,
        schema=_schema(),
    )


def _create_work() -> None:
    op.create_table(
        "dispatch",
        sa.Column("position", _SERIAL, sa.Identity(), primary_key=True),
        sa.Column("event_seq", sa.BigInteger, nullable=False),
        sa.Column("lease_until", _INSTANT),
        sa.Column("lease_token", sa.BigInteger),
        sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
        sqlite_autoincrement=True,
        postgresql_with=_QUEUE,
        schema=_schema(),
    )
    op.create_table(
        "scheduled",
        sa.Column("event_seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("due_at", _INSTANT, nullable=False),
        schema=_schema(),
    )
    op.create_index("scheduled_due_at", "scheduled", ["due_at"], schema=_schema())


def _create_deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("event_seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("subscription_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("state", sa.String(9), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("due_at", _INSTANT),
        sa.Column("lease_token", sa.BigInteger),
        sa.Column("last_error", sa.Text),
        sa.Column("updated_at", _INSTANT, nullable=False),
        schema=_schema(),
    )
    for name, column, states in (
        ("deliveries_due", "due_at", "state IN ('pending', 'leased')"),
        ("deliveries_dead", "event_seq", "state = 'dead'"),
    ):
        where = sa.text(states)
        op.create_index(
            name,
            "deliveries",
            ["subscription_id", column],
            postgresql_where=where,
            sqlite_where=where,
            schema=_schema(),
        )
    op.create_table(
        "attempts",
        sa.Column("serial", _SERIAL, sa.Identity(), primary_key=True),
        sa.Column("event_seq", sa.BigInteger, nullable=False),
        sa.Column("subscription_id", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("at", _INSTANT, nullable=False),
        sa.Column("duration_us", sa.BigInteger, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("error", sa.Text),
        sa.Column("excerpt", sa.Text),
        schema=_schema(),
    )
    op.create_index("attempts_delivery", "attempts", ["event_seq", "subscription_id"], schema=_schema())


def _create_configuration() -> None:
    op.create_table(
        "subscriptions",
        sa.Column("id", sa.Integer, sa.Identity(), primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("paused", sa.Boolean, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sqlite_autoincrement=True,
        schema=_schema(),
    )
    op.create_table(
        "schedules",
        sa.Column("id", sa.Integer, sa.Identity(), primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("cron", sa.Text, nullable=False),
        sa.Column("timezone", sa.Text, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("paused", sa.Boolean, nullable=False),
        sa.Column("next_at", _INSTANT),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sqlite_autoincrement=True,
        schema=_schema(),
    )
    op.create_table(
        "occurrences",
        sa.Column("schedule_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("tick", _INSTANT, primary_key=True),
        sa.Column("event_seq", sa.BigInteger),
        sa.Column("created_at", _INSTANT, nullable=False),
        schema=_schema(),
    )


def _create_participants() -> None:
    op.create_table(
        "instances",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("started_at", _INSTANT, nullable=False),
        sa.Column("heartbeat_at", _INSTANT, nullable=False),
        schema=_schema(),
    )
    op.create_table(
        "bus",
        sa.Column("one", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("deployment_id", sa.Text),
        sa.Column("subscriptions_version", sa.BigInteger, nullable=False),
        sa.Column("channel", sa.Text),
        sa.Column("created_at", _INSTANT, nullable=False),
        schema=_schema(),
    )
