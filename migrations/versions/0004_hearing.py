"""What an instance says of its strategies, by which tokens its leases are known, and who paused a subscription."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

# Nullable, and read by nobody before: processes of the version before go on beside this one.
_COLUMNS: dict[str, tuple[sa.Column[Any], ...]] = {
    "instances": (sa.Column("strategies", sa.JSON), sa.Column("holder", sa.BigInteger)),
    "subscriptions": (
        sa.Column("paused_at", sa.BigInteger().with_variant(sa.DateTime(timezone=True), "postgresql")),
        sa.Column("paused_by", sa.Text),
    ),
}


def _schema() -> str | None:
    schema: str | None = op.get_context().opts["version_table_schema"]
    return schema


def upgrade() -> None:
    for table, columns in _COLUMNS.items():
        for column in columns:
            op.add_column(table, column, schema=_schema())


def downgrade() -> None:
    for table, columns in _COLUMNS.items():
        for column in columns:
            op.drop_column(table, column.name, schema=_schema())
