"""Claims of events in flight: the one that is awaited, and those sent ahead."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from time import monotonic
from typing import Any

import structlog

from ..errors import text_of
from ..policies.limits import WorkerLimits
from ..storage.contract.claims import Claim
from .budget import Budget
from .intake import Intake

__all__ = ["ClaimsAhead"]

log = structlog.get_logger(__name__)


class ClaimsAhead:
    """
    Claim events, several times at once while that pays off, and return the answers in order.

    A claim counts as unanswered until its answer is taken: room is kept for what it may bring.
    """

    def __init__(self, intake: Intake, woken: asyncio.Event, budget: Budget, limits: WorkerLimits) -> None:
        """Args: woken is cleared whenever a claim is sent, because the claim sees everything due."""
        self._intake = intake
        self._woken = woken
        self._budget = budget
        self._limits = limits
        self._sent: deque[tuple[float, asyncio.Task[Claim]]] = deque()  # ahead, and when
        self._failed_at = 0.0  # when one has last failed
        self.unanswered = 0

    def __len__(self) -> int:
        return len(self._sent)

    def send(self, held: int) -> None:
        """Send as many claims as there is room for beside `held` events."""
        batch = self._limits.batch
        room = self._limits.ahead * batch - held - self.unanswered * batch
        for _ in range(room // batch):
            if self._budget.full:
                return
            self._sent.append((monotonic(), asyncio.create_task(self._claim(), name="claim ahead")))

    async def next(self) -> tuple[float, Claim]:
        """Return the answer to the oldest claim on its way, or to a new one, and when it was sent."""
        sent, claim = self._sent.popleft() if self._sent else (monotonic(), self._claim())
        try:
            return sent, await claim
        except BaseException:
            self._failed_at = monotonic()
            raise
        finally:
            self.unanswered -= 1

    def saw_everything(self, sent: float) -> bool:
        """Return whether a claim sent then has skipped no rows locked by a claim that failed since."""
        return sent > self._failed_at

    async def drain(self, timeout: float) -> AsyncIterator[tuple[float, Claim]]:
        """Yield the answers of claims in flight that arrive within `timeout` seconds; later ones expire."""
        claims, self._sent = {claim: sent for sent, claim in self._sent}, deque()
        self.unanswered -= len(claims)
        if not claims:
            return
        done, late = await asyncio.wait(claims, timeout=timeout)
        for claim in done:
            [ended] = await asyncio.gather(claim, return_exceptions=True)
            if isinstance(ended, BaseException):
                log.warning("claim failed", error=type(ended).__name__, detail=text_of(ended))
            else:
                yield claims[claim], ended
        for claim in late:
            claim.cancel()
        if late:
            await asyncio.wait(late, timeout=1.0)

    def _claim(self) -> Coroutine[Any, Any, Claim]:
        """Claim what is due now."""
        self._woken.clear()
        self.unanswered += 1
        return self._intake.claim(self._limits.batch)
