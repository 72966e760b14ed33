"""Events that belong together are found by the correlation that they carry."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"

_CORRELATION = {
    # Only what names it is parsed: a row with half a character in its JSON has to stay as it is.
    "postgresql": "CASE WHEN strpos(CAST(extensions AS text), '\"correlationid\"') > 0"
    " THEN extensions ->> 'correlationid' END",
    "sqlite": "CASE WHEN json_valid(extensions) THEN json_extract(extensions, '$.correlationid') END",
}


def _events() -> str:
    schema: str | None = op.get_context().opts["version_table_schema"]
    return "events" if schema is None else '"' + schema.replace('"', '""') + '".events'


def upgrade() -> None:
    carried = _CORRELATION[op.get_context().dialect.name]
    op.execute(
        f"CREATE INDEX events_correlation ON {_events()} (substr({carried}, 1, 128)) WHERE {carried} IS NOT NULL"
    )


def downgrade() -> None:
    schema: str | None = op.get_context().opts["version_table_schema"]
    op.drop_index("events_correlation", "events", schema=schema)
