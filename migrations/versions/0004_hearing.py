"""What an instance says of its strategies, and by which tokens its leases are known."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

# Nullable, and read by nobody before: processes of the version before go on beside this one.
_COLUMNS = (sa.Column("strategies", sa.JSON), sa.Column("holder", sa.BigInteger))


def _schema() -> str | None:
    schema: str | None = op.get_context().opts["version_table_schema"]
    return schema


def upgrade() -> None:
    for column in _COLUMNS:
        op.add_column("instances", column, schema=_schema())


def downgrade() -> None:
    for column in reversed(_COLUMNS):
        op.drop_column("instances", column.name, schema=_schema())
