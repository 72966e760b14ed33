"""Signals over NATS: one subject for the deployment, the id of the event as payload."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
from pydantic import Field
from typing_extensions import override

from ..nats.errors import BrokerError
from ..nats.options import SERVERS, NatsConnection, ServerUrl
from ..service.background import Background
from .base import StrategyContext, Wake
from .signaller import Signaller

if TYPE_CHECKING:  # nats-py is loaded with the first connection
    from ..nats.connection import Broker, Subscription

__all__ = ["PROBE", "Nats", "NatsOptions"]

log = structlog.get_logger(__name__)

PROBE = b"\x01probe"
"""The payload of a probe. No event id starts with a control character (CloudEvents 1.0 §3.1)."""

PATIENCE = 2.0  # seconds until a probe counts as lost


class NatsOptions(NatsConnection):
    """Signals over NATS."""

    main = "servers"

    servers: tuple[ServerUrl, ...] = Field(min_length=1, description=SERVERS)

    @override
    def build(self, context: StrategyContext) -> Nats:
        return Nats(context.broker(self), context.subject)


class Nats:
    """
    Signal every process that listens on `subject`; prove by probes that signals arrive.

    Being connected proves nothing: a subscription that is not permitted looks like any other. So a probe
    goes out on our own subject after every connect, and whenever nothing was heard for `probe_every`.

    Attributes:
        received: signals of other processes.
    """

    def __init__(self, broker: Broker, subject: str, *, probe_every: timedelta = timedelta(seconds=5)) -> None:
        self.received = 0
        self._broker = broker
        self._subject = subject
        self._probe_every = probe_every.total_seconds()
        self._wake: Wake | None = None
        self._subscription: Subscription | None = None
        self._own: bytes | None = None
        self._proven = False
        self._silent = False
        self._refusal = ""
        self._heard_at = float("-inf")
        self._heard = asyncio.Event()
        self._ready = asyncio.Event()
        self._probe_now = asyncio.Event()
        self._signals = Signaller("nats", self._send, away=broker.away)
        self._prober = Background("nats probe", self._probe)

    @property
    def hears(self) -> bool:
        """Whether a message on the subject arrived lately, over the current connection."""
        return self._proven and self._broker.connected

    @property
    def sent(self) -> int:
        """Signals that reached the server."""
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
        if not self._broker.connected:
            return f"not connected: {self._broker.last_error}"
        if not self._proven:
            return f"connected to {self._broker.server}, but deaf: a probe on {self._subject} did not come back"
        if self._refusal:
            return f"connected to {self._broker.server}, but mute: {self._refusal}"
        return f"connected to {self._broker.server}"

    async def start(self, wake: Wake) -> None:
        """Subscribe as soon as there is a connection. Start the broker, unless it is started."""
        if self._subscription is not None:
            return
        self._wake = wake
        await self._broker.start()
        self._subscription = self._broker.subscribe(self._subject, self._receive, self._subscribed)
        self._signals.start()
        self._prober.start()

    async def notify(self, event_id: str) -> None:
        """Have a signal sent; while there is no connection, one is kept until there is."""
        self._signals.request(event_id)

    async def stop(self) -> None:
        """Send a last signal, then stop. The broker is stopped by its owner."""
        await self._signals.stop()
        await self._prober.stop(timeout=1.0)
        subscription, self._subscription = self._subscription, None
        self._proven = False
        if subscription is not None:
            subscription.cancel()

    def _receive(self, payload: bytes) -> None:
        self._heard_at = time.monotonic()
        self._proven = True
        self._heard.set()
        # Our own signal only proves that we hear: the publisher has woken this worker already.
        if payload.startswith(PROBE) or payload == self._own or self._wake is None:
            return
        self.received += 1
        self._wake()

    def _subscribed(self) -> None:
        """Reset on a new connection: nothing is proven, and signals may have been missed."""
        self._proven = False
        self._ready.set()
        self._probe_now.set()
        if self._wake is not None:
            self._wake()

    async def _send(self, event_id: str) -> None:
        while not self._broker.connected:
            self._ready.clear()
            await self._ready.wait()
        self._own = event_id.encode()
        await self._publish(self._own)

    async def _publish(self, payload: bytes) -> None:
        try:
            await self._broker.publish(self._subject, payload, confirm=True)
        except BrokerError as error:
            if self._broker.connected:
                self._refused(str(error))
            raise
        self._refused("")

    def _refused(self, reason: str) -> None:
        if bool(reason) != bool(self._refusal):
            if reason:
                log.warning("nats takes no signals", subject=self._subject, reason=reason)
            else:
                log.info("nats takes signals again", subject=self._subject)
        self._refusal = reason

    async def _probe(self) -> None:
        silence = time.monotonic() - self._heard_at if self._proven else 0.0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._probe_every - silence):
                await self._probe_now.wait()
        if not self._broker.connected:
            self._proven = False
            self._probe_now.clear()
            return
        if not self._probe_now.is_set() and self._subscription is not None and not self._proven:
            self._subscription.renew()  # the last probe was lost; the next follows when the server has it anew
            return
        self._probe_now.clear()
        lately = self._proven and time.monotonic() - self._heard_at < self._probe_every
        self._hearing(lately or await self._echo())

    async def _echo(self) -> bool:
        """Send a probe, and return whether anything arrives."""
        self._heard.clear()
        try:
            async with asyncio.timeout(PATIENCE):
                await self._publish(PROBE)
                await self._heard.wait()
        except (BrokerError, TimeoutError):
            return False
        return True

    def _hearing(self, hears: bool) -> None:
        self._proven = hears
        if hears == self._silent:
            report: Callable[..., object] = log.info if hears else log.warning
            report("nats hears again" if hears else "nats is deaf", subject=self._subject)
            self._silent = not hears
