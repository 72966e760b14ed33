"""Subscribers inside the runner's process, for `python` sinks; each writes down what it sees in `deliveries.jsonl`."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
import time
from functools import cache

from runner import Delivery, Event

from .journals import Pen, Sighting, digest, now

PATIENCE = 4.0  # seconds that `endure` takes: longer than the lease
ENDLESS = 60.0


async def note(event: Event, delivery: Delivery) -> None:
    """Accept at once."""
    await _see(event, delivery, 0.0)


async def work(event: Event, delivery: Delivery) -> None:
    """Accept after 50 ms, so that a fault finds deliveries running."""
    await _see(event, delivery, 0.05)


async def toil(event: Event, delivery: Delivery) -> None:
    """Accept after a second: longer than the grace of a dispatch, so that each delivery has a lease of its own."""
    await _see(event, delivery, 1.0)


async def endure(event: Event, delivery: Delivery) -> None:
    """Accept after more than a lease."""
    await _see(event, delivery, PATIENCE)


async def hang(event: Event, delivery: Delivery) -> None:
    """Accept after longer than any stop waits."""
    await _see(event, delivery, ENDLESS)


async def stumble(event: Event, delivery: Delivery) -> None:
    """Fail the first two attempts."""
    _write("begun", event, delivery)
    if delivery.attempt < 3:
        _write("failed", event, delivery)
        raise RuntimeError("stumbled")
    _write("accepted", event, delivery)


async def refuse(event: Event, delivery: Delivery) -> None:
    """Fail every time, and note nothing."""
    raise RuntimeError("refused")


async def end(event: Event, delivery: Delivery) -> None:
    """End the process, without a word."""
    _write("begun", event, delivery)
    os._exit(1)


async def crash(event: Event, delivery: Delivery) -> None:
    """Read where there is no memory."""
    _write("begun", event, delivery)
    ctypes.string_at(0)


async def spin(event: Event, delivery: Delivery) -> None:
    """Never let go of the event loop."""
    _write("begun", event, delivery)
    while True:
        pass


async def block(event: Event, delivery: Delivery) -> None:
    """Hold the event loop for longer than a lease: the failure comes too late to count."""
    _write("begun", event, delivery)
    time.sleep(PATIENCE)  # noqa: ASYNC251  # the fault itself
    raise RuntimeError("blocked")


async def leave(event: Event, delivery: Delivery) -> None:
    """Leave, as a script would."""
    _write("begun", event, delivery)
    _write("failed", event, delivery)
    sys.exit(3)


async def revolt(event: Event, delivery: Delivery) -> None:
    """Raise what is no `Exception`."""
    _write("begun", event, delivery)
    _write("failed", event, delivery)
    raise BaseException("revolted")


async def devour(event: Event, delivery: Delivery) -> None:
    """Take two gigabytes."""
    _write("begun", event, delivery)
    _write("failed", event, delivery)
    taken = bytearray(2 * 2**30)
    raise AssertionError(f"there were {len(taken)} bytes")


async def perish(event: Event, delivery: Delivery) -> None:
    """End its own task at the first two attempts, each time in another way."""
    await _perish(event, delivery, 0.0)


async def linger(event: Event, delivery: Delivery) -> None:
    """Do the same after longer than the grace of a dispatch, so that each delivery has a lease of its own by then."""
    await _perish(event, delivery, 0.3)


def sleep(event: Event, delivery: Delivery) -> None:
    """Keep a thread for longer than any timeout."""
    _write("begun", event, delivery)
    _write("failed", event, delivery)
    time.sleep(ENDLESS)


async def _perish(event: Event, delivery: Delivery, seconds: float) -> None:
    _write("begun", event, delivery)
    await asyncio.sleep(seconds)
    task = asyncio.current_task()
    assert task is not None
    if delivery.attempt < 3:
        _write("failed", event, delivery)
        await WAYS[(int(event.id[-6:]) + delivery.attempt) % len(WAYS)](task)
        raise AssertionError("it goes on")
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    _write("accepted", event, delivery)


async def _cancel_itself(task: asyncio.Task[object]) -> None:
    task.cancel()
    await asyncio.sleep(ENDLESS)


async def _cancel_itself_twice(task: asyncio.Task[object]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(ENDLESS)
    task.cancel()
    await asyncio.sleep(ENDLESS)


async def _be_cancelled_by_a_child(task: asyncio.Task[object]) -> None:
    async def child() -> None:
        task.cancel()

    await asyncio.gather(child(), asyncio.sleep(ENDLESS))


async def _cancel_in_a_group(task: asyncio.Task[object]) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(ENDLESS))
        task.cancel()


async def _raise_generator_exit(_: asyncio.Task[object]) -> None:
    raise GeneratorExit


async def _raise_cancelled_error(_: asyncio.Task[object]) -> None:
    raise asyncio.CancelledError


WAYS = (
    _cancel_itself,
    _cancel_itself_twice,
    _be_cancelled_by_a_child,
    _cancel_in_a_group,
    _raise_generator_exit,
    _raise_cancelled_error,
)


async def _see(event: Event, delivery: Delivery, seconds: float) -> None:
    _write("begun", event, delivery)
    if seconds:
        await asyncio.sleep(seconds)
    _write("accepted", event, delivery)


def _write(step: str, event: Event, delivery: Delivery) -> None:
    line = Sighting(
        event.id,
        delivery.subscription,
        delivery.attempt,
        step,  # type: ignore[arg-type]  # one of the three
        now(),
        os.getpid(),
        digest(event.data),
    )
    _pen().write(line, sync=step == "accepted")


@cache
def _pen() -> Pen:
    return Pen("deliveries.jsonl")  # in the working directory, which is the deployment's
