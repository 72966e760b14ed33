"""What every suite of the store's contract stands on: a fresh database, and stores on it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from sqlalchemy import Executable, Table, select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from runner.config.dsn import Dsn
from runner.delivery import DeliveryState, Lease
from runner.event import Event
from runner.storage import Storage, open_storage
from runner.storage.contract.claims import Claim, DeliveryClaim, Work
from runner.storage.contract.events import Publication, Receipt
from runner.storage.contract.settlements import DeliveryRecord, Run, Settled
from runner.storage.tables import deliveries, delivery_states
from tests.support.engines import open_engine
from tests.support.eventually import PATIENCE, eventually

T = TypeVar("T")

LEASE = timedelta(seconds=30)


def leased(seq: int, subscription_id: int, token: int) -> Lease:
    """Return the lease of a first attempt."""
    return Lease(seq, subscription_id, 1, token)


SHORT = timedelta(milliseconds=150)
NOTHING = timedelta(0)

Store = Storage


def _driver_threads() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if "_connection_worker_thread" in each.name}


class Database:
    """One database with our tables, and everything the tests open on it."""

    def __init__(self, dsn: str, base: Path = Path()) -> None:
        self.dsn = replace(
            Dsn.parse(dsn, base=base), connect_timeout=PATIENCE
        )  # a busy machine lets a server wait, too
        self._stores: list[Store] = []
        self._engines: list[AsyncEngine] = []
        self._before = _driver_threads()
        self.engine = self.new_engine()
        self.client = self.new_engine() if self.dsn.scheme == "sqlite" else self._plain(dsn)

    def _plain(self, dsn: str) -> AsyncEngine:
        """Return an engine as another program has it: ours would not look for an unqualified name in any schema."""
        engine = create_async_engine(dsn.replace("postgresql:", "postgresql+asyncpg:"))
        self._engines.append(engine)
        return engine

    def new_engine(self) -> AsyncEngine:
        engine = open_engine(self.dsn, schema=None, pool=5)
        self._engines.append(engine)
        return engine

    def open(self) -> Store:
        """Return another store, with its own connections, as another process would have it."""
        store = open_storage(self.dsn)
        self._stores.append(store)
        return store

    async def close(self) -> None:
        for store in self._stores:
            await store.close()
        for engine in self._engines:
            await engine.dispose()
        # A connection to SQLite that could not be opened ends its thread without anybody waiting for it.
        await eventually(lambda: _driver_threads() <= self._before)

    async def rows(self, table: Table) -> Sequence[Mapping[str, Any]]:
        """Return all rows of `table` in the order of its key; of deliveries one each, also where a run records them."""
        table = delivery_states if table is deliveries else table
        async with self.engine.begin() as connection:
            found = await connection.execute(select(table).order_by(*table.primary_key))
            return [dict(row) for row in found.mappings()]

    async def count(self, *tables: Table) -> list[int]:
        return [len(await self.rows(table)) for table in tables]

    async def execute(self, statement: Executable) -> None:
        async with self.client.begin() as connection:
            await connection.execute(statement)

    async def waits_for_lock(self) -> bool:
        """Whether a statement waits for another transaction. PostgreSQL only."""
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        async with self.engine.begin() as connection:
            return (await connection.exec_driver_sql(waiting)).first() is not None

    async def rename(self, table: str, to: str) -> None:
        """Take a table away, so that a transaction fails in its middle; or bring it back."""
        async with self.client.begin() as connection:
            await connection.exec_driver_sql(f"ALTER TABLE {table} RENAME TO {to}")


@contextlib.asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[Database]:
    """Open a database that has our tables, and close everything afterwards."""
    database = Database(dsn)
    try:
        yield database
    finally:
        await database.close()


class StoreTests:
    """The fixtures of a suite; each of its tests runs once on every store."""

    @pytest.fixture(params=["sqlite", "postgres"])
    def dsn(self, request: pytest.FixtureRequest) -> str:
        return str(request.getfixturevalue("tables_file" if request.param == "sqlite" else "tables_dsn"))

    @pytest.fixture
    async def database(self, dsn: str) -> AsyncIterator[Database]:
        async with opened(dsn) as database:
            yield database

    @pytest.fixture
    def store(self, database: Database) -> Store:
        return database.open()

    @pytest.fixture
    def other(self, database: Database) -> Store:
        """The store of another instance on the same database."""
        return database.open()


def publication(number: int = 0, **attributes: Any) -> Publication:
    """Return a new event on its way in."""
    return Publication(Event.new("order.created", {"number": number}, source="/tests", **attributes))


async def publish(store: Store, count: int, **timing: Any) -> list[int]:
    """Publish `count` events and return their numbers in the store."""
    events = [publication(number).event for number in range(count)]
    return [receipt.seq for receipt in await store.events.append([Publication(event, **timing) for event in events])]


def settled(claim: Claim, ids: tuple[int, ...] = (1,), works: Sequence[Work] | None = None) -> Settled:
    """Return that all of a claim was delivered to the subscriptions `ids`."""
    works = claim.works if works is None else works
    return Settled(claim.token, works, [Run(ids, len(works))])


async def wait(
    store: Store, subscription: int = 1, count: int = 1, *, due_in: timedelta = NOTHING, error: str | None = None
) -> list[int]:
    """Leave `count` pending deliveries of new events to `subscription`, and return the events' numbers."""
    seqs = await publish(store, count)
    claim = await store.queue.claim(count, LEASE)
    assert [work.seq for work in claim.works] == seqs
    records = [
        record(seq, subscription, DeliveryState.PENDING, claim.token, due_in=due_in, error=error) for seq in seqs
    ]
    assert await store.queue.settle(Settled(claim.token, claim.works, [Run((), count)], records)) == count
    return seqs


def record(
    seq: int,
    subscription: int,
    state: DeliveryState,
    token: int,
    *,
    attempts: int = 1,
    due_in: timedelta = NOTHING,
    error: str | None = None,
) -> DeliveryRecord:
    """Return one delivery as it is to be written."""
    return DeliveryRecord(seq, subscription, state, attempts, token, due_in, error)


async def soon(check: Callable[[], Awaitable[T]]) -> T:
    """Return what `check` returns as soon as that is true."""
    found: T = await eventually(cast("Callable[[], Any]", check))
    return found


async def claim_soon(store: Store, limit: int = 100, lease: timedelta = LEASE) -> Claim:
    """Claim as soon as something is there: when the lease of another has ended."""

    async def claimed() -> Claim:
        claim = await store.queue.claim(limit, lease)
        assert claim.works
        return claim

    return await soon(claimed)


async def claim_delivery_soon(store: Store, subscription: int = 1, lease: timedelta = LEASE) -> DeliveryClaim:
    """Claim one delivery as soon as one is due: when its wait, or the lease of another, has ended."""

    async def claimed() -> DeliveryClaim:
        claim = await store.queue.claim_deliveries({subscription: 1}, lease)
        assert claim.deliveries
        return claim

    return await soon(claimed)


def taken(claim: DeliveryClaim) -> list[tuple[int, int]]:
    """Return the keys of what was claimed, in order."""
    return sorted((delivery.seq, delivery.subscription_id) for delivery in claim.deliveries)


def identity(receipt: Receipt) -> tuple[str, str]:
    return receipt.source, receipt.id
