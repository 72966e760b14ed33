"""Errors of the drivers, as the `StorageError` that each stands for."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator

from ..errors import StorageError, StorageLocked, StorageRefused, StorageUnavailable, readable

__all__ = ["is_pooled", "is_unavailable", "mapped_errors", "reason_of", "storage_error"]

# SQLSTATE classes and codes after which a connection, or the node behind it, is unusable: connection exceptions,
# shutdown and crash, too many connections, a node that turned read-only.
_UNAVAILABLE = ("08", "57P", "53", "25006")

# Worth another try on a live connection: serialization failure, deadlock, statement or lock timeout.
_REPEATABLE = frozenset({"40001", "40P01", "57014", "55P03"})

# Of those: another session holds the rows, and the server has rolled the statement back.
_HELD = frozenset({"40001", "40P01", "55P03"})

# Classes of what is wrong with a statement, a session, a right or the server. Anything else is wrong with a row: also
# what a trigger raises, under whatever code.
_ABOUT_STATEMENTS = (
    "0A",
    "0B",
    "0L",
    "0P",
    "24",
    "25",
    "26",
    "28",
    "34",
    "3B",
    "3D",
    "3F",
    "42",
    "55",
    "58",
    "F0",
    "XX",
)

# The driver's name for the error of a statement whose tables were changed after it was prepared.
_STALE_PLAN = "InvalidCachedStatementError"

# Errors of a pooler in transaction mode that is used like a server: settings of a session and prepared statements are
# missing on another server process.
_POOLED = frozenset({"42P05", "26000"})
_NO_SETTINGS = "unsupported startup parameter"

# What to do where PostgreSQL refuses a login or a right, by SQLSTATE.
_POSTGRES_CURES = {
    "3D000": "create it (createdb), or correct storage.dsn",
    "3F000": "create it (CREATE SCHEMA), or correct storage.schema",
    "28000": "correct the user in storage.dsn, or let it in (CREATE ROLE … LOGIN, pg_hba.conf)",
    "28P01": "correct storage.password, the DSN or PGPASSWORD",
    "42501": "`runner migrate --roles` prints what gives each role its rights",
    "53300": "lower storage.pool, or raise max_connections of the server",
}

_SQLITE_CURES = {
    "database is locked": ": another program holds the file, or writes to it for long",
    "file is not a database": ": correct storage.dsn, or move that file away",
}


@contextlib.contextmanager
def mapped_errors() -> Iterator[None]:
    """Map errors of the drivers to `StorageUnavailable` or `StorageError`, without statements or values."""
    try:
        yield
    except StorageError:
        raise
    except (OSError, TimeoutError, sqlite3.Error) as error:
        raise storage_error(error) from error
    except Exception as error:
        if _library(error) in ("asyncpg", "sqlalchemy"):
            raise storage_error(error) from error
        raise


def is_unavailable(error: BaseException | None) -> bool:
    """Return whether `error` says that the store cannot be reached or used now, so that trying again helps."""
    if isinstance(error, StorageUnavailable | OSError | TimeoutError | asyncio.IncompleteReadError):
        return True
    if _library(error) == "sqlalchemy" and type(error).__name__ == "TimeoutError":
        return True  # no connection of the pool became free
    if getattr(error, "connection_invalidated", False):
        return True
    if error is not None and (original := _original(error)) is not None:
        return is_unavailable(original) or is_unavailable(error.__cause__)
    if type(error).__name__ == _STALE_PLAN:
        return True  # of this connection; another one prepares its statements for the tables as they are now
    state = getattr(error, "sqlstate", None)
    if isinstance(state, str):
        if is_pooled(error):
            return False
        return state.startswith(_UNAVAILABLE) or state in _REPEATABLE
    if isinstance(error, sqlite3.OperationalError):
        text = str(error)
        return any(sign in text for sign in ("locked", "busy", "disk", "unable to open", "readonly"))
    return _library(error) == "asyncpg" and type(error).__name__ in (
        "InterfaceError",
        "InternalClientError",
        "ConnectionDoesNotExistError",
    )


def storage_error(error: BaseException) -> StorageError:
    """Return the `StorageError` that the error of a driver stands for, without statements or values."""
    if _sqlstate(error) in _HELD:
        return StorageLocked(f"another session holds what is to be written: {reason_of(error)}")
    if is_unavailable(error):
        return StorageUnavailable(f"the store is unavailable: {reason_of(error)}")
    kind = StorageRefused if _is_about_rows(error) else StorageError
    return kind(f"the store refused: {reason_of(error)}")


def _is_about_rows(error: BaseException) -> bool:
    """Return whether the database refuses the content of a row, by a constraint, a trigger or a type."""
    state = _sqlstate(error)
    if state:
        return not state.startswith(_ABOUT_STATEMENTS)
    return isinstance(_original(error) or error, sqlite3.IntegrityError | sqlite3.DataError)


def _sqlstate(error: BaseException | None) -> str:
    """Return the code PostgreSQL gave the error; empty for any other."""
    return str(getattr(_original(error) or error, "sqlstate", None) or "")


def reason_of(error: BaseException) -> str:
    """Return the server's or driver's own first line; SQLAlchemy's text would carry the statement."""
    if (original := _original(error)) is not None:
        error = original.__cause__ or original
    if isinstance(error, TimeoutError) and not str(error):
        return "timed out"
    reason = (str(error) or type(error).__name__).splitlines()[0]
    if isinstance(error, sqlite3.Error):
        return f"{reason}{_SQLITE_CURES.get(reason, '')}"
    if is_pooled(error):
        return f"{reason}: a pooler like pgbouncer is in between; set storage.pgbouncer: true, or give a direct DSN"
    cure = _POSTGRES_CURES.get(_sqlstate(error))
    return f"{readable(reason)}; {cure}" if cure else readable(reason)


def is_pooled(error: BaseException | None) -> bool:
    """Return whether the error comes from a pooler in transaction mode that is used like a server."""
    return getattr(error, "sqlstate", None) in _POOLED or _NO_SETTINGS in str(error)


def _library(error: BaseException | None) -> str:
    """Return the name of the package that the class of the error is of."""
    return type(error).__module__.partition(".")[0]


def _original(error: BaseException | None) -> BaseException | None:
    """Return the driver's own error where a `DBAPIError` stands for it; known by its attributes, without an import."""
    original: BaseException | None = getattr(error, "orig", None) if hasattr(error, "connection_invalidated") else None
    return original
