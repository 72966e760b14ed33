"""The end of a part, which must not keep the others from ending."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from ..errors import RunnerError, text_of
from .background import meant_for_task

__all__ = ["end"]

log = structlog.get_logger(__name__)


async def end(part: str, stop: Callable[[], Awaitable[None]], timeout: float | None = None) -> None:
    """Stop one part, and log its errors; wait at most `timeout` seconds."""
    try:
        async with asyncio.timeout(timeout):
            await stop()
    except BaseException as error:
        if meant_for_task(error):
            raise
        detail = {"detail": text_of(error)} if isinstance(error, RunnerError) else {}
        log.warning("did not stop as it should", part=part, error=type(error).__name__, **detail)
