"""The number of waiting events and deliveries, looked up on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING

import structlog

from ..errors import RunnerError, StorageUnavailable
from ..service.background import spawn

if TYPE_CHECKING:
    from ..storage.contract.depths import Depths

__all__ = ["DepthGauge"]

log = structlog.get_logger(__name__)

_FRESH = 5.0  # seconds for which a result is used again
_PATIENCE = 5.0  # seconds that a caller waits for a new one


class DepthGauge:
    """Read the depths of the store with one query, at most once in five seconds whatever the number of callers."""

    def __init__(self, read: Callable[[], Awaitable[Depths]]) -> None:
        self._read = read
        self._seen: Depths | None = None
        self._looked = -_FRESH
        self._looking: asyncio.Task[None] | None = None

    async def look(self, fresh: float = _FRESH) -> Depths | None:
        """Return the depths, at most `fresh` seconds old; None while the store does not answer."""
        if self._looking is None and monotonic() - self._looked >= fresh:
            self._looking = spawn(self._look(), "depths")
        if self._looking is not None:
            # Never cancelled: that would leave its statement behind.
            done, _ = await asyncio.wait({self._looking}, timeout=_PATIENCE)
            if not done:
                return None
        return self._seen

    async def _look(self) -> None:
        try:
            self._seen = await self._read()
        except StorageUnavailable:
            self._seen = None
        except RunnerError as error:
            self._seen = None
            log.warning("depths unknown", detail=str(error))
        finally:
            self._looked = monotonic()
            self._looking = None
