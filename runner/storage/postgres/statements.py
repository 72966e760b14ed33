"""The hot statements, one in a file."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from ...event import CIRCUMSTANCES
from ..contract.claims import AT_ONCE, LARGEST
from ..home import TABLES

__all__ = ["NOTHING", "SEPARATOR", "statement", "statement_for"]

SEPARATOR, NOTHING = "\x1f", "\x1e"
"""Separators between texts that go as one, and in the place of a missing one: no attribute may hold a control
character (CloudEvents 1.0 §3.1)."""

_SEPARATORS = f"E'\\x{ord(SEPARATOR):02x}', E'\\x{ord(NOTHING):02x}'"

_COMPARED = ("type", "subject", "time", "datacontenttype", "dataschema", "data")
# Extensions without circumstances (see `event.py`); what is no object was not written by the bus.
_LASTING = (
    "CASE jsonb_typeof({0}::jsonb) WHEN 'object' THEN nullif({0}::jsonb - '{{{1}}}'::text[], '{{}}') "
    "ELSE {0}::jsonb END"
)
_CIRCUMSTANCES = ", ".join(sorted(CIRCUMSTANCES))
_RECORDED, _NEW, _GIVEN = (
    _LASTING.format(extensions, _CIRCUMSTANCES) for extensions in ("e.extensions", "excluded.extensions", "$8::text")
)
_SAME_CONTENT = " AND ".join(
    [f"e.{name} IS NOT DISTINCT FROM excluded.{name}" for name in _COMPARED]
    + [f"{_RECORDED} IS NOT DISTINCT FROM {_NEW}"]
)

# What an event takes of memory, about: each extension becomes an object of its own. Bounded, so that no sum overflows.
_WEIGHT = "(coalesce(octet_length(e.data), 0) + 16 * least(coalesce(octet_length(e.extensions::text), 0), 16777216))"

_ENDLESS = "9223372036854775807"  # a position beyond all others


def _content(present: str) -> str:
    """Return the columns of what an event in `e` carries: its data where it is `present`, its weight where not."""
    return (
        f"CASE WHEN e.weight <= {LARGEST} THEN e.extensions::text END AS extensions, "
        f"CASE WHEN {present} OR e.weight = 0 THEN e.data END AS data, "  # empty data is not missing
        f"CASE WHEN NOT {present} THEN e.weight END AS size"
    )


# Of an event in `e`, with its weight, and what it and those before it weigh or where that is too much: the data of the
# first few is in the answer, that of others is asked for once their claim is recorded, and what is too large for an
# event stays where it is.
_CONTENT = _content(f"(e.upto <= {AT_ONCE})")
_CONTENT_AT_ONCE = _content("(e.position <= facts.at_once)")

# How long a statement that records events waits for another session: all who share its commit wait with it. Set by the
# statement for itself alone, which costs no round trip and holds behind a pooler, too.
_PATIENCE = "pg_catalog.set_config('lock_timeout', '250ms', true)"

# The nine values of an event, in the order of `append.sql`, and the moment at which the statement came in.
_ROW = "(${}, ${}, ${}, ${}, ${}, ${}, ${}, ${}::text::json, ${}, statement_timestamp())"
_FIRST = _ROW.replace("statement_timestamp()", f"CASE WHEN {_PATIENCE} <> '' THEN statement_timestamp() END")


@cache
def statement(name: str, schema: str | None, limit: int = 0) -> str:
    """
    Return the PostgreSQL statement in `sql/<name>.sql`, its tables qualified by `schema`.

    `limit` is written into the text where a statement has one: the planner then knows how few rows it
    is about, which it cannot for a parameter.
    """
    texts = _read("texts").format(separators=_SEPARATORS, patience=_PATIENCE)
    words = {"same_content": _SAME_CONTENT, "texts": texts, "patience": _PATIENCE}
    words |= {"recorded_extensions": _RECORDED, "given_extensions": _GIVEN}
    words |= {"weight": _WEIGHT, "content": _CONTENT, "content_at_once": _CONTENT_AT_ONCE}
    words |= {"largest": str(LARGEST), "at_once": str(AT_ONCE), "endless": _ENDLESS}
    return _read(name).format(limit=int(limit), **words, **_tables(schema))


@cache
def statement_for(count: int, name: str, schema: str | None) -> str:
    """Return a statement as `statement()` does, with the parameters of `count` events, of a lease and of a token."""
    each = (_ROW if row else _FIRST for row in range(count))
    rows = ", ".join(text.format(*range(9 * row + 1, 9 * row + 10)) for row, text in enumerate(each))
    lease, token = f"${9 * count + 1}::interval", f"${9 * count + 2}::bigint"
    return _read(name).format(rows=rows, lease=lease, token=token, **_tables(schema))


def _read(name: str) -> str:
    return (files(__package__) / "sql" / f"{name}.sql").read_text(encoding="utf-8")


def _tables(schema: str | None) -> dict[str, str]:
    prefix = "" if schema is None else '"' + schema.replace('"', '""') + '".'
    return {table: f"{prefix}{table}" for table in (*TABLES, "alembic_version")}
