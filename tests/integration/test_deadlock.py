"""Two who record the same events in opposite order: one of them waits no longer, or PostgreSQL ends it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest

from runner.bus.bus import EventBus
from runner.config.dsn import Dsn
from runner.event import Event
from runner.storage import open_storage
from runner.storage.contract.events import Publication
from tests.support.eventually import eventually
from tests.support.postgres import PostgresServer

RECORD = "INSERT INTO events (id, source, type, created_at) VALUES ($1, '/s', 't', clock_timestamp())"
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


class Silent:
    async def start(self, wake: object) -> None: ...

    async def stop(self) -> None: ...

    async def notify(self, event_id: str) -> None: ...


@pytest.mark.parametrize("deadlock_timeout", ["20ms", "10s"], ids=["deadlock", "lock timeout"])
async def test_the_one_that_is_ended_finds_what_the_other_has_recorded(
    postgres: PostgresServer, tables_dsn: str, deadlock_timeout: str
) -> None:
    database = tables_dsn.rsplit("/", 1)[1]
    postgres.psql(f"ALTER DATABASE \"{database}\" SET deadlock_timeout = '{deadlock_timeout}'", tables_dsn)
    storage = open_storage(Dsn.parse(tables_dsn, base=Path()))
    other = await asyncpg.connect(tables_dsn)
    one, two = (Publication(Event(type="t", source="/s", id=id)) for id in ("one", "two"))
    transaction = other.transaction()
    await transaction.start()
    await other.execute(RECORD, "two")
    bus = EventBus(storage.events, Silent())
    publishing = asyncio.create_task(bus.publish_many([one, two]))
    await other.execute("SET deadlock_timeout = '10s'")  # so that it is the publisher who is ended
    await eventually(lambda: postgres.psql(WAITING, tables_dsn) == "1")
    await other.execute(RECORD, "one")
    await transaction.commit()
    receipts = await publishing
    assert [(each.id, each.duplicate) for each in receipts] == [("one", True), ("two", True)]
    await other.close()
    await bus.stop()
    await storage.close()
