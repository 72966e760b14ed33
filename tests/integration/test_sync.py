"""The synchronous door, in transactions of every kind that synchronous programs have, on real stores."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import psycopg2
import psycopg2.extras
import pytest
from psycopg.rows import dict_row
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from runner import Event, EventConflict, EventError, RunnerError, StorageUnavailable, sync
from runner.bus.bus import EventBus
from runner.errors import StorageError
from runner.storage import Storage, tables
from runner.storage.contract.events import Publication
from tests.contract.storage_contract import Database, StoreTests
from tests.support.eventually import eventually

from .buses import Bus, BusTests, Handler, events, ids

Open = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclass
class Door:
    """A way in which programs hold a transaction: `open()` begins one that is rolled back unless committed."""

    open: Open
    commit: Callable[[Any], None]
    tells: bool  # whether something tells of the commit


def _sqlalchemy(url: str, kind: str) -> Iterator[Door]:
    engine = create_engine(url)
    if kind == "connection":
        yield Door(engine.connect, lambda connection: connection.commit(), True)
    else:
        maker = scoped_session(sessionmaker(engine)) if kind == "scoped" else sessionmaker(engine)

        @contextlib.contextmanager
        def session() -> Iterator[Any]:
            made = maker if isinstance(maker, scoped_session) else maker()
            try:
                yield made
            finally:
                made.remove() if isinstance(made, scoped_session) else made.close()

        yield Door(session, lambda made: made.commit(), True)
    engine.dispose()


def _driver(connect: Callable[[], Any]) -> Iterator[Door]:
    @contextlib.contextmanager
    def connection() -> Iterator[Any]:
        made = connect()
        try:
            yield made
        finally:
            made.rollback()
            made.close()

    yield Door(connection, lambda made: made.commit(), False)


def _rowed(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path)
    connection.row_factory = lambda cursor, row: {
        column[0]: value for column, value in zip(cursor.description, row, strict=True)
    }
    return connection


DOORS: dict[str, Callable[[str], Iterator[Door]]] = {
    "sqlite-session": lambda dsn: _sqlalchemy(dsn, "session"),
    "sqlite-scoped": lambda dsn: _sqlalchemy(dsn, "scoped"),
    "sqlite-connection": lambda dsn: _sqlalchemy(dsn, "connection"),
    "sqlite-driver": lambda dsn: _driver(lambda: sqlite3.connect(str(make_url(dsn).database))),
    "sqlite-rows": lambda dsn: _driver(lambda: _rowed(str(make_url(dsn).database))),
    "psycopg2-session": lambda dsn: _sqlalchemy(dsn.replace("postgresql:", "postgresql+psycopg2:"), "session"),
    "psycopg-scoped": lambda dsn: _sqlalchemy(dsn.replace("postgresql:", "postgresql+psycopg:"), "scoped"),
    "psycopg-connection": lambda dsn: _sqlalchemy(dsn.replace("postgresql:", "postgresql+psycopg:"), "connection"),
    "psycopg2-driver": lambda dsn: _driver(lambda: psycopg2.connect(dsn)),
    "psycopg2-rows": lambda dsn: _driver(lambda: psycopg2.connect(dsn, cursor_factory=psycopg2.extras.RealDictCursor)),
    "psycopg-driver": lambda dsn: _driver(lambda: psycopg.connect(dsn)),
    "psycopg-rows": lambda dsn: _driver(lambda: psycopg.connect(dsn, row_factory=dict_row)),
}


class Signals:
    """A strategy that counts how many events are recorded for all to see at each signal."""

    def __init__(self, database: Database) -> None:
        self.recorded: list[int] = []
        self._database = database

    async def start(self, wake: object) -> None: ...

    async def stop(self) -> None: ...

    async def notify(self, event_id: str) -> None:
        self.recorded.append(len(await self._database.rows(tables.events)))


class TestTransactions(StoreTests):
    @pytest.fixture(params=DOORS)
    def name(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def dsn(self, request: pytest.FixtureRequest, name: str) -> str:
        return str(request.getfixturevalue("tables_file" if name.startswith("sqlite") else "tables_dsn"))

    @pytest.fixture
    def door(self, name: str, dsn: str) -> Iterator[Door]:
        yield from DOORS[name](dsn)

    @pytest.fixture
    def signals(self, database: Database) -> Signals:
        return Signals(database)

    @pytest.fixture
    async def bus(self, store: Storage, signals: Signals) -> AsyncIterator[EventBus]:
        bus = EventBus(store.events, signals)
        yield bus
        await bus.stop()

    async def test_the_event_and_its_signal_come_with_the_commit(
        self, bus: EventBus, door: Door, database: Database, signals: Signals
    ) -> None:
        """Invariant 1, in the event loop's own thread."""
        with door.open() as session:
            receipt = await bus.publish(events(1)[0], session=session)
            assert not receipt.duplicate
            await asyncio.sleep(0)
            assert signals.recorded == []
            door.commit(session)
        if door.tells:
            await eventually(lambda: signals.recorded == [1])
        [row] = await database.rows(tables.events)
        assert (row["seq"], row["id"]) == (receipt.seq, receipt.id)
        assert await database.count(tables.dispatch) == [1]

    async def test_the_same_from_another_thread(
        self, bus: EventBus, door: Door, database: Database, signals: Signals
    ) -> None:
        record = await bus.recorder(events(3))

        def work() -> None:
            with door.open() as session:
                record(session)
                door.commit(session)

        await asyncio.to_thread(work)
        if door.tells:
            await eventually(lambda: signals.recorded == [3])
        assert await database.count(tables.events, tables.dispatch) == [3, 3]

    async def test_a_rollback_leaves_nothing(self, bus: EventBus, door: Door, database: Database) -> None:
        with door.open() as session:
            await bus.publish_many(events(3), session=session)
        assert await database.count(tables.events, tables.dispatch, tables.scheduled) == [0, 0, 0]

    async def test_what_is_recorded_is_what_was_published(
        self, bus: EventBus, door: Door, store: Storage, database: Database
    ) -> None:
        event = Event(
            type="order.created",
            source="/shop/ü?%25s",
            id="1'%(x)s",
            subject="注文",
            datacontenttype="application/json",
            dataschema="urn:schema",
            extensions={"tenantid": "a%b", "retry": True, "n": -1, "expirytime": "2999-01-31T12:00:00Z"},
            data=b'{"n":\t12345678901234567890123}',
        )
        with door.open() as session:
            await bus.publish(event, session=session)
            door.commit(session)
        claim = await store.queue.claim(1, timedelta(seconds=30))
        assert [work.event.replace(time=None) for work in claim.works] == [event]
        assert await database.count(tables.expiries) == [1]
        again = await bus.publish(event)
        assert again.duplicate

    async def test_duplicates_conflicts_and_times_are_those_of_publish(
        self, bus: EventBus, door: Door, database: Database
    ) -> None:
        event, later, fine = events(3)
        first = await bus.publish(event)
        changed = Event(type="other", source=event.source, id=event.id)
        with door.open() as session:
            again = await bus.publish(event, session=session)
            await bus.publish(later, delay=timedelta(hours=1), session=session)
            for batch in ([changed], [fine, changed]):
                with pytest.raises(EventConflict, match="already recorded"):
                    await bus.publish_many(batch, session=session)
            assert (await bus.publish(later, delay=timedelta(hours=1), session=session)).duplicate
            door.commit(session)  # the transaction went on
        assert (again.seq, again.duplicate) == (first.seq, True)
        assert await database.count(tables.events, tables.dispatch, tables.scheduled) == [2, 1, 1]

    async def test_one_that_breaks_a_limit_is_refused_before_anything_is_asked(self, bus: EventBus, door: Door) -> None:
        with door.open() as session, pytest.raises(EventError, match="type"):
            await bus.publish(Event(type="", source="/"), session=session)

    async def test_no_event_is_recorded_without_its_row_of_work(
        self, bus: EventBus, door: Door, database: Database
    ) -> None:
        """Invariant 1."""
        await database.rename("dispatch", "elsewhere")
        with door.open() as session:
            with pytest.raises(StorageError):
                await bus.publish(events(1)[0], session=session)
            door.commit(session)
        await database.rename("elsewhere", "dispatch")
        assert await database.count(tables.events, tables.dispatch) == [0, 0]


class TestAutocommit(StoreTests):
    """Outside a transaction an event is recorded at once, whole."""

    @pytest.fixture(params=["sqlite", "psycopg2", "psycopg"])
    def driver(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def dsn(self, request: pytest.FixtureRequest, driver: str) -> str:
        return str(request.getfixturevalue("tables_file" if driver == "sqlite" else "tables_dsn"))

    @pytest.fixture
    def connection(self, driver: str, dsn: str) -> Iterator[Any]:
        connection: Any
        match driver:
            case "sqlite":
                connection = sqlite3.connect(str(make_url(dsn).database), isolation_level=None)
            case "psycopg2":
                connection = psycopg2.connect(dsn)
                connection.autocommit = True
            case _:
                connection = psycopg.connect(dsn, autocommit=True)
        yield connection
        connection.close()

    async def test_it_is_recorded_and_signalled_at_once(
        self, store: Storage, database: Database, connection: Any
    ) -> None:
        signals = Signals(database)
        bus = EventBus(store.events, signals)
        receipts = await bus.publish_many(events(2), session=connection)
        assert [receipt.duplicate for receipt in receipts] == [False, False]
        await eventually(lambda: signals.recorded == [2])
        assert await database.count(tables.events, tables.dispatch) == [2, 2]
        with pytest.raises(EventConflict):
            await bus.publish(Event(type="other", source=events(1)[0].source, id=ids(events(1))[0]), session=connection)
        await bus.stop()

    async def test_so_it_is_by_sqlalchemy(self, store: Storage, database: Database, driver: str, dsn: str) -> None:
        signals = Signals(database)
        bus = EventBus(store.events, signals)
        url = make_url(dsn).set(drivername="sqlite" if driver == "sqlite" else f"postgresql+{driver}")
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            await bus.publish(events(1)[0], session=connection)
            await eventually(lambda: signals.recorded == [1])
        engine.dispose()
        await bus.stop()
        assert signals.recorded == [1]

    async def test_within_a_block_it_ends_with_that(
        self, store: Storage, database: Database, connection: Any, driver: str
    ) -> None:
        bus = EventBus(store.events, Signals(database))
        connection.cursor().execute("BEGIN")
        await bus.publish(events(1)[0], session=connection)
        with pytest.raises(EventConflict):
            await bus.publish(Event(type="other", source=events(1)[0].source, id=ids(events(1))[0]), session=connection)
        connection.cursor().execute("ROLLBACK")
        assert await database.count(tables.events, tables.dispatch) == [0, 0]
        await bus.stop()


class TestWhatIsNoSession(StoreTests):
    @pytest.fixture
    async def bus(self, store: Storage, database: Database) -> AsyncIterator[EventBus]:
        bus = EventBus(store.events, Signals(database))
        yield bus
        await bus.stop()

    @pytest.mark.parametrize("session", ["a text", 5, object(), {"cursor": 1}])
    async def test_is_named(self, bus: EventBus, session: object) -> None:
        with pytest.raises(EventError, match="session: expected a SQLAlchemy AsyncSession, Session or Connection"):
            await bus.publish(events(1)[0], session=session)

    async def test_a_connection_to_another_kind_of_database(
        self, bus: EventBus, database: Database, tmp_path: Path, tables_dsn: str
    ) -> None:
        other: Any
        if database.dsn.scheme == "sqlite":
            other = psycopg.connect(tables_dsn)
        else:
            other = sqlite3.connect(tmp_path / "other.db")
        with contextlib.closing(other), pytest.raises(EventError, match=r"storage\.dsn"):
            await bus.publish(events(1)[0], session=other)

    async def test_a_database_without_our_tables(
        self, bus: EventBus, database: Database, tmp_path: Path, postgres_dsn: str
    ) -> None:
        other: Any
        if database.dsn.scheme == "sqlite":
            other = sqlite3.connect(tmp_path / "other.db")
        else:
            other = psycopg.connect(postgres_dsn)
        with contextlib.closing(other), pytest.raises(StorageError, match=r"of storage\.dsn"):
            await bus.publish(events(1)[0], session=other)


# --- runner.sync -----------------------------------------------------------------------------------


class TestBus(BusTests):
    @pytest.fixture
    def door(self, bus: Bus) -> Iterator[sync.Bus]:
        with sync.load(bus.write()) as door:
            yield door

    async def test_threads_publish_and_a_runner_delivers(self, bus: Bus, door: sync.Bus) -> None:
        runner, handler = bus.runner(), Handler()
        runner.subscribe("s", handler)
        async with runner:

            def publish() -> list[str]:
                with ThreadPoolExecutor(8) as threads:
                    return [receipt.id for receipt in threads.map(door.publish, events(40))]

            published = await asyncio.to_thread(publish)
            await eventually(lambda: bus.settled(delivered=40))
        assert sorted(published) == sorted(handler.ids) == sorted(ids(events(40)))

    async def test_a_session_in_a_thread_wakes_a_runner_elsewhere(self, bus: Bus, door: sync.Bus) -> None:
        """Long before the next poll, which is 30 s away."""
        url = bus.dsn.replace("postgresql:", "postgresql+psycopg:")
        engine = create_engine(url)
        runner, handler = bus.runner(), Handler()
        runner.subscribe("s", handler)

        def work() -> None:
            with Session(engine) as session, session.begin():
                door.publish_many(events(3), session=session)
                assert handler.seen == []

        async with runner:
            await asyncio.to_thread(work)
            await eventually(lambda: bus.settled(delivered=3))
        engine.dispose()

    def test_times_and_receipts_are_those_of_the_bus(self, door: sync.Bus) -> None:
        event = events(1)[0]
        first = door.publish(event, delay=timedelta(hours=1))
        again = door.publish_many([event, Publication(event)])
        assert [receipt.seq for receipt in again] == [first.seq, first.seq]
        assert all(receipt.duplicate for receipt in again)
        assert door.publish_many([]) == []
        with pytest.raises(EventError):
            door.publish(Event(type="", source="/"))

    async def test_what_has_expired_is_not_delivered(self, bus: Bus, door: sync.Bus) -> None:
        door.publish(events(1)[0], expires_in=timedelta(milliseconds=1))
        runner, handler = bus.runner(), Handler()
        runner.subscribe("s", handler)
        async with runner:
            await eventually(lambda: bus.settled(dead=1))
        assert handler.seen == []

    def test_after_the_end_it_says_so(self, bus: Bus) -> None:
        door = sync.load(bus.write())
        door.publish(events(1)[0])
        door.close()
        door.close()
        with pytest.raises(RunnerError, match="closed"):
            door.publish(events(1)[0])
        assert not [each for each in threading.enumerate() if each.name == "runner bus"]

    def test_a_call_that_the_end_overtakes_is_answered(self, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
        """However far it has come: in its transaction, in the loop but not begun, or not in the loop."""
        door = sync.load(bus.write())
        door.publish(events(1)[0])
        loop, begun = door._loop, threading.Event()
        assert loop is not None

        async def endless(_: object) -> Any:
            begun.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(loop.bus, "publish_many", endless)
        with ThreadPoolExecutor(2) as threads:
            under_way = threads.submit(door.publish, events(1)[0])
            assert begun.wait(30)
            unbegun = Future[Any]()
            loop._calls.add(unbegun)
            door.close()
            with pytest.raises(StorageUnavailable, match="the same call again is safe"):
                under_way.result(30)
        assert unbegun.cancelled()
        with pytest.raises(RunnerError, match="closed"):
            loop.call(endless(None))
        loop.soon(begun.clear)

    def test_in_a_forked_process_it_begins_anew(self, bus: Bus, door: sync.Bus) -> None:
        """As under gunicorn with --preload."""
        first, second = events(2)
        door.publish(first)
        child = os.fork()
        if not child:
            code = 1
            with contextlib.suppress(BaseException):
                code = 0 if not door.publish(second).duplicate else 2
                door.close()
            os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert door.publish(second).duplicate

    def test_signals_for_a_connection_that_tells_nothing(self, bus: Bus, door: sync.Bus) -> None:
        door.notify()


def test_a_store_that_is_away_is_tried_again_with_the_next_call(tmp_path: Path) -> None:
    (tmp_path / "bus.yaml").write_text("deployment_id: a\nstorage: {dsn: 'postgresql://u@127.0.0.1:1/a'}\n")
    with sync.load(tmp_path / "bus.yaml") as door:
        for _ in range(2):
            with pytest.raises(StorageUnavailable):
                door.publish(events(1)[0])
    assert not [each for each in threading.enumerate() if each.name == "runner bus"]
