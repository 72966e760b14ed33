"""Signals over PostgreSQL's LISTEN and NOTIFY, on one connection of their own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
from pydantic import Field, ValidationInfo, model_validator
from typing_extensions import override

from ..config.fields import Context, DsnField, context_of
from ..config.plugin import Options
from ..config.secret import Secret
from ..errors import RunnerError, StrategyError
from ..policies.retry import RetryPolicy
from ..service.background import Background
from .base import Connect, StrategyContext, Wake
from .signaller import Signaller

if TYPE_CHECKING:
    import asyncpg

__all__ = ["PROBE", "Postgres", "PostgresOptions", "channel_for"]

log = structlog.get_logger(__name__)

PROBE = "\x01probe"
"""The payload of a probe; any other payload is a signal."""

CONNECT_TIMEOUT = 10.0  # seconds, for all hosts together
ANSWER_TIMEOUT = 3.0  # seconds for a statement, and for the echo of a probe
STEADY = 5.0  # seconds a connection must have held for the next one to be made without a wait
LOG_EVERY = 60.0  # seconds between two reports of one outage

_BACKOFF = RetryPolicy(delay=timedelta(milliseconds=100), max_delay=timedelta(seconds=2), jitter=1.0)


def channel_for(subject: str) -> str:
    """Return the NOTIFY channel of a subject: a name PostgreSQL neither folds nor truncates (63 bytes)."""
    return "evb_" + hashlib.sha256(subject.encode()).hexdigest()[:32]


class PostgresOptions(Options):
    """Signals by LISTEN and NOTIFY."""

    main = "dsn"

    dsn: DsnField | None = Field(
        default=None,
        description="DSN to listen on, past any pooler. The store's by default, which then must not be pgbouncer.",
    )
    password: Secret | None = Field(default=None, description="Password, apart from the DSN.")

    @model_validator(mode="after")
    def _complete(self, info: ValidationInfo) -> PostgresOptions:
        if self.dsn is None and self.password is not None:
            raise ValueError("password: there is no dsn that it belongs to; the store's goes into storage.password")
        if self.dsn is None or self.dsn.scheme != "postgresql":
            return self
        context = context_of(info)
        dsn = self.dsn.completed(password=self.password, tls=context.tls, environ=context.environ)
        return self if dsn == self.dsn else self.model_copy(update={"dsn": dsn})

    @override
    def check(self, context: Context) -> None:
        if self.dsn is not None:
            if self.dsn.scheme != "postgresql":
                raise ValueError("postgres.dsn: expected postgresql://…, LISTEN is PostgreSQL's")
        elif context.dsn is not None and context.dsn.scheme != "postgresql":
            raise ValueError(
                "strategy 'postgres' needs a store on PostgreSQL; use 'sqlite' with storage.dsn sqlite://…"
            )
        elif context.pgbouncer:
            raise ValueError(
                "LISTEN does not work through pgbouncer; give the strategy a direct DSN: postgres: {dsn: postgresql://…}"
            )

    @override
    def build(self, context: StrategyContext) -> Postgres:
        return Postgres(context.connector(self.dsn or context.dsn), context.subject)


class Postgres:
    """
    Signal every process that listens on the channel of `subject`.

    A NOTIFY that commits holds a lock that every other one in the cluster waits for, so it never is part
    of a publish: it has its own transaction on the listening connection. A heartbeat there asks whether
    we still listen, which a pooler in between may have ended, and expects an echo of its own.

    Attributes:
        received: signals of other processes.
        connects: connections made.
    """

    def __init__(self, connect: Connect, subject: str, *, heartbeat: timedelta = timedelta(seconds=10)) -> None:
        self.received = 0
        self.connects = 0
        self._connect = connect
        self._channel = channel_for(subject)
        self._heartbeat = heartbeat.total_seconds()
        self._wake: Wake | None = None
        self._connection: asyncpg.Connection | None = None
        self._proven = False
        self._reason = "not connected yet"
        self._failures = 0
        self._logged_at = float("-inf")
        self._one_at_a_time = asyncio.Lock()  # statements of the connection
        self._echo = asyncio.Event()
        self._ready = asyncio.Event()
        self._lost = asyncio.Event()
        self._away = asyncio.Event()
        self._signals = Signaller("postgres", self._send, away=self._away)
        self._listener = Background("postgres listener", self._session)

    @property
    def hears(self) -> bool:
        """Whether the last probe came back, on a connection that is still open."""
        return self._proven and self._connection is not None and not self._connection.is_closed()

    @property
    def sent(self) -> int:
        """Signals that were committed."""
        return self._signals.sent

    @property
    def failed(self) -> int:
        """Tries to send a signal that failed."""
        return self._signals.failed

    @property
    def unsent(self) -> bool:
        """Whether a signal was given up when this stopped."""
        return self._signals.unsent

    @property
    def detail(self) -> str:
        """The state of the strategy, as `health` shows it."""
        return f"listening on {self._channel}" if self.hears else f"not listening: {self._reason}"

    async def start(self, wake: Wake) -> None:
        """Begin to connect and listen."""
        self._wake = wake
        self._signals.start()
        self._listener.start()

    async def notify(self, event_id: str) -> None:
        """Have a signal sent; while there is no connection, one is kept until there is."""
        self._signals.request(event_id)

    async def stop(self) -> None:
        """Send a last signal, then close the connection."""
        await self._signals.stop()
        await self._listener.stop(timeout=2.0)
        self._wake = None

    async def _session(self) -> None:
        """Connect, listen, and stay until the connection fails."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                connection = await self._connect()
            try:
                await self._listen(connection)
                while not await self._ended():
                    await self._beat(connection)
                self._failed("the connection was lost")
            finally:
                self._forget()
                await _close(connection)
        except Exception as error:
            # Whatever the driver raises, the answer is another connection.
            self._away.set()
            self._failed(_reason(error))
        self._failures = self._failures + 1 if time.monotonic() - began < STEADY else 1
        await asyncio.sleep(_BACKOFF.backoff(self._failures).total_seconds())

    async def _listen(self, connection: asyncpg.Connection) -> None:
        self._lost.clear()
        connection.add_termination_listener(self._on_terminated)
        async with asyncio.timeout(ANSWER_TIMEOUT):
            await connection.add_listener(self._channel, self._on_notification)
        self._connection = connection
        self.connects += 1
        self._away.clear()
        self._ready.set()
        if self._wake is not None:
            self._wake()  # what was signalled before we listened is missed
        await self._beat(connection)
        self._logged_at = float("-inf")
        log.info("postgres listens", channel=self._channel)

    async def _beat(self, connection: asyncpg.Connection) -> None:
        """Prove that this connection listens and that its notifications come back; raise otherwise."""
        async with asyncio.timeout(ANSWER_TIMEOUT):
            async with self._one_at_a_time:
                channels = await connection.fetch("SELECT pg_listening_channels()", timeout=ANSWER_TIMEOUT)
                if self._channel not in (row[0] for row in channels):
                    raise StrategyError("the server forgot the LISTEN; is a pooler in transaction mode in between?")
                self._echo.clear()
                await self._notify(connection, PROBE)
            await self._echo.wait()
        self._proven = True

    async def _ended(self) -> bool:
        """Wait for the next heartbeat; return whether the connection ended before it."""
        try:
            async with asyncio.timeout(self._heartbeat):
                await self._lost.wait()
        except TimeoutError:
            return False
        return True

    async def _send(self, event_id: str) -> None:
        # The payload is empty: an id may exceed the limit of 8000 bytes, and no listener reads it.
        while (connection := self._connection) is None:
            self._ready.clear()
            await self._ready.wait()
        try:
            async with self._one_at_a_time:
                await self._notify(connection, "")
        except Exception as error:
            raise StrategyError(f"NOTIFY failed: {_reason(error)}") from error

    async def _notify(self, connection: asyncpg.Connection, payload: str) -> None:
        # Without arguments asyncpg sends one simple query; channel and payload are ours, not text of users.
        await connection.execute(f"NOTIFY {self._channel}, '{payload}'", timeout=ANSWER_TIMEOUT)

    def _on_notification(self, connection: asyncpg.Connection, pid: int, channel: str, payload: str) -> None:
        own = pid == connection.get_server_pid()
        if connection is not self._connection:
            return
        if own:
            # Our own signal only proves that we hear: the publisher has woken this worker already.
            self._echo.set()
        elif payload != PROBE and self._wake is not None:
            self.received += 1
            self._wake()

    def _on_terminated(self, connection: asyncpg.Connection) -> None:
        self._lost.set()

    def _forget(self) -> None:
        self._connection = None
        self._proven = False

    def _failed(self, reason: str) -> None:
        self._reason = reason
        now = time.monotonic()
        if now - self._logged_at >= LOG_EVERY:
            self._logged_at = now
            log.warning("postgres does not listen", reason=reason)


async def _close(connection: asyncpg.Connection) -> None:
    """Close politely if the server answers, else drop the connection."""
    with contextlib.suppress(Exception):
        await connection.close(timeout=0.5)
    connection.terminate()


def _reason(error: Exception) -> str:
    """Return the text of this package's errors, the type of a driver's, which may repeat its input."""
    if isinstance(error, RunnerError):
        return str(error)
    return type(error).__name__
