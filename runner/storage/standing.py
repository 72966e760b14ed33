"""The version of the tables, and who owns them: read first by every process, without SQLAlchemy or Alembic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..errors import ForeignDeployment

__all__ = ["HEAD", "MigrationStatus", "Standing", "check_owner"]

HEAD = "0018"
"""The newest revision, written here so that a runner that is up to date need not load Alembic."""


class Standing(NamedTuple):
    """The revision of the tables, None without one, and the deployment that owns them, None while there is none."""

    revision: str | None
    owner: str | None


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """Where the tables stand: `current` is None before the first migration, `pending` in the order of application."""

    current: str | None
    head: str
    pending: tuple[str, ...]


def check_owner(owner: str | None, deployment_id: str) -> None:
    """Raise `ForeignDeployment` unless the tables are those of `deployment_id`, or of no deployment yet."""
    if owner not in (None, deployment_id):
        raise ForeignDeployment(
            f"the tables belong to deployment {owner!r}, not {deployment_id!r}; "
            "give each deployment its own: another storage.schema (PostgreSQL), or another database in storage.dsn"
        )
