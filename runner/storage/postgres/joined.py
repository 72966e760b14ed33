"""Recording events on a connection to PostgreSQL that is in a transaction of the caller's, whatever its driver."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from ...errors import EventConflict, EventError, StorageError
from ..batch import Batch, distinct
from ..contract.events import Publication, Receipt
from ..errors import storage_error
from ..event_rows import write_extensions

__all__ = ["record_on"]

_SAVEPOINT = "runner_publish"
_IN_TRANSACTION = 2  # PQTRANS_INTRANS of libpq, as psycopg and psycopg2 tell it
_CONFLICT, _DENIED, _MISSING = "23505", "42501", ("42883", "42P01", "3F000")

# One statement has one snapshot: it sees the event if that was there before the function recorded it.
_KNOWN = "EXISTS (SELECT FROM {schema}events e WHERE e.seq = made.seq)"
_MAY_READ = "SELECT pg_catalog.has_table_privilege(%s::text, 'SELECT')"
_RECORD = """
SELECT made.seq, {known} FROM (SELECT {schema}publish_event(
    type => %s::text, raw => %s::bytea, source => %s::text, id => %s::text, subject => %s::text,
    "time" => %s::timestamptz, datacontenttype => %s::text, dataschema => %s::text, extensions => %s::jsonb,
    deliver_at => coalesce(%s::timestamptz, pg_catalog.clock_timestamp() + %s::interval)
) AS seq OFFSET 0) made
"""


def record_on(connection: Any, publications: Sequence[Publication], schema: str | None) -> Sequence[Receipt]:
    """
    Record events by `publish_event` on a DB-API connection, all or none; its transaction may go on after an error.

    Only a role that may read `events` learns whether an event was there before.

    Raises:
        EventError: it is no connection to PostgreSQL by a synchronous driver.
        EventConflict: the same (source, id) is recorded with other content.
        StorageError: the database has no such function, or refuses.
    """
    if type(connection).__module__.partition(".")[0] in ("sqlite3", "aiosqlite", "asyncpg"):
        raise EventError("session: expected one on PostgreSQL, where storage.dsn leads, by a synchronous driver")
    batch = distinct(publications)
    prefix = "" if schema is None else '"' + schema.replace('"', '""') + '".'
    with contextlib.closing(connection.cursor()) as cursor:
        try:
            with _apart(connection, cursor):
                cursor.execute(_MAY_READ, (f"{prefix}events",))
                known = _KNOWN.format(schema=prefix) if _row(cursor)[0] else "false"
                sql = _RECORD.format(schema=prefix, known=known).replace(prefix, prefix.replace("%", "%%"))
                receipts = [_record(cursor, sql, each, batch) for each in batch.unique]
        except EventConflict:
            raise
        except Exception as error:
            raise _mapped(error) from error
    return batch.receipts(receipts)


def _record(cursor: Any, sql: str, publication: Publication, batch: Batch) -> Receipt:
    event = publication.event
    values = (
        event.type,
        event.data,
        event.source,
        event.id,
        event.subject,
        event.time,
        event.datacontenttype,
        event.dataschema,
        write_extensions(event.extensions),
        publication.deliver_at,
        publication.delay,
    )
    try:
        cursor.execute(sql, values)
    except Exception as error:
        if _sqlstate(error) != _CONFLICT:
            raise
        raise batch.conflict(event) from error
    seq, duplicate = _row(cursor)
    return Receipt(event.source, event.id, int(seq), bool(duplicate))


def _row(cursor: Any) -> Sequence[Any]:
    """Return the row of an answer, whatever kind of rows the caller has chosen."""
    row = cursor.fetchone()
    return list(row.values()) if isinstance(row, dict) else tuple(row)


@contextlib.contextmanager
def _apart(connection: Any, cursor: Any) -> Iterator[None]:
    """Undo what is done within after an error, so that the transaction of the caller is as good as before."""
    if not _in_transaction(connection):
        yield
        return
    cursor.execute(f"SAVEPOINT {_SAVEPOINT}")
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):  # the connection may be gone, and its transaction with it
            cursor.execute(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
        raise
    cursor.execute(f"RELEASE SAVEPOINT {_SAVEPOINT}")


def _in_transaction(connection: Any) -> bool:
    if not getattr(connection, "autocommit", False):
        return True  # the first statement begins one
    return getattr(getattr(connection, "info", None), "transaction_status", None) == _IN_TRANSACTION


def _sqlstate(error: BaseException) -> str:
    return str(getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or "")


def _mapped(error: Exception) -> StorageError:
    state = _sqlstate(error)
    if state in _MISSING:
        return StorageError("there is no publish_event: session has to use the database of storage.dsn")
    if state == _DENIED:
        return StorageError(
            "the role of the session may not call publish_event; grant it EXECUTE ON FUNCTION publish_event"
        )
    return storage_error(error)
