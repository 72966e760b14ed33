from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from runner.policies.filter import FilterError
from runner.storage.contract.registry import Registered, Registry
from runner.subscription import Subscription
from runner.worker.breaker_sync import BreakerSync
from runner.worker.outlet import Slots
from runner.worker.roster import Roster

from .deliveries import FunctionSink, accept


class Subscriptions:
    def __init__(self, *registered: Registered) -> None:
        self.version = 1
        self.registered = registered

    async def subscriptions(self) -> tuple[int, Sequence[Registered]]:
        return self.version, self.registered


def registered(id: int = 1, *, paused: bool = False, **fields: Any) -> Registered:
    return Registered(id, Subscription(**{"name": f"sub-{id}", "sink": "sink", **fields}), paused, "file")


async def notify() -> None: ...


@pytest.fixture
def store() -> Subscriptions:
    return Subscriptions(registered())


@pytest.fixture
def roster(store: Subscriptions) -> Roster:
    registry, sinks = cast("Registry", store), {"sink": FunctionSink(accept)}
    breaker_sync = BreakerSync(registry, notify)
    return Roster(
        registry,
        sinks,
        Slots(1),
        breaker_sync,
        on_load=lambda _: None,
        on_lane_end=lambda _: None,
        on_breaker_change=lambda _: None,
    )


async def test_an_outlet_stays_while_its_subscription_does(roster: Roster, store: Subscriptions) -> None:
    await roster.load()
    [one] = roster.outlets.values()
    store.registered = (registered(paused=True), registered(2))
    await roster.load()
    assert roster.outlets[1] is one
    assert roster.serves([one])
    assert roster.closed == {one}
    store.registered = (registered(concurrency=7),)
    await roster.load()
    assert roster.outlets[1] is not one
    assert not roster.note_breaker(one)
    assert (roster.name_of(1), roster.name_of(2)) == ("sub-1", "2")


async def test_what_does_not_compile_changes_nothing(roster: Roster, store: Subscriptions) -> None:
    await roster.load()
    before = dict(roster.outlets)
    store.version, store.registered = 2, (registered(concurrency=7), registered(2, filter={"no": "dialect"}))
    with pytest.raises(FilterError):
        await roster.load()
    assert (roster.outlets, roster.version) == (before, 1)
