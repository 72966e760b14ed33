"""`runner.testing`: the bus that users test their handlers with."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from runner import Deferred, Event, NotFound, Rejected, testing


def order(number: int) -> Event:
    return Event.new("order.placed", {"order": number}, source="/shop", id=str(number))


async def test_what_is_published_is_delivered_when_drain_returns() -> None:
    seen: list[int] = []
    async with testing.bus(confirm=lambda event: seen.append(event.json()["order"])) as bus:
        for number in range(20):
            await bus.publish(order(number))
        await bus.drain()
        assert sorted(seen) == list(range(20))
        assert {each.state for each in await bus.deliveries("confirm")} == {"delivered"}
        assert [each.event.id for each in await bus.events("order.*")] == [str(number) for number in range(20)]
        assert await bus.advance() == 0


async def test_a_failure_waits_for_its_retry_and_advance_brings_it_forward() -> None:
    calls = []

    def flaky(event: Event) -> None:
        calls.append(event.id)
        if len(calls) < 3:
            raise ValueError("not yet")

    async with testing.bus(flaky=flaky, settings=["retry.delay=1h", "retry.max_delay=1d"]) as bus:
        await bus.publish(order(1))
        await bus.drain()
        [waiting] = await bus.deliveries(state="pending")
        assert (len(calls), waiting.attempts) == (1, 1)
        assert "not yet" in str(waiting.last_error)
        while await bus.advance():
            pass
        [done] = await bus.deliveries()
        assert (len(calls), done.state) == (3, "delivered")
        assert [each.number for each in await bus.attempts(done)] == [1, 2, 3]


async def test_dead_letters_are_there_to_be_looked_at() -> None:
    def refuse(_event: Event) -> Rejected:
        return Rejected("no such customer")

    async with testing.bus(refuse=refuse) as bus:
        await bus.publish(order(1))
        await bus.drain()
        [dead] = await bus.dead("refuse")
        assert "no such customer" in str(dead.last_error)


async def test_delayed_events_wait_for_advance() -> None:
    seen: list[Event] = []
    async with testing.bus(late=seen.append) as bus:
        await bus.publish(order(1), delay=timedelta(days=1))
        await bus.drain()
        assert seen == []
        assert await bus.advance() == 1
        assert [event.id for event in seen] == ["1"]


async def test_a_deferred_delivery_waits_for_its_acknowledgement() -> None:
    async with testing.bus(later=lambda _event: Deferred(timedelta(hours=1))) as bus:
        receipt = await bus.publish(order(1))
        await bus.drain(timeout=30)
        assert [each.state for each in await bus.deliveries("later")] == ["leased"]
        assert await bus.runner.ack(receipt.id, "later")
        assert [each.state for each in await bus.deliveries("later")] == ["delivered"]


async def test_what_hangs_is_named() -> None:
    async def hang(_event: Event) -> None:
        await asyncio.sleep(60)

    async with testing.bus(hang=hang, settings=["worker.shutdown_grace=0s"]) as bus:
        await bus.publish(order(1))
        with pytest.raises(TimeoutError, match=r"not drained after 0\.5 s: .*(order\.placed|queued)"):
            await bus.drain(timeout=0.5)


def test_without_async_and_with_the_sinks_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "bus.yaml"
    file.write_text(
        "deployment_id: shop\nstorage: {dsn: 'postgresql://nowhere/bus'}\nstrategies: [postgres]\n"
        "sinks: {crm: {webhook: 'https://crm.example/in'}}\n"
        "subscriptions: [{name: orders, types: ['order.*'], sink: crm}]\n"
    )
    seen: list[Event] = []
    with testing.sync_bus(file, settings=["sinks.crm=stdout"], other=seen.append) as bus:
        bus.publish(order(1))
        bus.drain()
        assert [(each.subscription, each.state) for each in bus.deliveries()] == [
            ("orders", "delivered"),
            ("other", "delivered"),
        ]
        assert (len(bus.events()), bus.dead(), bus.advance(), len(seen)) == (1, [], 0, 1)


async def test_a_subscription_that_does_not_exist_is_named() -> None:
    async with testing.bus(confirm=lambda _: None) as bus:
        assert await bus.dead("confirm") == []
        with pytest.raises(NotFound, match="no subscription 'confrim'; there are: confirm"):
            await bus.dead("confrim")
