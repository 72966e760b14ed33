"""Plain deliveries are recorded in runs, many in a row; a view has one row for each delivery."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"

_INSTANT = sa.BigInteger().with_variant(sa.DateTime(timezone=True), "postgresql")
_SERIAL = sa.BigInteger().with_variant(sa.Integer, "sqlite")

# A run holds seqs of one block of 256, so whatever holds a seq begins between the start of its block and the seq.
# Events that were deleted are of no run any more, though their seqs stand there.
_VIEW = {
    "postgresql": """
CREATE VIEW {schema}delivery_states AS
SELECT event_seq, subscription_id, state, attempts, due_at, lease_token, last_error, updated_at
FROM {schema}deliveries
UNION ALL
SELECT e.seq, s.id, 'delivered'::varchar(9), 1, NULL::timestamptz, NULL::bigint, NULL::text, r.settled_at
FROM {schema}events e
JOIN {schema}runs r ON r.first BETWEEN (e.seq & -256) AND e.seq AND r.last >= e.seq AND r.seqs @> e.seq
CROSS JOIN LATERAL unnest(r.subscriptions) AS s (id)
WHERE NOT EXISTS (SELECT FROM {schema}deliveries d WHERE d.event_seq = e.seq AND d.subscription_id = s.id)
""",
    "sqlite": """
CREATE VIEW delivery_states AS
SELECT event_seq, subscription_id, state, attempts, due_at, lease_token, last_error, updated_at
FROM deliveries
UNION ALL
SELECT e.seq, CAST(s.value AS INTEGER), CAST('delivered' AS VARCHAR(9)), CAST(1 AS INTEGER), CAST(NULL AS BIGINT),
    CAST(NULL AS BIGINT), CAST(NULL AS TEXT), r.settled_at
FROM events e
CROSS JOIN runs r ON r.first BETWEEN (e.seq & -256) AND e.seq AND r.last >= e.seq
CROSS JOIN json_each(r.subscriptions) s
WHERE EXISTS (
    SELECT 1 FROM json_each(r.seqs) p
    WHERE e.seq BETWEEN json_extract(p.value, '$[0]') AND json_extract(p.value, '$[1]')
) AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.event_seq = e.seq AND d.subscription_id = s.value)
""",
}


def _schema() -> str | None:
    schema: str | None = op.get_context().opts["version_table_schema"]
    return schema


def _prefix() -> str:
    schema = _schema()
    return "" if schema is None else '"' + schema.replace('"', '""') + '".'


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("id", _SERIAL, sa.Identity(), primary_key=True),
        sa.Column("first", sa.BigInteger, nullable=False),
        sa.Column("last", sa.BigInteger, nullable=False),
        sa.Column("seqs", sa.JSON().with_variant(postgresql.INT8MULTIRANGE(), "postgresql"), nullable=False),
        sa.Column(
            "subscriptions", sa.JSON().with_variant(postgresql.ARRAY(sa.Integer()), "postgresql"), nullable=False
        ),
        sa.Column("settled_at", _INSTANT, nullable=False),
        schema=_schema(),
    )
    op.create_index("runs_first", "runs", ["first", "last"], schema=_schema())
    op.execute(_VIEW[op.get_context().dialect.name].format(schema=_prefix()))


def downgrade() -> None:
    columns = "event_seq, subscription_id, state, attempts, updated_at"
    op.execute(
        f"INSERT INTO {_prefix()}deliveries ({columns}) SELECT {columns} FROM {_prefix()}delivery_states s"
        f" WHERE NOT EXISTS (SELECT 1 FROM {_prefix()}deliveries d"
        "  WHERE d.event_seq = s.event_seq AND d.subscription_id = s.subscription_id)"
    )
    op.execute(f"DROP VIEW {_prefix()}delivery_states")
    op.drop_table("runs", schema=_schema())
