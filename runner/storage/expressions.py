"""Types and expressions that each database writes in its own way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from sqlalchemy import ARRAY, JSON, BigInteger, Boolean, DateTime, Dialect, Integer, Text, TypeDecorator
from sqlalchemy.dialects.postgresql import INT8MULTIRANGE
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.operators import OperatorType
from sqlalchemy.types import TypeEngine
from typing_extensions import override

__all__ = [
    "CORRELATION_KEY",
    "After",
    "Among",
    "Correlation",
    "CorrelationKey",
    "HasSeq",
    "Holds",
    "Ids",
    "Instant",
    "Keys",
    "Later",
    "Now",
    "Seqs",
    "parse_json",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Instant(TypeDecorator[datetime]):
    """An aware UTC time: `timestamptz` on PostgreSQL, microseconds since 1970 on SQLite, which has no such type."""

    impl = BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the column type of the dialect."""
        return dialect.type_descriptor(DateTime(timezone=True) if dialect.name == "postgresql" else BigInteger())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Return what the driver stores."""
        if value is None or dialect.name == "postgresql":
            return value
        return (value - _EPOCH) // timedelta(microseconds=1)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Return what the driver read as an aware UTC datetime."""
        if value is None:
            return None
        if isinstance(value, datetime):
            return value.astimezone(UTC)
        return _EPOCH + timedelta(microseconds=value)


class Now(FunctionElement[datetime]):
    """The store's own clock, read when the statement runs (not when its transaction began)."""

    type = Instant()
    inherit_cache = True


@compiles(Now)
def _now(element: Now, compiler: SQLCompiler, **options: Any) -> str:
    return "clock_timestamp()"


@compiles(Now, "sqlite")
def _now_sqlite(element: Now, compiler: SQLCompiler, **options: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"


class Later(FunctionElement[datetime]):
    """The store's own clock plus a number of microseconds: `Later(literal(1_000_000))` is in one second."""

    type = Instant()
    inherit_cache = True


@compiles(Later)
def _later(element: Later, compiler: SQLCompiler, **options: Any) -> str:
    return f"clock_timestamp() + {compiler.process(element.clauses, **options)} * interval '1 microsecond'"


@compiles(Later, "sqlite")
def _later_sqlite(element: Later, compiler: SQLCompiler, **options: Any) -> str:
    return f"{_now_sqlite(Now(), compiler)} + {compiler.process(element.clauses, **options)}"


class After(FunctionElement[datetime]):
    """An instant plus a number of microseconds, both of them expressions."""

    type = Instant()
    inherit_cache = True


@compiles(After)
def _after(element: After, compiler: SQLCompiler, **options: Any) -> str:
    instant, microseconds = (compiler.process(each, **options) for each in element.clauses)
    return f"{instant} + ({microseconds}) * interval '1 microsecond'"


@compiles(After, "sqlite")
def _after_sqlite(element: After, compiler: SQLCompiler, **options: Any) -> str:
    instant, microseconds = (compiler.process(each, **options) for each in element.clauses)
    return f"{instant} + ({microseconds})"


class Keys(TypeDecorator[Sequence[int]]):
    """Any number of keys as one parameter: an array on PostgreSQL, JSON on SQLite."""

    impl = JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the type of the parameter in the dialect."""
        return dialect.type_descriptor(ARRAY(BigInteger()) if dialect.name == "postgresql" else JSON())


class Ids(TypeDecorator[Sequence[int]]):
    """Ids of subscriptions: an array on PostgreSQL, JSON on SQLite."""

    impl = JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the column type of the dialect."""
        return dialect.type_descriptor(ARRAY(Integer()) if dialect.name == "postgresql" else JSON())


class Seqs(TypeDecorator[Sequence[tuple[int, int]]]):
    """Seqs as stretches, each a first and a last one: an `int8multirange` on PostgreSQL, JSON on SQLite. Only read."""

    impl = JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the column type of the dialect."""
        return dialect.type_descriptor(INT8MULTIRANGE() if dialect.name == "postgresql" else JSON())

    def process_result_value(self, value: Any, dialect: Dialect) -> Sequence[tuple[int, int]] | None:
        """Return the stretches; PostgreSQL gives each without its end."""
        if value is not None and dialect.name == "postgresql":
            return [(each.lower, each.upper - 1) for each in value]
        stretches: Sequence[tuple[int, int]] | None = value
        return stretches


class Holds(FunctionElement[bool]):
    """Test that a column of `Ids` has an id: `Holds(runs.c.subscriptions, id)`."""

    type = Boolean()
    inherit_cache = True


@compiles(Holds)
def _holds(element: Holds, compiler: SQLCompiler, **options: Any) -> str:
    ids, id = (compiler.process(each, **options) for each in element.clauses)
    return f"{id} = ANY ({ids})"


@compiles(Holds, "sqlite")
def _holds_sqlite(element: Holds, compiler: SQLCompiler, **options: Any) -> str:
    ids, id = (compiler.process(each, **options) for each in element.clauses)
    return f"{id} IN (SELECT value FROM json_each({ids}))"


class HasSeq(FunctionElement[bool]):
    """Test that a column of `Seqs` has a seq: `HasSeq(runs.c.seqs, events.c.seq)`."""

    type = Boolean()
    inherit_cache = True


@compiles(HasSeq)
def _has_seq(element: HasSeq, compiler: SQLCompiler, **options: Any) -> str:
    seqs, seq = (compiler.process(each, **options) for each in element.clauses)
    return f"{seqs} @> {seq}"


@compiles(HasSeq, "sqlite")
def _has_seq_sqlite(element: HasSeq, compiler: SQLCompiler, **options: Any) -> str:
    seqs, seq = (compiler.process(each, **options) for each in element.clauses)
    ends = "json_extract(value, '$[0]') AND json_extract(value, '$[1]')"
    return f"EXISTS (SELECT 1 FROM json_each({seqs}) WHERE {seq} BETWEEN {ends})"


class Among(FunctionElement[bool]):
    """Test that a column is one of many: `Among(events.c.seq, literal(seqs, Keys()))`, one statement for any number."""

    type = Boolean()
    inherit_cache = True

    @override
    def self_group(self, against: OperatorType | None = None) -> Self:
        # As a boolean it would be compared with 1 on SQLite, which then uses no index.
        return self


@compiles(Among)
def _among(element: Among, compiler: SQLCompiler, **options: Any) -> str:
    column, keys = (compiler.process(each, **options) for each in element.clauses)
    return f"{column} = ANY ({keys})"


@compiles(Among, "sqlite")
def _among_sqlite(element: Among, compiler: SQLCompiler, **options: Any) -> str:
    column, keys = (compiler.process(each, **options) for each in element.clauses)
    return f"{column} IN (SELECT value FROM json_each({keys}))"


class Correlation(FunctionElement[str]):
    """The `correlationid` in a column of extensions; null without one, and in what is no object."""

    type = Text()
    inherit_cache = True


@compiles(Correlation)
def _correlation(element: Correlation, compiler: SQLCompiler, **options: Any) -> str:
    column = compiler.process(element.clauses, **options)
    # Only what names it is parsed: PostgreSQL keeps JSON with half a character, and fails at each look into it.
    named = f"strpos(CAST({column} AS text), '\"correlationid\"') > 0"
    return f"CASE WHEN {named} THEN {column} ->> 'correlationid' END"


@compiles(Correlation, "sqlite")
def _correlation_sqlite(element: Correlation, compiler: SQLCompiler, **options: Any) -> str:
    column = compiler.process(element.clauses, **options)
    return f"CASE WHEN json_valid({column}) THEN json_extract({column}, '$.correlationid') END"


class CorrelationKey(FunctionElement[str]):
    """The beginning of a correlation, `CORRELATION_KEY` characters of it: an index takes no text of any length."""

    type = Text()
    inherit_cache = True


@compiles(CorrelationKey)
def _correlation_key(element: CorrelationKey, compiler: SQLCompiler, **options: Any) -> str:
    # Written out: no planner takes a parameter for the number in the index.
    return f"substr({compiler.process(element.clauses, **options)}, 1, {CORRELATION_KEY})"


CORRELATION_KEY = 128


def parse_json(text: str) -> Any:
    """Return what a column of JSON holds; None where it holds none, so that one such row does not spoil a query."""
    try:
        return json.loads(text)
    except ValueError:
        return None
