"""Run checks within a time budget."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from ..errors import RunnerError, readable
from .verdict import Finding, fault

__all__ = ["in_thread", "performed"]

R = TypeVar("R")


async def performed(
    check: str, work: Callable[[], Awaitable[Sequence[Finding]]], budget: float
) -> tuple[Sequence[Finding], bool]:
    """
    Run one check; return its findings, and whether it finished.

    Args:
        budget: seconds; a check that takes longer is a finding by itself, and so is one that fails.
    """
    try:
        async with asyncio.timeout(budget):
            return await work(), True
    except TimeoutError:
        cure = "see why it takes so long, or give it more time: --timeout 30s"
        return [fault(check, "no_answer", f"no answer within {budget:g} s", cure)], False
    except RunnerError as error:
        cure = "see docs/troubleshooting.md; `runner check --online` tries the same connections"
        return [fault(check, "failed", readable(str(error)), cure)], False
    except Exception as error:
        if os.environ.get("RUNNER_DEBUG", "") not in ("", "0"):
            raise
        # Its text may repeat a statement or a value.
        cure = "RUNNER_DEBUG=1 runner doctor shows where; report it, with the version of the runner"
        return [fault(check, "failed", f"the check itself failed by {type(error).__name__}", cure)], False


async def in_thread(function: Callable[..., R], *args: object) -> R:
    """
    Run `function` in a thread of its own, and await it.

    Unlike a thread of an executor, it does not delay the exit of the process while a name server or a network file
    system hangs.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[R] = loop.create_future()

    def settle(result: R | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # it is an R where there is no error

    def run() -> None:
        result, failure = None, None
        try:
            result = function(*args)
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="doctor", daemon=True).start()
    return await future
