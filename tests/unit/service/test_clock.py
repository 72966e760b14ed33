from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from runner.service.clock import earlier, wait_for

SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [(None, None, None), (SECOND, None, SECOND), (None, SECOND, SECOND), (2 * SECOND, SECOND, SECOND)],
)
def test_a_wait_without_end_is_the_longest(
    one: timedelta | None, other: timedelta | None, expected: timedelta | None
) -> None:
    assert earlier(one, other) == expected


@pytest.mark.parametrize("longest", [None, timedelta(hours=1)])
async def test_a_wait_ends_when_the_event_is_set(longest: timedelta | None) -> None:
    event = asyncio.Event()
    waiting = asyncio.create_task(wait_for(event, longest))
    await asyncio.sleep(0)
    assert not waiting.done()
    event.set()
    await waiting


@pytest.mark.parametrize("longest", [timedelta(milliseconds=1), timedelta(0), timedelta(seconds=-1)])
async def test_a_wait_ends_in_time_and_sets_nothing(longest: timedelta) -> None:
    event = asyncio.Event()
    await wait_for(event, longest)
    assert not event.is_set()
