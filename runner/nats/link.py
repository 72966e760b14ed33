"""One connection to one server: a nats-py client that connects once, and never again."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Awaitable, Callable

from nats import errors
from nats.aio.client import RawCredentials
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as Interest

from .client import GuardedClient, honest_cancellation
from .options import BrokerOptions, Material, Server

__all__ = ["ANSWER_TIMEOUT", "LOST", "Link", "Subscription"]

CONNECT_TIMEOUT = 2  # seconds for each step: the connection, the greeting, the answer to our credentials
ANSWER_TIMEOUT = 1  # seconds to answer a ping
CLOSE_TIMEOUT = 1.0  # seconds
_MOST_NODES = 100  # of a cluster that are remembered
PENDING_MESSAGES = 64  # received and not yet handled; further ones are dropped, since all signals mean the same

LOST = (errors.Error, OSError, TimeoutError)
"""The errors that nats-py raises when the other side, or the way to it, is the cause."""


class Subscription:
    """A subscription to a subject, renewed on every connection until `cancel()`."""

    def __init__(
        self, subject: str, heard: Callable[[bytes], None], ready: Callable[[], None], changed: Callable[[], None]
    ) -> None:
        self.subject = subject
        self.heard = heard
        self.ready = ready
        self.version = 0
        self.cancelled = False
        self._changed = changed

    def renew(self) -> None:
        """Subscribe again; the server reports a refusal only once."""
        self.version += 1
        self._changed()

    def cancel(self) -> None:
        """Stop listening."""
        self.cancelled = True
        self._changed()


class Link:
    """One client, connected once."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.client = GuardedClient()
        self.attention = asyncio.Event()
        self.leaving = False
        self.last_error: Exception | None = None
        self._interests: dict[Subscription, tuple[int, Interest]] = {}
        self._unannounced: set[Subscription] = set()

    @property
    def alive(self) -> bool:
        """Whether messages can be handed over."""
        return self.client.is_connected

    async def open(self, options: BrokerOptions, name: str) -> None:
        """Connect, or raise the reason why not."""
        server = self.server
        material = Material()
        if options.credentials or options.needs_tls(server):
            # Read anew each time, so that a replaced file takes effect; in a thread, since a file system may hang.
            material = await asyncio.to_thread(options.material, server)
        await self.client.connect(
            [server.url],
            name=name,
            error_cb=self._on_error,
            closed_cb=self._on_closed,
            lame_duck_mode_cb=self._on_lame_duck,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=CONNECT_TIMEOUT,
            ping_interval=10,
            max_outstanding_pings=2,
            flush_timeout=1,
            pending_size=1024 * 1024,
            tls=material.tls,
            tls_hostname=server.tls_hostname or options.tls_hostname,
            tls_handshake_first=options.tls_handshake_first,
            user=options.user,
            password=options.password,
            token=options.token,
            user_credentials=RawCredentials(material.credentials) if material.credentials else None,
        )
        if type(self.client.max_payload) is not int:
            raise errors.Error("the server's greeting makes no sense")

    async def reconcile(self, wanted: set[Subscription]) -> None:
        """Bring the subscriptions of the server in line with the wanted ones."""
        for subscription, (version, interest) in list(self._interests.items()):
            if subscription not in wanted or subscription.version != version:
                del self._interests[subscription]
                await interest.unsubscribe()
        fresh = wanted - self._interests.keys()
        for subscription in fresh:
            version = subscription.version
            interest = await self.client.subscribe(
                subscription.subject, cb=_receiver(subscription), pending_msgs_limit=PENDING_MESSAGES
            )
            self._interests[subscription] = (version, interest)
        if fresh:
            await self.client.rtt(ANSWER_TIMEOUT)  # by its answer the server has taken them
            self._unannounced |= fresh

    def confirm(self, wanted: set[Subscription]) -> None:
        """Tell the subscriptions the server has taken since the last call."""
        fresh, self._unannounced = self._unannounced & wanted, set()
        for subscription in fresh:
            subscription.ready()

    async def answers(self) -> bool:
        """Return whether the server answers a ping."""
        try:
            # The outer limit is for the queue before the socket, for which nats-py waits without one.
            async with asyncio.timeout(2 * ANSWER_TIMEOUT):
                with honest_cancellation():
                    await self.client.rtt(ANSWER_TIMEOUT)
        except LOST:
            return False
        return True

    def discovered(self) -> tuple[Server, ...]:
        """Return the other nodes of the cluster."""
        own = self.server
        found = []
        for uri in self.client.discovered_servers[:_MOST_NODES]:
            try:
                host, port = uri.hostname, uri.port
            except ValueError:  # nonsense; nats-py keeps it all the same
                continue
            if host and port:
                # A certificate names hosts, and nodes are announced by address.
                name = (own.tls_hostname or own.host) if _is_address(host) else None
                found.append(Server(host, port, own.tls, name))
        return tuple(found)

    async def close(self, *, broken: bool) -> None:
        """Close in bounded time; first send what is unsent, unless the connection is broken."""
        if broken:
            self.client.abort()
        closing = asyncio.create_task(self._close(), name="nats close")
        try:
            await asyncio.wait({closing}, timeout=CLOSE_TIMEOUT)
            self.client.abort()  # whatever it still waits for ends with the socket
            await asyncio.wait({closing}, timeout=CLOSE_TIMEOUT)
        finally:
            closing.cancel()  # after a TLS handshake that failed, nats-py waits for a stream that nothing ends

    async def _close(self) -> None:
        if self.client.started:
            with contextlib.suppress(*LOST):
                await self.client.close()

    # nats-py awaits these inside its read loop, and an exception would end that: they only set flags.

    async def _on_error(self, error: Exception) -> None:
        if not isinstance(error, errors.SlowConsumerError):  # it dropped signals, which all mean the same
            self.last_error = error
            self.attention.set()

    async def _on_closed(self) -> None:
        self.attention.set()

    async def _on_lame_duck(self) -> None:
        self.leaving = True
        self.attention.set()


def _receiver(subscription: Subscription) -> Callable[[Msg], Awaitable[None]]:
    async def receive(message: Msg) -> None:
        if not subscription.cancelled:
            subscription.heard(message.data)

    return receive


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
