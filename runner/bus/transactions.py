"""Transactions of callers: the driver connection of each, and signals once it has ended."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ..errors import EventError

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.engine import RootTransaction
    from sqlalchemy.orm import Session, SessionTransaction

__all__ = ["AnySession", "TransactionSignals", "driver_connection", "is_committed", "resolved"]

AnySession = Any
"""A SQLAlchemy session or connection, a connection of Django, or one of a driver (DB-API 2.0, PEP 249)."""

_EXPECTED = (
    "session: expected a SQLAlchemy AsyncSession, Session or Connection, a connection of Django, "
    "or one of psycopg, psycopg2 or sqlite3"
)
_IDLE = 0  # PQTRANS_IDLE of libpq, as psycopg and psycopg2 tell it
_PATIENCE = 10.0  # seconds after the beginning of a commit in which the signal is sent even without its end


def resolved(session: Any) -> Any:
    """Return the session that a `scoped_session` stands for in this thread or task; anything else as it is."""
    registry = getattr(session, "registry", None)
    return registry() if callable(registry) and type(session).__module__.startswith("sqlalchemy.") else session


def driver_connection(session: Any) -> Any:
    """
    Return the connection of the driver (DB-API 2.0, PEP 249) that a synchronous session holds.

    Raises:
        EventError: it is no such session.
    """
    if _is_django(session):
        session.ensure_connection()
        return session.connection
    if "sqlalchemy" in sys.modules:
        from sqlalchemy import Connection
        from sqlalchemy.orm import Session

        if isinstance(session, Session):
            session = session.connection()
        if isinstance(session, Connection):
            if not session.in_transaction():
                session.begin()  # SQLAlchemy itself begins only before statements of its own
            return session.connection.driver_connection
    if all(callable(getattr(session, name, None)) for name in ("cursor", "commit", "rollback")):
        return session
    raise EventError(f"{_EXPECTED}, got {type(session).__name__}")


def is_committed(connection: Any) -> bool:
    """Return whether a connection of a driver has nothing to commit, as in autocommit mode; False if it is unknown."""
    in_transaction = getattr(connection, "in_transaction", None)  # of sqlite3
    if in_transaction is not None:
        return not in_transaction
    return getattr(getattr(connection, "info", None), "transaction_status", None) == _IDLE


def _is_django(session: Any) -> bool:
    return callable(getattr(session, "ensure_connection", None)) and callable(getattr(session, "on_commit", None))


class TransactionSignals:
    """
    Signal events published in transactions of callers, each once the outermost transaction has ended.

    After a rollback the signal is superfluous, and harmless. A connection of a driver does not report its end.
    """

    def __init__(self, announce: Callable[[str], None]) -> None:
        """Args: announce signals work, by the id of its newest event."""
        self._announce = announce
        self._unsignalled: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, session: Any, event_id: str, loop: asyncio.AbstractEventLoop, *, ended: bool = False) -> None:
        """
        Signal once the transaction of `session` has ended.

        Args:
            loop: of the bus; the end may come in any thread.
            ended: whether it has, because the session commits each statement.
        """
        self._loop = loop
        if ended:
            self._soon(self._announce, event_id)
            return
        if _is_django(session):
            session.on_commit(partial(self._soon, self._announce, event_id))
            return
        if "sqlalchemy" not in sys.modules:
            return
        from sqlalchemy import Connection, event
        from sqlalchemy.orm import Session

        # Listeners stay: one must not be removed while its event is being handled.
        if isinstance(session, Session):
            self._unsignalled[session] = event_id
            if not event.contains(session, "after_transaction_end", self._session_ended):
                event.listen(session, "after_transaction_end", self._session_ended)
        elif isinstance(session, Connection):
            self._unsignalled[session] = event_id
            if not event.contains(session, "commit", self._connection_commits):
                event.listen(session, "commit", self._connection_commits)

    def _session_ended(self, session: Session, transaction: SessionTransaction) -> None:
        event_id = self._unsignalled.pop(session, None) if transaction.parent is None else None
        if event_id is not None:
            self._soon(self._announce, event_id)

    def _connection_commits(self, connection: Connection) -> None:
        """Note a commit that is about to be sent: SQLAlchemy has no event after it."""
        event_id = self._unsignalled.pop(connection, None)
        transaction = connection.get_transaction()
        if event_id is not None and transaction is not None:
            self._soon(self._watch, transaction, event_id)

    def _watch(self, transaction: RootTransaction, event_id: str, pause: float = 0.001, waited: float = 0.0) -> None:
        """Signal once a commit has ended, which another thread may still be waiting for."""
        if transaction.is_active and waited < _PATIENCE:
            assert self._loop is not None
            self._loop.call_later(pause, self._watch, transaction, event_id, min(2 * pause, 0.05), waited + pause)
        else:
            self._announce(event_id)

    def _soon(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function in the loop of the bus, unless that is closed: then polling finds the event."""
        loop = self._loop
        assert loop is not None
        if asyncio._get_running_loop() is loop:
            function(*args)
        elif not loop.is_closed():
            loop.call_soon_threadsafe(function, *args)
