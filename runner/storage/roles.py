"""The roles that PostgreSQL can give a bus, each with no more rights than its work needs."""

from __future__ import annotations

from .migrate import scripts
from .tables import delivery_states, metadata

__all__ = ["roles_sql"]

_ROLES = ("owner", "runner", "publisher", "looker")


def roles_sql(schema: str | None) -> str:
    """
    Return the script that makes `SCHEMA_owner`, `_runner`, `_publisher` and `_looker`, and gives them their rights.

    Args:
        schema: PostgreSQL schema of the tables; None stands for `public`, whose roles are called `bus_owner` and so on.
    """
    names = {role: f"{schema or 'bus'}_{role}"[-63:] for role in _ROLES}
    home = schema or "public"
    return (
        (scripts() / "roles.sql")
        .read_text(encoding="utf-8")
        .format(
            schema=_identifier(home),
            schema_text=_text(home),
            tables=", ".join(map(_text, [*sorted(metadata.tables), delivery_states.name, "alembic_version"])),
            version_text=_text(f"{_identifier(home)}.alembic_version"),
            **{role: _identifier(name) for role, name in names.items()},
            **{f"{role}_text": _text(name) for role, name in names.items()},
        )
    )


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
