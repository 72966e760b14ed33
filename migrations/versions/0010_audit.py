"""Who changed what by hand, when, and with what result."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0008"

_INSTANT = sa.BigInteger().with_variant(sa.DateTime(timezone=True), "postgresql")
_SERIAL = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _schema() -> str | None:
    schema: str | None = op.get_context().opts["version_table_schema"]
    return schema


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("seq", _SERIAL, sa.Identity(), primary_key=True),
        sa.Column("at", _INSTANT, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("target", sa.Text),
        sa.Column("parameters", sa.JSON, nullable=False),
        sa.Column("outcome", sa.String(11), nullable=False),
        sa.Column("touched", sa.BigInteger, nullable=False),
        sa.Column("detail", sa.Text),
        sa.Column("ended_at", _INSTANT),
        schema=_schema(),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    op.drop_table("audit", schema=_schema())
