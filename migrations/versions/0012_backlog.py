"""How much waited and how much was dispatched, minute by minute."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0010"


def _schema() -> str | None:
    schema: str | None = op.get_context().opts["version_table_schema"]
    return schema


def upgrade() -> None:
    dispatched = sa.Column("dispatched", sa.BigInteger, nullable=False, server_default="0")
    op.add_column("throughput", dispatched, schema=_schema())
    op.add_column("throughput", sa.Column("backlog", sa.BigInteger), schema=_schema())


def downgrade() -> None:
    op.drop_column("throughput", "backlog", schema=_schema())
    op.drop_column("throughput", "dispatched", schema=_schema())
