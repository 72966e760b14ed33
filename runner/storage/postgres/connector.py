"""Connect to a PostgreSQL server: choose the host, make the connection."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING, NamedTuple

from ...config.dsn import Dsn
from ...errors import StorageUnavailable
from ..errors import is_pooled, is_unavailable, reason_of, storage_error
from ..home import SEARCH_PATH, Home
from .handshake import SuspiciousLoop
from .tls import Encryption, encryptions

if TYPE_CHECKING:
    import asyncpg

__all__ = ["COMMAND_TIMEOUT", "CONNECT_TIMEOUT", "ISOLATION", "PostgresConnector"]

CONNECT_TIMEOUT = 3.0  # seconds for each host, so that a dead first host leaves time for the second
HEAD_START = 0.5  # seconds that a host has for itself before the next one is tried, too
COMMAND_TIMEOUT = 10.0  # seconds; without it a dead peer blocks a call for ever, closing included

ISOLATION = "READ COMMITTED"
"""Of every transaction: a claim that meets another goes on to the next rows, where a stricter one would fail."""

# These override settings of the role and the database. Others stay as they are set there, above all
# `synchronous_commit` and `default_transaction_read_only`.
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

_ROLE = """
SELECT pg_is_in_recovery(), current_setting('transaction_read_only')::bool,
       CASE WHEN NOT pg_is_in_recovery() THEN substring(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END
"""

_Host = tuple[str | None, int | None]  # None: the driver's own default


class _Reached(NamedTuple):
    connection: asyncpg.Connection
    timeline: str = ""  # empty where it was not asked for


class PostgresConnector:
    """
    Make asyncpg connections from a DSN.

    Every host gets its own timeout, the last good one is tried first and the others after a short head start.
    With several hosts only a primary that takes writes is taken; never one whose WAL timeline is older than one
    already seen, because that is a former primary that came back.
    """

    def __init__(self, dsn: Dsn, *, pgbouncer: bool = False, home: Home | None = None) -> None:
        """Make connections to `dsn`; `home`, if given, learns from them where the tables are."""
        self._dsn = dsn
        self._pgbouncer = pgbouncer
        self._home = home
        self._hosts: list[_Host] = list(dsn.hosts) or [(None, None)]
        self._timeline = ""

    def renew_login(self, dsn: Dsn) -> None:
        """Log in with the password of `dsn` from the next connection on; it differs in nothing else."""
        self._dsn = dsn

    async def connect(self) -> asyncpg.Connection:
        """Return a new connection. Raise `StorageUnavailable` when no host takes one."""
        # The first time all are asked: of two primaries, only the timelines tell which one is current.
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
                        if is_pooled(error):
                            raise storage_error(error) from error
                        if not is_unavailable(error):
                            raise
                        reasons.append(f"{host[0]}:{host[1]}: {reason_of(error)}" if host[0] else reason_of(error))
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
        # the only setting that a pooler keeps for each client
        settings = {"application_name": _SERVER_SETTINGS["application_name"]}
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


def _keep_alive(connection: asyncpg.Connection) -> None:
    """Enable keep-alive, so that the kernel detects a dead peer (asyncpg does not)."""
    transport = connection._transport  # asyncpg has no public way to its socket
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == getattr(socket, "AF_UNIX", None):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 20_000)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
