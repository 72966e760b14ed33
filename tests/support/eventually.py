"""Waiting for a condition, in place of sleeping for a guess."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast, overload

PATIENCE = 30.0
"""Seconds that what must come may take on a busy machine; a limit says nothing of how quick a thing is."""

T = TypeVar("T")


@overload
async def eventually(check: Callable[[], Awaitable[T]], timeout: float = PATIENCE, every: float = 0.01) -> T: ...


@overload
async def eventually(check: Callable[[], T | None], timeout: float = PATIENCE, every: float = 0.01) -> T: ...


async def eventually(check: Callable[[], T | Awaitable[T]], timeout: float = PATIENCE, every: float = 0.01) -> T:
    """Return what `check` returns as soon as that is true; seconds throughout.

    An `AssertionError` of the check counts as "not yet"; any other error is raised at once. When the time
    is over, the last answer or assertion is in the message.
    """
    deadline = time.monotonic() + timeout
    while True:
        failure: AssertionError | None = None
        last: object = None
        try:
            answer = check()
            last = await answer if inspect.isawaitable(answer) else answer
            if last:
                return cast("T", last)
        except AssertionError as error:
            failure = error
        if time.monotonic() >= deadline:
            raise AssertionError(f"not so within {timeout} s; last seen: {failure or repr(last)}") from failure
        await asyncio.sleep(every)
