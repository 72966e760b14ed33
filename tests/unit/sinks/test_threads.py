from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from runner.sinks.threads import Threads
from tests.support.eventually import eventually


class Payload:
    """Something that can be seen to be gone."""


async def test_a_cancelled_call_leaves_nothing_behind_while_every_thread_is_stuck() -> None:
    threads = Threads("test", 1)
    gate = threading.Event()
    stuck = threads.submit(gate.wait, 10)
    payloads = [Payload() for _ in range(100)]
    gone = [weakref.ref(payload) for payload in payloads]
    waiting = [threads.submit(id, payload) for payload in payloads]
    for future in waiting:
        future.cancel()
    await asyncio.wait(waiting)
    payloads.clear()
    waiting.clear()
    del future
    gc.collect()
    assert [reference() for reference in gone] == [None] * 100
    assert not stuck.done()
    gate.set()
    assert await stuck
    assert await threads.submit(len, "after") == 5
    threads.close()


async def test_calls_are_made_in_the_order_in_which_they_came() -> None:
    threads = Threads("test", 1)
    gate = threading.Event()
    made: list[int] = []
    stuck = threads.submit(gate.wait, 10)
    calls = [threads.submit(made.append, number) for number in range(5)]
    cancelled = calls.pop(2)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    gate.set()
    await stuck
    await asyncio.gather(*calls)
    assert made == [0, 1, 3, 4]
    threads.close()


async def test_closing_ends_the_threads_after_the_calls_that_wait() -> None:
    threads = Threads("closing", 2)
    gate = threading.Event()
    calls = [threads.submit(gate.wait, 10) for _ in range(4)]
    threads.close()
    gate.set()
    assert await asyncio.gather(*calls) == [True] * 4
    await eventually(lambda: not any(each.name.startswith("closing-") for each in threading.enumerate()))
    assert await threads.submit(len, "again") == 5
    threads.close()


async def test_without_a_thread_a_call_fails_and_the_next_one_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process has only so many: those that could not be started must not count as started."""
    threads, made = Threads("scarce", 2), list[int]()

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refuse)
        for number in range(5):
            with pytest.raises(RuntimeError, match="no thread can be started"):
                threads.submit(made.append, number)
    await threads.submit(made.append, 5)
    assert made == [5]  # and not what has failed already
    gate = threading.Event()
    stuck = threads.submit(gate.wait, 10)
    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refuse)
        waiting = threads.submit(made.append, 6)  # there is one, so it waits
    gate.set()
    await asyncio.gather(stuck, waiting)
    assert made == [5, 6]
    threads.close()
