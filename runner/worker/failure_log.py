"""The log of failed deliveries, with a limit on its rate."""

from __future__ import annotations

from time import monotonic

import structlog

from ..delivery import DeliveryState
from ..storage.contract.settlements import DeliveryRecord

__all__ = ["FailureLog"]

log = structlog.get_logger(__name__)

_EVERY = 1.0  # seconds between two lines about the same subscription and the same end


class FailureLog:
    """Log failed attempts and dead deliveries, at most one line a second for each subscription, with their number."""

    def __init__(self, every: float = _EVERY) -> None:
        """Args: every is in seconds."""
        self._every = every
        self._silent: dict[tuple[str, DeliveryState], tuple[float, int]] = {}  # until when, and how many since

    def note(self, subscription: str, record: DeliveryRecord) -> None:
        """Log one delivery as it was written, if it has failed."""
        if record.error is None:
            return
        key = (subscription, record.state)
        until, count = self._silent.get(key, (0.0, 0))
        now = monotonic()
        if now < until:
            self._silent[key] = (until, count + 1)
            return
        self._silent[key] = (now + self._every, 0)
        more = {"and_more": count} if count else {}
        fields = {"subscription": subscription, "seq": record.seq, "attempt": record.attempts, "reason": record.error}
        if record.state is DeliveryState.DEAD:
            log.warning("delivery dead", **fields, **more)
        else:
            log.info("delivery failed", **fields, retry_in=round(record.due_in.total_seconds(), 3), **more)
