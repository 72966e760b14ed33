"""What instances have counted, minute by minute."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_INSTANT = sa.BigInteger().with_variant(sa.DateTime(timezone=True), "postgresql")


def _schema() -> str | None:
    schema: str | None = op.get_context().opts["version_table_schema"]
    return schema


def upgrade() -> None:
    op.create_table(
        "throughput",
        sa.Column("minute", _INSTANT, primary_key=True),
        sa.Column("subscription_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("holder", sa.BigInteger, primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("published", "delivered", "failed", "dead")),
        sa.Column("latency", sa.JSON, nullable=False),
        schema=_schema(),
    )


def downgrade() -> None:
    op.drop_table("throughput", schema=_schema())
