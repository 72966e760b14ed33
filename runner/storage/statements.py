"""The hot statements, one in a file."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from .tables import metadata

__all__ = ["statement"]

_CONTENT = ("type", "subject", "time", "datacontenttype", "dataschema", "data")
_SAME_CONTENT = " AND ".join(
    [f"e.{name} IS NOT DISTINCT FROM excluded.{name}" for name in _CONTENT]
    + ["e.extensions::jsonb IS NOT DISTINCT FROM excluded.extensions::jsonb"]
)


_EVENT = (*("${}",) * 7, "${}::text::json", "${}", "statement_timestamp()")  # the nine values of one, and when it came


@cache
def statement(name: str, schema: str | None, limit: int = 0) -> str:
    """
    Return the PostgreSQL statement in `sql/postgres/<name>.sql`, its tables qualified by `schema`.

    `limit` is written into the text where a statement has one: the planner then knows how few rows it
    is about, which it cannot for a parameter. Where a statement names `{rows}`, it takes as many events.
    """
    prefix = "" if schema is None else '"' + schema.replace('"', '""') + '".'
    tables = {table: f"{prefix}{table}" for table in metadata.tables}
    text = (files(__package__) / "sql" / "postgres" / f"{name}.sql").read_text(encoding="utf-8")
    event = f"({', '.join(_EVENT)})"
    rows = ", ".join(event.format(*range(9 * row + 1, 9 * row + 10)) for row in range(limit if "{rows}" in text else 0))
    parameters = {"next": f"${9 * limit + 1}", "after_next": f"${9 * limit + 2}"}
    return text.format(limit=int(limit), rows=rows, same_content=_SAME_CONTENT, **parameters, **tables)
