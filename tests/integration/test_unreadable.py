"""Rows that somebody planted: they die alone, and the bus goes on."""

from __future__ import annotations

from sqlalchemy import update

from runner.storage import tables
from tests.support.eventually import eventually

from .buses import Bus, BusTests, Handler, events, ids


class TestUnreadable(BusTests):
    async def test_an_event_that_is_none_is_dead_for_all_it_may_concern_and_the_others_arrive(self, bus: Bus) -> None:
        everything, orders, refunds = Handler(), Handler(), Handler()
        runner = bus.runner()
        runner.subscribe("everything", everything)
        runner.subscribe("orders", orders, types="order.*", filter={"exact": {"tenant": "a"}})
        runner.subscribe("refunds", refunds, types="refund")
        async with runner:
            pass  # so that the tables and the subscriptions are there
        published = events(6)
        await bus.publish(published)
        rows = await bus.database.rows(tables.events)
        listed, untyped = rows[1]["seq"], rows[3]["seq"]
        table = tables.events
        await bus.database.execute(update(table).where(table.c.seq == listed).values(extensions=["a"]))
        await bus.database.execute(update(table).where(table.c.seq == untyped).values(type=""))
        runner = bus.runner()
        runner.subscribe("everything", everything)
        runner.subscribe("orders", orders, types="order.*", filter={"exact": {"tenant": "a"}})
        runner.subscribe("refunds", refunds, types="refund")
        async with runner:
            await eventually(lambda: bus.settled(delivered=4, dead=5))
        good = [each for number, each in enumerate(published) if number not in (1, 3)]
        assert everything.ids == ids(good)
        assert orders.seen == refunds.seen == []
        dead = [row for row in await bus.deliveries() if row["state"] == "dead"]
        concerned = {seq: sum(row["event_seq"] == seq for row in dead) for seq in (listed, untyped)}
        assert concerned == {listed: 2, untyped: 3}
        assert all(row["last_error"].startswith("the event cannot be read: ") for row in dead)

    async def test_a_waiting_delivery_of_an_event_that_is_none_dies_alone(self, bus: Bus) -> None:
        handler = Handler()
        runner = bus.runner()
        runner.subscribe("s", handler)
        async with runner:
            pass
        await bus.pause("s", True)
        published = events(3)
        await bus.publish(published)
        async with bus.runner():
            await eventually(lambda: bus.settled(pending=3))
        seq = (await bus.database.rows(tables.events))[1]["seq"]
        await bus.database.execute(update(tables.events).where(tables.events.c.seq == seq).values(extensions=["a"]))
        await bus.pause("s", False)
        runner = bus.runner()
        runner.subscribe("s", handler)
        async with runner:
            await eventually(lambda: bus.settled(delivered=2, dead=1))
        assert handler.ids == ids([published[0], published[2]])
