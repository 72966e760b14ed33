"""What configuration file an instance has in use, and what became of its last reload."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0013"


def _schema() -> str | None:
    schema: str | None = op.get_context().opts["version_table_schema"]
    return schema


def upgrade() -> None:
    op.add_column("instances", sa.Column("configuration", sa.JSON), schema=_schema())


def downgrade() -> None:
    op.drop_column("instances", "configuration", schema=_schema())
