"""Back-off: the waits between retries."""

from __future__ import annotations

from collections.abc import Iterator

import structlog

from ..errors import StorageError, StorageUnavailable, text_of

__all__ = ["Backoff", "doubling"]

log = structlog.get_logger(__name__)

_FEW = 3  # failures in a row


def doubling(first: float, longest: float) -> Iterator[float]:
    """Yield the waits between retries, each twice the one before, at most `longest`."""
    wait = first
    while True:
        yield wait
        wait = min(2 * wait, longest)


class Backoff:
    """
    The waits between retries, and the rate-limited log of the failures.

    Each wait is twice the one before. The log hears of the first few failures in a row, then of every one whose number
    is a power of two. Errors of an unreachable store are not logged if the outage was; otherwise the first few are not,
    since connections break and are made again.
    """

    def __init__(self, pause: float, longest: float) -> None:
        """Args: both in seconds."""
        self._pause = pause
        self._longest = longest
        self.reset()

    def reset(self) -> None:
        """Begin anew, after a success."""
        self._failures = 0
        self._waits = doubling(self._pause, self._longest)

    def failed(self, event: str, error: BaseException, **fields: object) -> float:
        """Log the failure as `event`, and return how many seconds to wait."""
        self._failures += 1
        number = self._failures
        wait = next(self._waits)
        logged = isinstance(error, StorageError) and error.logged
        minor = logged or (isinstance(error, StorageUnavailable) and number <= _FEW)
        if number <= _FEW or number & (number - 1) == 0:
            tell = log.debug if minor else log.warning
            kind, detail = type(error).__name__, text_of(error)
            tell(event, **fields, error=kind, detail=detail, failures=number, retry_in=wait)
        return wait
