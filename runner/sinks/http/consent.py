"""The consent of a receiver to deliveries (Web Hooks for Event Delivery 1.0.2 §4): asked for, and kept for an hour."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

import structlog

from ...delivery import Withheld
from ...service.backoff import doubling
from .answer import Answer
from .client import Client
from .connection import NoAnswer
from .outcomes import retry_after

__all__ = ["Consent", "Pace"]

log = structlog.get_logger(__name__)

_LASTS = 3600.0  # seconds that a consent is taken for granted
_FIRST, _LONGEST = 10.0, 600.0  # seconds until a receiver without consent is asked again
_READ = 1024  # bytes of the body of the answer, which means nothing
_NEAR = 2.0  # seconds that a delivery waits here for its turn
_FAR = 3600.0  # seconds that one is put off at most
_RATE = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)


class Pace:
    """
    So many requests a minute, evenly.

    A delivery whose turn is near waits for it. Others are put off, each to a turn of its own, so that they do not all
    come back at once.
    """

    def __init__(
        self,
        per_minute: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Begin with a free turn."""
        self.per_minute = per_minute
        self._interval = 60.0 / per_minute
        self._clock = clock
        self._sleep = sleep
        self._next = 0.0  # when the next turn is
        self._planned = 0.0  # the latest turn that a delivery was put off to

    async def turn(self) -> float:
        """Wait for a turn that is near and return zero; else return the seconds until one that is far."""
        now = self._clock()
        turn = max(now, self._next)
        if turn - now > _NEAR:
            self._planned = min(max(self._planned, turn) + self._interval, now + _FAR)
            return self._planned - now
        self._next = turn + self._interval
        if turn > now:
            await self._sleep(turn - now)
        return 0.0


class Consent:
    """
    Whether one receiver wants deliveries, and how many.

    One request is under way at most, and all deliveries that need its answer wait for it.
    """

    def __init__(
        self, client: Client, origin: str, *, required: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Ask through `client`.

        Args:
            origin: the DNS name that all senders of this system go by.
            required: whether nothing is sent without consent; else that is only logged.
        """
        self.header = {"webhook-request-origin": origin}
        self._client = client
        self._origin = origin
        self._required = required
        self._clock = clock
        self._until = 0.0  # when it is asked for again
        self._refusal = ""  # why there is none
        self._waits = doubling(_FIRST, _LONGEST)
        self._pace: Pace | None = None
        self._asking: asyncio.Task[None] | None = None

    async def stop(self) -> None:
        """Give up what is under way, and forget the answer."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})
            self._asking = None
        self._until, self._pace = 0.0, None

    async def withheld(self) -> Withheld | None:
        """Return why nothing may be sent now; None where one request may, and then it has its turn."""
        if self._clock() >= self._until:
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask(), name="webhook consent")
            await asyncio.wait({self._asking})  # it goes on if this delivery is cancelled
        if self._refusal and self._required:
            return Withheld(self._refusal, timedelta(seconds=max(0.0, self._until - self._clock())))
        if self._pace is not None and (wait := await self._pace.turn()):
            permitted = f"{self._client.peer}: it permits {self._pace.per_minute} requests a minute"
            return Withheld(permitted, timedelta(seconds=wait), blameless=True)
        return None

    async def _ask(self) -> None:
        try:
            answer = await self._client.options(self.header, _READ)
        except NoAnswer as error:
            self._refuse(str(error))
            return
        allowed = answer.headers.get("webhook-allowed-origin")
        if allowed is None:
            wait = retry_after(answer.headers) if answer.status in (429, 503) else None
            self._refuse(f"no consent to deliveries: HTTP {answer.status} without WebHook-Allowed-Origin", wait)
        elif allowed != "*" and allowed.lower() != self._origin.lower():
            self._refuse(f"no consent to deliveries: WebHook-Allowed-Origin is neither * nor {self._origin}")
        else:
            self._agree(answer)

    def _agree(self, answer: Answer) -> None:
        rate = answer.headers.get("webhook-allowed-rate", "*")
        number = int(rate) if _RATE.fullmatch(rate) else None
        if number is None:
            self._pace = None
        elif self._pace is None or self._pace.per_minute != number:
            self._pace = Pace(number, clock=self._clock)
        if self._refusal:
            log.info("webhook consent", peer=self._client.peer)
        self._refusal, self._until = "", self._clock() + _LASTS
        self._waits = doubling(_FIRST, _LONGEST)

    def _refuse(self, reason: str, wait: timedelta | None = None) -> None:
        if not self._refusal:
            log.warning("no webhook consent", peer=self._client.peer, detail=reason, delivering=not self._required)
        seconds = next(self._waits)
        if wait is not None:
            seconds = min(max(seconds, wait.total_seconds()), _LASTS)
        self._refusal, self._until = f"{self._client.peer}: {reason}", self._clock() + seconds
