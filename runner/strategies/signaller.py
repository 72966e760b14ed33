"""The sending half of a push strategy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from ..errors import StrategyError
from ..service.background import Background

__all__ = ["Signaller"]

log = structlog.get_logger(__name__)

SPACING = 0.001  # seconds from the end of one signal to the next, however many are asked for
RETRY_AFTER = 0.25  # seconds
FLUSH_TIMEOUT = 1.0  # seconds a last signal gets to go out when we stop


class Signaller:
    """
    Send signals one at a time, in the background.

    Signals requested while one is being sent are merged into one, which is sent afterwards. A failed signal is kept and
    retried, so that a peer that comes back gets one signal and no burst.
    """

    def __init__(self, name: str, send: Callable[[str], Awaitable[None]], *, away: asyncio.Event | None = None) -> None:
        """
        Send what is requested from `start()` on.

        Args:
            send: delivers one signal, waiting for its connection if need be, or raises `StrategyError`.
            away: is set while it is known that no connection can be made.
        """
        self.sent = 0
        self.failed = 0
        self.unsent = False  # whether the last signal was given up by `stop()`
        self._away = away or asyncio.Event()
        self._name = name
        self._send = send
        self._latest = ""
        self._asked = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop = Background(f"{name} signaller", self._step)
        self._running = False

    def request(self, event_id: str) -> None:
        """Have a signal sent as soon as possible."""
        self._latest = event_id
        self._idle.clear()
        self._asked.set()

    def start(self) -> None:
        """Begin to send."""
        self._running = True
        self.unsent = False
        self._loop.start()

    async def stop(self) -> None:
        """Give a waiting signal a moment to go out, unless its peer is away, then stop."""
        if not self._running:
            return
        self._running = False
        waits = [asyncio.create_task(each.wait()) for each in (self._idle, self._away)]
        try:
            await asyncio.wait(waits, timeout=FLUSH_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
        self.unsent = not self._idle.is_set()
        await self._loop.stop(timeout=1.0)
        self._asked.clear()
        self._idle.set()

    async def _step(self) -> None:
        await self._asked.wait()
        self._asked.clear()
        try:
            await self._send(self._latest)
        except StrategyError as error:
            self.failed += 1
            log.debug("signal failed", strategy=self._name, detail=str(error))
            self.request(self._latest)
            await asyncio.sleep(RETRY_AFTER)
            return
        except BaseException:
            self._asked.set()  # the loop logs the error, and sends it again
            raise
        self.sent += 1
        if not self._asked.is_set():
            self._idle.set()
        await asyncio.sleep(SPACING)
