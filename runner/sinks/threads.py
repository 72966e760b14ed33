"""Threads for calls that block: a slow pipe, a synchronous handler."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["Threads"]

T = TypeVar("T")


class Threads:
    """
    At most `limit` threads, started as they are needed.

    Unlike those of `ThreadPoolExecutor` they are daemons: a call that never returns cannot keep the
    process from ending.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._calls = _Calls()
        self._idle = threading.Semaphore(0)
        self._started = 0

    def submit(self, function: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """
        Call `function` in a thread, in the caller's context; return the future of its answer.

        Cancelling that future drops the call if it still waits for a thread; one that runs goes on.
        An exception that would end a thread or confuse a future comes out as `RuntimeError`.
        """
        future: Future[T] = Future()
        self._calls.put(future, functools.partial(contextvars.copy_context().run, function, *arguments))
        future.add_done_callback(self._calls.drop)
        if not self._idle.acquire(blocking=False) and self._started < self._limit:
            self._start(future)
        return asyncio.wrap_future(future)

    def close(self) -> None:
        """End the threads as they become free, after the calls that wait already. A later call starts new ones."""
        self._calls.close()
        self._started = 0
        self._calls, self._idle = _Calls(), threading.Semaphore(0)

    def _start(self, future: Future[Any]) -> None:
        """Start another thread. If none can be started, the call waits for another one, or fails."""
        thread = threading.Thread(target=self._work, name=f"{self._name}-{self._started + 1}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if not self._started:
                future.cancel()
                raise RuntimeError("no thread can be started for it") from error
        else:
            self._started += 1

    def _work(self) -> None:
        calls, idle = self._calls, self._idle
        while (item := calls.get()) is not None:
            _run(*item)
            del item  # or the last answer is kept until the next call
            idle.release()


class _Calls:
    """The calls that wait for a thread, first come, first served."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Future[Any], Callable[[], Any]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, future: Future[Any], call: Callable[[], Any]) -> None:
        with self._changed:
            self._waiting[future] = call
            self._changed.notify()

    def get(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        """Wait for the next call; None once no more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return self._waiting.popitem(last=False) if self._waiting else None

    def drop(self, future: Future[Any]) -> None:
        """Remove a cancelled call, so that its arguments are freed at once."""
        with self._changed:
            self._waiting.pop(future, None)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _run(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        answer = call()
    except BaseException as error:
        future.set_exception(error if _harmless(error) else _wrapped(error))
    else:
        future.set_result(answer)


def _harmless(error: BaseException) -> bool:
    return isinstance(error, Exception) and not isinstance(error, StopIteration)


def _wrapped(error: BaseException) -> RuntimeError:
    wrapped = RuntimeError(f"{type(error).__name__} was raised")
    wrapped.__cause__ = error
    return wrapped
