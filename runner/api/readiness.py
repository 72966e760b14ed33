"""Readiness: whether the store answers, with tables of this version."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic

import structlog

from ..errors import RunnerError, StorageUnavailable
from ..service.background import spawn

__all__ = ["Readiness"]

log = structlog.get_logger(__name__)

_FRESH = 1.0  # seconds for which an answer of the store is used again
_PATIENCE = 2.0  # seconds that a probe waits for the store


class Readiness:
    """
    Whether the store answers, with tables of this version; asked at most once a second.

    A look that hangs is never cancelled, because that would leave its statement behind; a probe does not wait for it.
    """

    def __init__(self, look: Callable[[], Awaitable[bool]]) -> None:
        """Args: look asks the store whether its tables are at head; it raises when that does not answer."""
        self._look = look
        self._asked = 0.0
        self._asking: asyncio.Task[None] | None = None
        self.store = False  # whether it answered the last look
        self.tables: bool | None = None  # whether its tables are at head; None while it has never answered

    async def refresh(self) -> None:
        """Ask the store, unless it was asked a moment ago; return without an answer after two seconds."""
        if self._asking is None:
            if self._asked and monotonic() - self._asked < _FRESH:
                return
            self._asking = spawn(self._ask(), "readiness")
        done, _ = await asyncio.wait({self._asking}, timeout=_PATIENCE)
        if not done:
            self.store = False

    async def _ask(self) -> None:
        try:
            self.tables = await self._look()
            self.store = True
        except StorageUnavailable:
            self.store = False
        except RunnerError as error:  # it answers, with tables of another deployment or version
            self.store, self.tables = True, False
            log.warning("not ready", detail=str(error))
        finally:
            self._asked = monotonic()
            self._asking = None
