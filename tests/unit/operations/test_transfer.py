from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from runner.bus.bus import EventBus
from runner.event import Event
from runner.operations import transfer
from runner.operations.transfer import Transfer
from runner.storage.contract.events import Publication, Receipt
from runner.subscription import Matcher, Subscription

ORDERS = Matcher([(Subscription(name="orders", sink="log", types=("order.*",)), "orders")])


class Bus:
    """Records what it is given, once it is let."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.open = asyncio.Event()
        self.fails: Exception | None = None

    async def publish_many(self, publications: Sequence[Publication]) -> Sequence[Receipt]:
        self.asked.set()
        await self.open.wait()
        if self.fails is not None:
            raise self.fails
        return [Receipt(e.source, e.id, seq, seq > 2) for seq, (e, *_) in enumerate(publications, 1)]


def batch(*types: str) -> list[tuple[str, Event]]:
    return [(f"f:{n}", Event.new(each, id=str(n), source="/s")) for n, each in enumerate(types, 1)]


def made(bus: Bus, **options: Any) -> Transfer:
    return Transfer(cast("EventBus", bus), **options)


async def test_what_became_of_them_is_counted() -> None:
    bus = Bus()
    bus.open.set()
    moved = made(bus, matcher=ORDERS)
    await moved.publish(batch("order.a", "order.b", "invoice.c"))
    assert (moved.new, moved.duplicates, moved.unwanted, moved.unknown) == (2, 1, 1, 0)


class TestAnInterrupt:
    async def interrupted(self, bus: Bus, moved: Transfer) -> None:
        publishing = asyncio.create_task(moved.publish(batch("order.a", "order.b")))
        await bus.asked.wait()
        publishing.cancel()
        asyncio.get_running_loop().call_later(0.02, bus.open.set)
        with pytest.raises(asyncio.CancelledError):
            await publishing

    async def test_waits_for_what_is_on_its_way_and_counts_it(self) -> None:
        bus = Bus()
        moved = made(bus)
        await self.interrupted(bus, moved)
        assert (moved.new, moved.unknown) == (2, 0)

    async def test_tells_of_what_nobody_knows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transfer, "PATIENCE", 0.001)
        bus = Bus()
        moved = made(bus)
        await self.interrupted(bus, moved)
        assert (moved.new, moved.unknown) == (0, 2)

    async def test_of_what_fails_nobody_knows(self) -> None:
        bus = Bus()
        bus.fails = RuntimeError("gone")
        moved = made(bus)
        await self.interrupted(bus, moved)
        assert (moved.new, moved.unknown) == (0, 2)
