"""What an operator wants to be told of is published, once, and never about itself."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from runner import Event, Rejected, Runner, StorageUnavailable, load
from runner.periodic.scheduler import Missed
from runner.policies.breaker import BreakerPolicy
from runner.policies.retry import RetryPolicy
from tests.support.eventually import eventually

from .buses import Bus, running

ON = "lifecycle: true\n"


@pytest.fixture(params=["sqlite", "postgres"])
def dsn(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("tables_file" if request.param == "sqlite" else "tables_dsn"))


@pytest.fixture
async def bus(dsn: str, tmp_path: Path) -> AsyncIterator[Bus]:
    async with running(tmp_path, dsn) as bus:
        yield bus


class Alerts:
    """A subscription to all lifecycle events."""

    def __init__(self) -> None:
        self.seen: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.seen.append(event)

    async def of(self, type: str) -> Event:
        async def found() -> Event:
            return next(each for each in self.seen if each.type == type)

        def there() -> bool:
            return any(each.type == type for each in self.seen)

        await eventually(there)
        return await found()


@contextlib.asynccontextmanager
async def watched(bus: Bus, more: str = ON, **handlers: Any) -> AsyncIterator[tuple[Runner, Alerts]]:
    runner, alerts = load(bus.write(more)), Alerts()
    runner.subscribe("alerts", alerts, types=["runner.*"], source="/runner/test")
    for name, (handler, options) in handlers.items():
        runner.subscribe(name, handler, **options)
    async with runner:
        await eventually(lambda: runner.worker.roster.version >= 0)  # a change before the first load is no news
        yield runner, alerts


async def test_a_dead_delivery(bus: Bus) -> None:
    def refuse(event: Event) -> Rejected:
        return Rejected("no such customer")

    async with watched(bus, picky=(refuse, {"types": ["a"]})) as (runner, alerts):
        receipt = await runner.publish(Event.new("a", source="/s"))
        event = await alerts.of("runner.delivery.dead")
        assert (event.source, event.subject) == ("/runner/test", "picky")
        assert event.json() == {"seq": receipt.seq, "reason": "no such customer", "attempts": 1}


async def test_a_breaker_that_opens_and_closes(bus: Bus) -> None:
    down = True

    async def flaky(event: Event) -> None:
        if down:
            raise RuntimeError("down")

    moment = timedelta(milliseconds=50)
    policy = BreakerPolicy(failures=1, pause=moment, max_pause=moment)
    options = {"types": ["a"], "breaker": policy, "retry": RetryPolicy(delay=moment, max_delay=moment)}
    async with watched(bus, flaky=(flaky, options)) as (runner, alerts):
        await runner.publish(Event.new("a", source="/s"))
        event = await alerts.of("runner.breaker.opened")
        assert (event.subject, event.json()["trip"]) == ("flaky", 1)
        down = False
        assert (await alerts.of("runner.breaker.closed")).subject == "flaky"


async def test_a_subscription_that_is_paused_and_resumed(bus: Bus) -> None:
    async with watched(bus, other=(lambda event: None, {"types": ["a"]})) as (runner, alerts):
        await runner._operations.subscriptions.set_paused("other", True, "ops")
        event = await alerts.of("runner.subscription.paused")
        assert (event.subject, event.json()) == ("other", {"by": "ops"})
        await runner._operations.subscriptions.set_paused("other", False, "ops")
        assert (await alerts.of("runner.subscription.resumed")).subject == "other"


async def test_a_store_that_is_lost_and_comes_back(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    async with watched(bus) as (runner, alerts):
        heartbeat = runner._heartbeat

        async def away(*_: object) -> None:
            raise StorageUnavailable("away")

        with monkeypatch.context() as patched:
            patched.setattr(heartbeat._registry, "beat", away)
            for _ in range(2):
                with pytest.raises(StorageUnavailable):
                    await heartbeat.beat()
        await heartbeat.beat()
        assert "instance" in (await alerts.of("runner.store.lost")).json()
        await alerts.of("runner.store.back")
        assert [each.type for each in alerts.seen].count("runner.store.lost") == 1


async def test_ticks_that_were_missed(bus: Bus) -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    async with watched(bus) as (runner, alerts):
        runner._scheduler._on_missed(Missed("nightly", 3, moment, moment))
        event = await alerts.of("runner.schedule.missed")
        assert event.subject == "nightly"
        assert event.json() == {"count": 3, "first": "2026-01-01T00:00:00Z", "last": "2026-01-01T00:00:00Z"}


async def test_none_is_about_itself(bus: Bus) -> None:
    """A subscription to lifecycle events that refuses them all: one event about the other one, and no more."""
    refused: list[Event] = []

    def refuse(event: Event) -> Rejected:
        refused.append(event)
        return Rejected("never")

    async with watched(bus, picky=(refuse, {"types": ["a"]}), sink=(refuse, {"types": ["runner.*"]})) as (
        runner,
        alerts,
    ):
        await runner.publish(Event.new("a", source="/s"))
        await alerts.of("runner.delivery.dead")
        await eventually(lambda: len(refused) == 2)
        await runner._operations.subscriptions.set_paused("sink", True, "ops")
        await runner._operations.subscriptions.set_paused("picky", True, "ops")
        await alerts.of("runner.subscription.paused")
        assert [each.subject for each in alerts.seen] == ["picky", "picky"]


async def test_nothing_is_published_unless_the_file_says_so(bus: Bus) -> None:
    async with watched(bus, "", other=(lambda event: None, {"types": ["a"]})) as (runner, alerts):
        await runner._operations.subscriptions.set_paused("other", True, "ops")
        assert not runner._lifecycle._waiting
        assert alerts.seen == []
