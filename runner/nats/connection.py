"""
The one connection to NATS, shared by the wake-up path and the sinks.

The reconnecting of nats-py is not used: an error of the server ends it for good, an exception in a callback or a stuck
socket silently. So a client connects once, is probed every few seconds, and is replaced by a new one when it does not
answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

import structlog
from nats import errors

from ..errors import StrategyError, readable
from ..policies.retry import RetryPolicy
from ..service.background import Background
from .client import header_block
from .errors import BrokerError, MessageRefused, NoResponders
from .link import ANSWER_TIMEOUT, LOST, Link, Subscription
from .options import BrokerOptions, Server

__all__ = ["Broker", "BrokerError", "BrokerOptions", "Counts", "MessageRefused", "Subscription"]

log = structlog.get_logger(__name__)

OPEN_TIMEOUT = 3.0  # seconds to connect to one server and subscribe there
PROBE_EVERY = 2.5  # seconds
STEADY = 5.0  # seconds a connection must have held for the next one to be made without a wait
LOG_EVERY = 60.0  # seconds between two reports of one outage

_BACKOFF = RetryPolicy(delay=timedelta(milliseconds=100), max_delay=timedelta(seconds=2), jitter=1.0)
_PUBLISHABLE = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")


@dataclass(slots=True)
class Counts:
    """Connections made, and attempts that failed."""

    connects: int = 0
    failures: int = 0


class Broker:
    """
    The supervised connection to NATS.

    Nothing is buffered while it is down: `publish()` raises, and a caller waits for
    `ready` of its subscription or tries again. Give one `Broker` to all that use the same options.
    """

    def __init__(self, options: BrokerOptions, *, name: str = "runner") -> None:
        self.counts = Counts()
        self.last_error = "not connected yet"
        self.away = asyncio.Event()  # set while not connected, after an attempt has failed
        self._options = options
        self._name = name
        self._configured = options.parsed()
        self._discovered: tuple[Server, ...] = ()
        self._last: Server | None = None
        self._link: Link | None = None
        self._subscriptions: set[Subscription] = set()
        self._loop = Background("nats connection", self._session)
        self._hurried = 0
        self._logged_at = float("-inf")

    @property
    def connected(self) -> bool:
        """Whether messages can be handed over now."""
        return self._link is not None and self._link.alive

    @property
    def server(self) -> str | None:
        """Host and port of the server in use."""
        return self._link.server.address if self._link is not None and self._link.alive else None

    @property
    def max_payload(self) -> int | None:
        """The most bytes of headers and payload together the server takes in a message; None while unknown."""
        return self._link.client.max_payload if self._link is not None else None

    def renew_login(self, options: BrokerOptions) -> None:
        """Log in as `options` say from the next connection on; they differ in nothing else."""
        self._options = options

    async def start(self) -> None:
        """Begin to connect, and return at once. Idempotent."""
        if self._options.tls_insecure:
            log.warning(
                "nats tls insecure", detail="the certificate of the server is not verified; remove tls.insecure"
            )
        self._loop.start()

    async def stop(self) -> None:
        """Send pending messages, then close, within three seconds."""
        await self._loop.stop(timeout=1.0)
        link, self._link = self._link, None
        if link is not None:
            await link.close(broken=not link.alive)

    def subscribe(
        self, subject: str, heard: Callable[[bytes], None], ready: Callable[[], None] = lambda: None
    ) -> Subscription:
        """
        Listen to `subject`, now if connected and on every later connection.

        Args:
            heard: called with the payload of every message. When they come faster than they are looked
                at, the surplus is dropped.
            ready: called when the server has taken the subscription, on each connection; messages sent
                before it may have been missed. Neither may block or raise.
        """
        subscription = Subscription(subject, heard, ready, self._check)
        self._subscriptions.add(subscription)
        self._check()
        return subscription

    async def publish(
        self, subject: str, payload: bytes = b"", headers: Mapping[str, str] | None = None, *, confirm: bool = False
    ) -> None:
        """
        Send a message to the server.

        Args:
            confirm: return only when the server has it and has not refused it. A connection is never resumed, so the
                answer to a ping tells of everything before it.

        Raises:
            MessageRefused: it can never be sent.
            BrokerError: not connected, the connection was lost meanwhile, or the server refused it, for want of a
                permission for instance, which may be given.
        """
        with self._carrier() as link:
            block = _checked(subject, payload, headers, link.client.max_payload)
            if confirm:
                await link.client.prove(subject, payload, block, timeout=2 * ANSWER_TIMEOUT)
            else:
                await link.client.send(subject, payload, block)

    async def request(
        self, subject: str, payload: bytes = b"", headers: Mapping[str, str] | None = None, *, timeout: float
    ) -> bytes:
        """
        Hand a message to the server, and return the payload of the answer.

        Args:
            timeout: seconds to wait for it.

        Raises:
            NoResponders: there is no subscriber of the subject.
            MessageRefused: it can never be sent.
            BrokerError: as `publish()`, or no answer came in time; the message may have arrived all the same.
        """
        link = self._connected()  # without `_carrier()`, which would cost as much as the rest
        try:
            block = _checked(subject, payload, headers, link.client.max_payload)
            return await link.client.exchange(subject, payload, block, timeout=timeout)
        except errors.NoRespondersError as error:
            raise NoResponders(f"{link.server.address}: nobody takes {subject!r}") from error
        except errors.TimeoutError as error:
            raise BrokerError(f"{link.server.address}: no answer within {timeout:g} s") from error
        except LOST as error:
            raise _mapped(error, link) from error

    async def try_publish(self, subject: str) -> None:
        """Raise `BrokerError` unless publishing to `subject` is permitted now. No message is sent."""
        with self._carrier() as link:
            await link.client.try_publish(subject, timeout=2 * ANSWER_TIMEOUT)

    @contextlib.contextmanager
    def _carrier(self) -> Iterator[Link]:
        """Lend the connection for a message, and map the errors of nats-py."""
        link = self._connected()
        try:
            yield link
        except LOST as error:
            raise _mapped(error, link) from error

    def _connected(self) -> Link:
        link = self._link
        if link is None or not link.alive:
            raise BrokerError(f"not connected to NATS: {self.last_error}")
        return link

    def _check(self) -> None:
        """Have the supervisor check the connection and the subscriptions now."""
        self._subscriptions = {each for each in self._subscriptions if not each.cancelled}
        if self._link is not None:
            self._link.attention.set()

    async def _session(self) -> None:
        """Put a new connection into use, retire the one before it, and watch it until it ends."""
        link = await self._dial()
        retired, self._link, self._last = self._link, link, link.server
        self.counts.connects += 1
        self.away.clear()
        self._logged_at = float("-inf")
        log.info("nats connected", server=link.server.address)
        if retired is not None:
            await retired.close(broken=not retired.alive)
        began = time.monotonic()
        self.last_error = await self._watch(link)
        self._discovered = link.discovered()
        log.warning("nats connection ends", server=link.server.address, reason=self.last_error)
        if link.leaving and link.alive:
            return  # it serves until the next one is there
        self._link = None
        await link.close(broken=True)
        # A server that accepts and then ends connections must not be dialled in a tight loop.
        self._hurried = self._hurried + 1 if time.monotonic() - began < STEADY else 0
        if self._hurried:
            await asyncio.sleep(_BACKOFF.backoff(self._hurried).total_seconds())

    async def _dial(self) -> Link:
        """Return a connection that has all subscriptions, however long it takes to get one."""
        for attempt in itertools.count(1):
            for server in self._candidates():
                link = Link(server)
                try:
                    async with asyncio.timeout(OPEN_TIMEOUT):
                        await link.open(self._options, self._name)
                        await link.reconcile(self._subscriptions)
                except Exception as error:
                    await link.close(broken=True)
                    self._failed(server, link.last_error or error)
                except BaseException:
                    await link.close(broken=True)
                    raise
                else:
                    return link
            self.away.set()
            await asyncio.sleep(_BACKOFF.backoff(attempt).total_seconds())
        raise AssertionError("the count has no end")

    async def _watch(self, link: Link) -> str:
        """Keep the subscriptions as they are wanted; return why the connection must be replaced."""
        silent = 0
        while True:
            try:
                await link.reconcile(self._subscriptions)
            except LOST as error:
                return _reason(error)
            link.confirm(self._subscriptions)
            if not silent:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PROBE_EVERY):
                        await link.attention.wait()
                link.attention.clear()
            if link.leaving:
                return "the server is about to shut down"
            if not link.alive:
                return _reason(link.last_error) if link.last_error else "closed by the server"
            silent = 0 if await link.answers() else silent + 1
            if silent == 2:
                return "no answer to two pings"

    def _candidates(self) -> list[Server]:
        """Return the known servers in random order, the one used last at the end."""
        known = {server.address: server for server in (*self._discovered, *self._configured)}
        servers = list(known.values())
        random.shuffle(servers)
        servers.sort(key=lambda server: server == self._last)
        return servers

    def _failed(self, server: Server, error: BaseException) -> None:
        self.counts.failures += 1
        self.last_error = f"{server.address}: {_reason(error)}"
        now = time.monotonic()
        if now - self._logged_at >= LOG_EVERY:
            self._logged_at = now
            log.warning("nats unreachable", server=server.address, reason=_reason(error))


def _mapped(error: BaseException, link: Link) -> BrokerError | MessageRefused:
    """Return the error of the bus for one of nats-py."""
    if isinstance(error, errors.BadHeaderError | errors.BadSubjectError):
        return MessageRefused(f"NATS does not take this message: {type(error).__name__}")
    return BrokerError(f"{link.server.address}: {_reason(error)}")


def _checked(subject: str, payload: bytes, headers: Mapping[str, str] | None, max_payload: int) -> bytes:
    """
    Return the block of headers of a message.

    Raises:
        MessageRefused: the server would drop the message silently, or would close the shared connection over it.
    """
    if not _PUBLISHABLE.fullmatch(subject):
        raise MessageRefused(
            f"subject {subject!r}: expected tokens separated by dots, none of them empty, without spaces, '*' or '>'"
        )
    block = header_block(headers) if headers else b""
    size = len(block) + len(payload)
    if size > max_payload:
        raise MessageRefused(f"subject {subject!r}: {size} bytes with headers, the server takes at most {max_payload}")
    return block


def _reason(error: BaseException) -> str:
    """Return the text of an error if it is known to hold no secret, else its type."""
    if isinstance(error, (*LOST, StrategyError)) and str(error):
        return readable(str(error))
    return type(error).__name__
