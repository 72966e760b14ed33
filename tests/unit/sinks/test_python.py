from __future__ import annotations

import asyncio
import contextvars
import functools
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from runner.delivery import ACCEPTED, Accepted, Deferred, Delivery, Failed, Outcome, Rejected
from runner.errors import SinkError
from runner.event import Event
from runner.sinks.python import PythonSink
from tests.support.eventually import eventually

DELIVERY = Delivery(Event(type="order.created", source="/shop", id="1"), "audit", 3)


async def deliver(handler: Callable[..., Any]) -> Outcome:
    sink = PythonSink(handler)
    await sink.start()
    try:
        return await sink.deliver(DELIVERY)
    finally:
        await sink.stop()


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (None, ACCEPTED),
        (True, ACCEPTED),
        (Accepted(), ACCEPTED),
        (Rejected("no"), Rejected("no")),
        (Failed("later"), Failed("later")),
        (Deferred(timedelta(seconds=9)), Deferred(timedelta(seconds=9))),
        (False, Failed("handler returned bool, expected None, True or an outcome")),
        (1, Failed("handler returned int, expected None, True or an outcome")),
        ("done", Failed("handler returned str, expected None, True or an outcome")),
    ],
)
async def test_answers(answer: object, outcome: Outcome) -> None:
    async def asynchronous(event: Event) -> object:
        return answer

    def synchronous(event: Event) -> object:
        return answer

    assert await deliver(asynchronous) == outcome
    assert await deliver(synchronous) == outcome


async def test_what_a_handler_is_called_with() -> None:
    calls: list[tuple[object, ...]] = []

    async def event_alone(event: Event) -> None:
        calls.append((event,))

    async def both(event: Event, attempt_of: Delivery) -> None:
        calls.append((event, attempt_of))

    async def by_name(event: Event, delivery: Delivery | None = None) -> None:
        calls.append((event, delivery))

    async def with_an_option(event: Event, retries: int = 3) -> None:
        calls.append((event, retries))

    async def anything(*arguments: object) -> None:
        calls.append(arguments)

    class Callable_:
        async def __call__(self, event: Event, delivery: Delivery) -> None:
            calls.append((event, delivery))

        def method(self, event: Event) -> None:
            calls.append((event, threading.current_thread() is threading.main_thread()))

    async def bound(extra: str, event: Event) -> None:
        calls.append((extra, event))

    for handler in (event_alone, both, by_name, with_an_option, anything, Callable_(), Callable_().method):
        await deliver(handler)
    await deliver(functools.partial(bound, "extra"))
    event = DELIVERY.event
    assert calls == [
        (event,),
        (event, DELIVERY),
        (event, DELIVERY),
        (event, 3),
        (event,),
        (event, DELIVERY),
        (event, False),
        ("extra", event),
    ]


@pytest.mark.parametrize(
    "handler", [lambda: None, lambda a, b, c: None, lambda *, event: None], ids=["none", "three", "keyword"]
)
def test_a_handler_that_cannot_be_called_is_refused(handler: Callable[..., Any]) -> None:
    with pytest.raises(SinkError, match=r"expected handler\(event\) or handler\(event, delivery\), got handler\("):
        PythonSink(handler)


async def test_exceptions_come_out_as_they_are() -> None:
    async def asynchronous(event: Event) -> None:
        raise LookupError("no such order")

    def synchronous(event: Event) -> None:
        raise LookupError("no such order")

    for handler in (asynchronous, synchronous):
        with pytest.raises(LookupError, match="no such order"):
            await deliver(handler)


async def test_nothing_a_handler_raises_ends_the_process_or_hangs() -> None:
    async def leaves(event: Event) -> None:
        sys.exit(1)

    def stops(event: Event) -> None:
        raise StopIteration

    def leaves_its_thread(event: Event) -> None:
        sys.exit(1)

    assert await deliver(leaves) == Failed("handler called sys.exit()")
    for handler, name in ((stops, "StopIteration"), (leaves_its_thread, "SystemExit")):
        with pytest.raises(RuntimeError, match=name):
            await asyncio.wait_for(deliver(handler), 5)


async def test_a_forgotten_await_is_named() -> None:
    async def inner() -> None: ...

    assert await deliver(lambda event: inner()) == Failed("handler returned a coroutine; declare it with 'async def'")


async def test_synchronous_handlers_run_side_by_side_up_to_the_limit() -> None:
    gate = threading.Event()
    running: list[str] = []

    def handler(event: Event) -> None:
        running.append(threading.current_thread().name)
        gate.wait(5)

    sink = PythonSink(handler, threads=3)
    deliveries = asyncio.gather(*(sink.deliver(DELIVERY) for _ in range(10)))
    await eventually(lambda: len(running) == 3)
    gate.set()
    assert await deliveries == [ACCEPTED] * 10
    assert len(set(running)) == 3
    await sink.stop()


async def test_a_cancelled_delivery_that_waits_for_a_thread_is_never_called() -> None:
    gate = threading.Event()
    calls: list[str] = []

    def handler(event: Event) -> None:
        calls.append(event.id)
        gate.wait(5)

    sink = PythonSink(handler, threads=1)
    first = asyncio.create_task(sink.deliver(DELIVERY))
    await eventually(lambda: calls)
    second = asyncio.create_task(sink.deliver(Delivery(Event(type="a", source="/", id="2"), "audit", 1)))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait({second})
    gate.set()
    assert await first is ACCEPTED
    assert await sink.deliver(DELIVERY) is ACCEPTED
    assert calls == ["1", "1"]
    await sink.stop()


async def test_a_synchronous_handler_sees_the_context_variables() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("seen")
    seen: list[str] = []
    await deliver(lambda event: seen.append(variable.get()))
    assert seen == ["seen"]


async def test_stop_does_not_wait_for_a_handler_and_start_works_again() -> None:
    gate = threading.Event()
    sink = PythonSink(lambda event: gate.wait(5) and None)
    stuck = asyncio.create_task(sink.deliver(DELIVERY))
    await asyncio.sleep(0)
    await sink.stop()
    await sink.stop()
    gate.set()
    assert await stuck is ACCEPTED
    await sink.start()
    assert await sink.deliver(DELIVERY) is ACCEPTED
    await sink.stop()


def test_a_handler_that_hangs_does_not_keep_the_process_alive() -> None:
    program = (
        "import asyncio, threading\n"
        "from runner.delivery import Delivery\n"
        "from runner.event import Event\n"
        "from runner.sinks.python import PythonSink\n"
        "async def main():\n"
        "    sink = PythonSink(lambda event: threading.Event().wait())\n"
        "    delivery = Delivery(Event(type='a', source='/'), 's', 1)\n"
        "    await asyncio.wait([asyncio.create_task(sink.deliver(delivery))], timeout=0.1)\n"
        "    await sink.stop()\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert ended.returncode == 0


async def test_a_target_is_found_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme_orders.py").write_text("async def handle(event):\n    raise LookupError(event.id)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    sink = PythonSink("acme_orders:handle")
    with pytest.raises(LookupError, match="1"):
        await sink.deliver(DELIVERY)


class Bad(Exception):
    def __str__(self) -> str:
        raise RuntimeError


PERMANENT = ("LookupError", f"{__name__}:Bad")


@pytest.mark.parametrize("raised", [LookupError("7"), KeyError("7"), Bad()], ids=repr)
async def test_an_exception_that_no_retry_can_help_rejects(raised: Exception) -> None:
    async def asynchronous(event: Event) -> None:
        raise raised

    def synchronous(event: Event) -> None:
        raise raised

    for handler in (asynchronous, synchronous):
        answer = await PythonSink(handler, permanent=PERMANENT).deliver(DELIVERY)
        assert isinstance(answer, Rejected)
        assert answer.reason.startswith(type(raised).__name__)


async def test_an_exception_about_a_batch_rejects_none_of_it_unless_it_is_of_one() -> None:
    async def handler(events: list[Event]) -> None:
        raise LookupError("7")

    sink = PythonSink(handler, permanent=PERMANENT)
    assert await sink.deliver_batch([DELIVERY]) == [Rejected("LookupError: 7")]
    with pytest.raises(LookupError):
        await sink.deliver_batch([DELIVERY] * 2)


async def test_any_other_exception_may_pass() -> None:
    async def handler(event: Event) -> None:
        raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        await PythonSink(handler, permanent=PERMANENT).deliver(DELIVERY)


@pytest.mark.parametrize("reference", ["Valueerror", "SystemExit", "int", "os:getcwd", "os:nothing", "acme:Bad", ""])
def test_what_is_no_exception_is_refused(reference: str) -> None:
    with pytest.raises(SinkError, match=r"^python: permanent: "):
        PythonSink(print, permanent=[reference])


@pytest.mark.parametrize("target", ["acme", "acme.nowhere:handle", "os:nothing", "os:sep"])
def test_a_target_that_cannot_be_used_is_refused(target: str) -> None:
    with pytest.raises(SinkError):
        PythonSink(target)


def test_an_asynchronous_handler_costs_neither_a_task_nor_a_thread() -> None:
    async def handler(event: Event) -> None: ...

    delivering = PythonSink(handler).deliver(DELIVERY)
    with pytest.raises(StopIteration) as ended:  # at the first step, without ever letting go
        delivering.send(None)
    assert ended.value.value is ACCEPTED


# --- batches ---------------------------------------------------------------------------------------

BATCH = [Delivery(Event(type="order.created", source="/shop", id=str(n)), "audit", 1) for n in range(3)]


@pytest.mark.parametrize(
    ("answer", "outcomes"),
    [
        (None, [ACCEPTED] * 3),
        (True, [ACCEPTED] * 3),
        (Failed("away"), [Failed("away")] * 3),
        ([None, Rejected("no"), True], [ACCEPTED, Rejected("no"), ACCEPTED]),
        ((None, "x"), [ACCEPTED, Failed("handler returned str, expected None, True or an outcome")]),
        ("abc", [Failed("handler returned str, expected None, True or an outcome")] * 3),
    ],
    ids=repr,
)
async def test_answers_to_a_batch(answer: object, outcomes: list[Outcome]) -> None:
    async def asynchronous(events: list[Event]) -> object:
        assert events == [each.event for each in BATCH]
        return answer

    def synchronous(events: list[Event], deliveries: list[Delivery]) -> object:
        assert threading.current_thread() is not threading.main_thread()
        assert (events, deliveries) == ([each.event for each in BATCH], BATCH)
        return answer

    for handler in (asynchronous, synchronous):
        sink = PythonSink(handler)
        assert await sink.deliver_batch(BATCH) == outcomes
        await sink.stop()


async def test_what_a_handler_of_batches_raises_comes_out_as_it_is() -> None:
    async def breaks(events: list[Event]) -> None:
        raise LookupError("no such order")

    async def leaves(events: list[Event]) -> None:
        sys.exit(1)

    with pytest.raises(LookupError, match="no such order"):
        await PythonSink(breaks).deliver_batch(BATCH)
    assert await PythonSink(leaves).deliver_batch(BATCH) == [Failed("handler called sys.exit()")] * 3
