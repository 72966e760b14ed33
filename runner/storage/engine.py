"""The way to the database: one SQLAlchemy engine, and how its connections are made."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import os
import socket
import sqlite3
import ssl
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, InterfaceError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from ..config.dsn import Dsn
from ..errors import ConfigError, StorageError, StorageHeld, StorageRefused, StorageUnavailable, readable
from .home import SEARCH_PATH, Home
from .postgres.handshake import SuspiciousLoop
from .postgres.outage import Outage
from .postgres.tls import Encryption, encryptions
from .sqlite.connection import TidyConnection, connect, pragmas, prepare

if TYPE_CHECKING:
    import asyncpg

__all__ = ["ISOLATION", "PostgresConnector", "is_unavailable", "mapped_errors", "open_engine"]

log = structlog.get_logger(__name__)

CONNECT_TIMEOUT = 3.0  # seconds for each host: a dead first host must not eat the time of the second
HEAD_START = 0.5  # seconds that a host has for itself before the next one is tried, too
COMMAND_TIMEOUT = 10.0  # seconds; without it a dead peer blocks a call for ever, closing included

ISOLATION = "READ COMMITTED"
"""Of every transaction: a claim that meets another goes on to the next rows, where a stricter one would fail."""

# These hold whatever was set for the role or the database. What is not here is theirs to decide: `synchronous_commit`
# and `default_transaction_read_only` above all.
_SERVER_SETTINGS = {
    "application_name": "runner",
    "default_transaction_isolation": ISOLATION.lower(),
    "idle_in_transaction_session_timeout": "10s",
    "idle_session_timeout": "0",
    "jit": "off",
    "lock_timeout": "5s",
    "standard_conforming_strings": "on",
    "statement_timeout": "10s",
}

# SQLSTATE classes and codes after which a connection, or the node behind it, is of no more use:
# connection exceptions, shutdown and crash, too many connections, a node that turned read-only.
_UNAVAILABLE = ("08", "57P", "53", "25006")
# Worth another try on a live connection: serialization failure, deadlock, statement or lock timeout.
_REPEATABLE = frozenset({"40001", "40P01", "57014", "55P03"})

# Of those: another session has what is to be written, and the server has undone what was asked.
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

# The driver's name for what a statement meets that was prepared before somebody changed its tables.
_STALE_PLAN = "InvalidCachedStatementError"

# What a pooler in transaction mode answers to someone who takes it for a server: it knows neither the settings of a
# session nor, another time, the statements prepared in it.
_POOLED = frozenset({"42P05", "26000"})
_NO_SETTINGS = "unsupported startup parameter"

_SQLITE_CURES = {
    "database is locked": ": another program holds the file, or writes to it for long",
    "file is not a database": ": correct storage.dsn, or move that file away",
}

_ROLE = """
SELECT pg_is_in_recovery(), current_setting('transaction_read_only')::bool,
       CASE WHEN NOT pg_is_in_recovery() THEN substring(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END
"""

_Host = tuple[str | None, int | None]  # None: the driver's own default


class _Reached(NamedTuple):
    connection: asyncpg.Connection
    timeline: str = ""  # where nobody asked


class PostgresConnector:
    """
    Makes asyncpg connections from a DSN.

    Every host gets its own timeout, the last good one is tried first and the others after a short head start.
    With several hosts only a primary that takes writes is taken; never one whose WAL timeline is older than one
    already seen, because that is a former primary that came back.
    """

    def __init__(self, dsn: Dsn, *, pgbouncer: bool = False, home: Home | None = None) -> None:
        """Make connections to `dsn`; `home` learns from them where the tables are, if that is of interest."""
        self._dsn = dsn
        self._pgbouncer = pgbouncer
        self._home = home
        self._hosts: list[_Host] = list(dsn.hosts) or [(None, None)]
        self._timeline = ""

    async def connect(self) -> asyncpg.Connection:
        """Return a new connection. Raise `StorageUnavailable` when no host takes one."""
        # The first time all are asked: of two primaries, only the timelines tell which one is the present one.
        head_start = HEAD_START if self._timeline else 0.0
        waiting = list(self._hosts)
        tries: dict[asyncio.Task[_Reached], _Host] = {}
        reached: dict[_Host, _Reached] = {}
        reasons = []
        try:
            while (waiting or tries) and not (reached and head_start):
                if waiting:
                    host = waiting.pop(0)
                    tries[asyncio.create_task(self._connect(*host))] = host
                ended, _ = await asyncio.wait(
                    tries, timeout=head_start if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
                for each in ended:
                    host = tries.pop(each)
                    try:
                        reached[host] = each.result()
                    except Exception as error:
                        if _is_pooled(error):
                            raise _mapped(error) from error
                        if not is_unavailable(error):
                            raise
                        reasons.append(f"{host[0]}:{host[1]}: {_reason(error)}" if host[0] else _reason(error))
            if not reached:
                raise StorageUnavailable(f"PostgreSQL cannot be reached: {'; '.join(reasons)}")
            best = max((host for host in self._hosts if host in reached), key=lambda host: reached[host].timeline)
            self._hosts.sort(key=lambda each: each != best)
            return reached.pop(best).connection
        finally:
            for each in tries:
                each.cancel()
            for other in reached.values():
                other.connection.terminate()

    async def _connect(self, host: str | None, port: int | None) -> _Reached:
        import asyncpg

        *others, last = encryptions(self._dsn)
        home = self._home
        # While home is not known, the connection begins with the search path by which to find it.
        at_home = home is None or home.schema is not None
        connection = None
        for encryption in others:
            try:
                connection = await self._open(host, port, encryption, at_home)
                break
            except asyncpg.InvalidPasswordError:
                raise
            except (ConnectionError, ssl.SSLError, asyncpg.InvalidAuthorizationSpecificationError):
                continue  # it may want TLS, or none of it, where it was offered the other
        connection = connection or await self._open(host, port, last, at_home)
        _keep_alive(connection)
        try:
            if home is not None:
                home.encoding = connection.get_settings().server_encoding
                if not at_home:
                    await home.find(connection, pin=not self._pgbouncer)
            if len(self._hosts) > 1 or self._dsn.target_session_attrs != "any":
                return _Reached(connection, await self._check_primary(connection, host))
        except BaseException:
            connection.terminate()
            raise
        return _Reached(connection)

    async def _open(
        self, host: str | None, port: int | None, encryption: Encryption, at_home: bool
    ) -> asyncpg.Connection:
        import asyncpg

        dsn = self._dsn
        settings = {"application_name": _SERVER_SETTINGS["application_name"]}  # all that a pooler keeps for each client
        if not self._pgbouncer:
            settings = dict(_SERVER_SETTINGS)
            if at_home:
                settings["search_path"] = SEARCH_PATH
        loop = asyncio.get_running_loop()
        suspicious = SuspiciousLoop(loop)
        connecting = asyncpg.connect(
            loop=suspicious,
            host=host,
            port=port,
            user=dsn.user,
            password=dsn.password.reveal() if dsn.password else None,
            database=dsn.database,
            ssl=encryption,
            timeout=dsn.connect_timeout or CONNECT_TIMEOUT,
            command_timeout=COMMAND_TIMEOUT,
            server_settings={**settings, **dsn.server_settings},
            statement_cache_size=0 if self._pgbouncer else 100,
        )
        try:
            connection = await connecting
        except Exception as error:
            if suspicious.fault:
                raise StorageUnavailable(f"no PostgreSQL answers: {suspicious.fault}") from error
            if isinstance(error, OSError) or type(error).__module__.startswith("asyncpg"):
                raise
            raise StorageUnavailable(f"no PostgreSQL answers: the driver fails by {type(error).__name__}") from error
        connection._loop = loop  # asyncpg looks for the task that runs in it
        return connection

    async def _check_primary(self, connection: asyncpg.Connection, host: str | None) -> str:
        """Return the timeline that the host writes on. Raise `StorageUnavailable` for one that takes no writes."""
        standby, readonly, timeline = await connection.fetchrow(_ROLE)
        if standby or readonly:
            raise StorageUnavailable(f"{host} is {'a standby' if standby else 'read-only'}")
        if timeline < self._timeline:
            raise StorageUnavailable(f"{host} is a former primary (timeline {timeline}, seen {self._timeline})")
        self._timeline = timeline
        return str(timeline)


def open_engine(dsn: Dsn, *, schema: str | None = None, pool: int = 5, pgbouncer: bool = False) -> AsyncEngine:
    """
    Return the engine for `dsn`; nothing connects yet.

    Args:
        schema: PostgreSQL schema of the tables; None is found by the first connection (see `Home`).
        pool: connections it may hold at most.
        pgbouncer: the DSN leads to a pooler in transaction mode: no session state, no prepared statements.
    """
    if dsn.scheme == "sqlite":
        return _sqlite_engine(dsn, pool)
    _check_user(dsn)
    home = Home(schema)
    connector, outage = PostgresConnector(dsn, pgbouncer=pgbouncer, home=home), Outage()

    async def connection() -> asyncpg.Connection:
        with outage, mapped_errors():
            return await connector.connect()

    def connect() -> Any:
        # What `async_creator` stands for; with that, SQLAlchemy's own statement cache could not be turned off.
        return engine.dialect.loaded_dbapi.connect(
            async_creator_fn=connection, prepared_statement_cache_size=0 if pgbouncer else 100
        )

    engine = create_async_engine(
        "postgresql+asyncpg://",
        creator=connect,
        pool_size=pool,
        max_overflow=0,
        pool_timeout=COMMAND_TIMEOUT,
        hide_parameters=True,
        isolation_level=ISOLATION,
        json_deserializer=_parse_json,
        execution_options={"schema_translate_map": home.translation, "home": home},
    )

    @event.listens_for(engine.sync_engine, "handle_error")
    def _disconnect(context: Any) -> None:
        if is_unavailable(context.original_exception):
            context.is_disconnect = True

    return engine


def _check_user(dsn: Dsn) -> None:
    """Raise `ConfigError` where neither the DSN nor the system says who we are to the database."""
    if dsn.user or os.environ.get("PGUSER"):
        return
    try:
        getpass.getuser()
    except (KeyError, OSError) as error:
        raise ConfigError(
            f"storage.dsn: names no user, and the user id {os.getuid()} has no name on this machine; "
            "write postgresql://USER@…, or set PGUSER"
        ) from error


def _sqlite_engine(dsn: Dsn, pool: int) -> AsyncEngine:
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{dsn.path}",
        connect_args={"factory": TidyConnection, "async_creator_fn": connect},
        pool_size=pool,
        max_overflow=0,
        hide_parameters=True,
        json_deserializer=_parse_json,
        execution_options={"home": Home(encoding="UTF8")},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def _prepare(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver starts no transaction by itself; `_begin` does
        cursor = connection.cursor()
        prepare(cursor, pragmas(sqlite3.sqlite_version_info))
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Any) -> None:
        # A transaction that reads first and writes later fails at once when another wrote in between,
        # whatever the busy timeout; so the write lock is taken at the start, unless told otherwise.
        connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('sqlite_begin', 'IMMEDIATE')}")

    return engine


def _parse_json(text: str) -> Any:
    """Return what a column of JSON holds; None where it holds none, so that one such row does not spoil a query."""
    try:
        return json.loads(text)
    except ValueError:
        return None


@contextlib.contextmanager
def mapped_errors() -> Iterator[None]:
    """Turn what the drivers raise into `StorageUnavailable` or `StorageError`, without statements or values."""
    try:
        yield
    except StorageError:
        raise
    except (SQLAlchemyError, OSError, TimeoutError, sqlite3.Error) as error:
        raise _mapped(error) from error
    except Exception as error:
        if type(error).__module__.startswith("asyncpg"):
            raise _mapped(error) from error
        raise


def is_unavailable(error: BaseException | None) -> bool:
    """Return whether `error` says that the store cannot be reached or used now, so that trying again helps."""
    if isinstance(error, StorageUnavailable | PoolTimeoutError | OSError | TimeoutError | asyncio.IncompleteReadError):
        return True
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or is_unavailable(error.orig) or is_unavailable(error.__cause__)
    if type(error).__name__ == _STALE_PLAN:
        return True  # of this connection; another one prepares its statements for the tables as they are now
    state = getattr(error, "sqlstate", None)
    if isinstance(state, str):
        if _is_pooled(error):
            return False
        return state.startswith(_UNAVAILABLE) or state in _REPEATABLE
    if isinstance(error, sqlite3.OperationalError):
        text = str(error)
        return any(sign in text for sign in ("locked", "busy", "disk", "unable to open", "readonly"))
    return type(error).__module__.startswith("asyncpg") and type(error).__name__ in (
        "InterfaceError",
        "InternalClientError",
        "ConnectionDoesNotExistError",
    )


def _mapped(error: BaseException) -> StorageError:
    if _sqlstate(error) in _HELD:
        return StorageHeld(f"another session holds what is to be written: {_reason(error)}")
    if is_unavailable(error):
        return StorageUnavailable(f"the store is unavailable: {_reason(error)}")
    kind = StorageRefused if _is_about_rows(error) else StorageError
    return kind(f"the store refused: {_reason(error)}")


def _is_about_rows(error: BaseException) -> bool:
    """Return whether what was to be written is refused for what is in it, by a constraint, a trigger or a type."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig
    state = _sqlstate(error)
    if state:
        return not state.startswith(_ABOUT_STATEMENTS)
    return isinstance(error, sqlite3.IntegrityError | sqlite3.DataError)


def _sqlstate(error: BaseException | None) -> str:
    """Return the code PostgreSQL gave the error; empty for any other."""
    if isinstance(error, DBAPIError):
        error = error.orig
    return str(getattr(error, "sqlstate", None) or "")


def _reason(error: BaseException) -> str:
    """Return the server's or driver's own first line; SQLAlchemy's text would carry the statement."""
    if isinstance(error, DBAPIError | InterfaceError) and error.orig is not None:
        error = error.orig.__cause__ or error.orig
    if isinstance(error, TimeoutError) and not str(error):
        return "timed out"
    reason = (str(error) or type(error).__name__).splitlines()[0]
    if isinstance(error, sqlite3.Error):
        return f"{reason}{_SQLITE_CURES.get(reason, '')}"
    if _is_pooled(error):
        return f"{reason}: a pooler like pgbouncer is in between; set storage.pgbouncer: true, or give a direct DSN"
    return readable(reason)


def _is_pooled(error: BaseException | None) -> bool:
    """Return whether it is what a pooler in transaction mode answers to someone who takes it for a server."""
    return getattr(error, "sqlstate", None) in _POOLED or _NO_SETTINGS in str(error)


def _keep_alive(connection: asyncpg.Connection) -> None:
    """Let the kernel find out that a peer is gone (asyncpg sets none of this)."""
    transport = connection._transport  # asyncpg has no public way to its socket
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == getattr(socket, "AF_UNIX", None):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 20_000)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
