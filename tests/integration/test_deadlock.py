"""Two who record the same events in opposite order: PostgreSQL ends one of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg

from runner.config.dsn import Dsn
from runner.event import Event
from runner.storage import open_storage
from runner.storage.base import Publication
from tests.support.eventually import eventually
from tests.support.postgres import PostgresServer

RECORD = "INSERT INTO events (id, source, type, created_at) VALUES ($1, '/s', 't', clock_timestamp())"
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


async def test_the_one_that_is_ended_finds_what_the_other_has_recorded(
    postgres: PostgresServer, tables_dsn: str
) -> None:
    storage = open_storage(Dsn.parse(tables_dsn, base=Path()))
    other = await asyncpg.connect(tables_dsn)
    one, two = (Publication(Event(type="t", source="/s", id=id)) for id in ("one", "two"))
    transaction = other.transaction()
    await transaction.start()
    await other.execute(RECORD, "two")
    publishing = asyncio.create_task(storage.store.append([one, two]))
    await eventually(lambda: postgres.psql(WAITING, tables_dsn) == "1")
    await other.execute(RECORD, "one")  # waits for the publisher, who is ended: it has waited for longer
    await transaction.commit()
    receipts = await publishing
    assert [(each.id, each.duplicate) for each in receipts] == [("one", True), ("two", True)]
    await other.close()
    await storage.close()
