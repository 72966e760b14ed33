"""What an event is given of the one that led to it."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import caused_by
from runner.event import Event
from runner.tracing.causation import HANDLED, caused, hops_of

HOPS = st.none() | st.integers(-(2**31), 2**31 - 1) | st.text(max_size=20) | st.booleans()


def event(id: str = "e", **extensions: str | int | bool) -> Event:
    return Event(type="t", source="/s", id=id, extensions=extensions)


def test_the_first_event_of_a_chain_gives_its_id_as_correlation() -> None:
    made = caused(event("b"), event("a"))
    assert made.extensions == {"correlationid": "a", "causationid": "a", "runnerhops": 1}


def test_the_correlation_goes_on_and_the_cause_is_always_the_last_event() -> None:
    made = caused(event("c"), caused(event("b"), event("a", correlationid="flow")))
    assert made.extensions == {"correlationid": "flow", "causationid": "b", "runnerhops": 2}


def test_what_the_publisher_gave_is_kept_but_for_the_hops() -> None:
    given = event("c", correlationid="x", causationid="y", tenant="acme", runnerhops=0)
    made = caused(given, event("b", correlationid="flow", runnerhops=7))
    assert made.extensions == {"correlationid": "x", "causationid": "y", "tenant": "acme", "runnerhops": 8}


def test_a_copy_of_the_handled_event_cannot_hide_a_circle() -> None:
    handled = event("a")
    for number in range(1, 40):
        handled = caused(handled.replace(id=str(number)), handled)
        assert hops_of(handled) == number


def test_an_id_that_is_too_long_is_not_passed_on() -> None:
    made = caused(event("b"), event("a" * 1025))
    assert made.extensions == {"runnerhops": 1}
    assert caused(event("b"), event("a" * 1024)).extensions["causationid"] == "a" * 1024


@given(given=HOPS, of_cause=HOPS)
def test_whatever_stands_for_hops_the_event_stays_a_valid_one(given: object, of_cause: object) -> None:
    cause = event("a") if of_cause is None else event("a", runnerhops=of_cause)  # type: ignore[arg-type]  # anything
    mine = event("b") if given is None else event("b", runnerhops=given)  # type: ignore[arg-type]  # anything
    made = caused(mine, cause)
    made.validate()
    assert hops_of(made) >= 1
    assert hops_of(made) >= hops_of(mine)


@pytest.mark.parametrize(("value", "hops"), [("3", 3), (3, 3), ("", 0), ("-1", 0), ("x", 0), (True, 0), ("٣", 0)])
def test_hops_may_have_come_through_a_header(value: str | int | bool, hops: int) -> None:
    assert hops_of(event(runnerhops=value)) == hops


async def test_a_block_is_caused_by_its_event_and_so_are_tasks_and_threads_begun_in_it() -> None:
    one = event("one")
    seen: list[Event | None] = []

    async def look() -> None:
        seen.append(HANDLED.get())

    with caused_by(one):
        task = asyncio.create_task(look())
        await asyncio.to_thread(lambda: seen.append(HANDLED.get()))
    await task
    thread = threading.Thread(target=lambda: seen.append(HANDLED.get()))
    thread.start()
    thread.join()
    assert seen == [one, one, None]
    assert HANDLED.get() is None
