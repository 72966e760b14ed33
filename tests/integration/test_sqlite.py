"""The SQLite store on its file: locks, cancellation, a full disk, a killed process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from runner.config.dsn import Dsn
from runner.errors import StorageError, StorageUnavailable
from runner.event import Event
from runner.storage import Storage, open_storage
from runner.storage.contract.events import Publication
from runner.storage.contract.registry import Health, Instance
from runner.storage.contract.settlements import Run, Settled
from runner.storage.migrate import migrate
from runner.storage.sqlite import connection as sqlite_connection
from tests.support.engines import open_engine
from tests.support.eventually import eventually

LEASE = timedelta(seconds=30)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runner.db"


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Storage]:
    store = open_storage(Dsn.parse(f"sqlite:///{path}", base=path.parent))
    await store.migrate()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Storage]:
    async with opened(path) as store:
        yield store


@pytest.fixture
def outside(path: Path, store: Storage) -> Iterator[sqlite3.Connection]:
    """A connection of somebody else, who waits for nothing."""
    connection = sqlite3.connect(path, timeout=0, isolation_level=None)
    yield connection
    connection.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up waiting for a lock after 50 ms."""
    usual = sqlite_connection.pragmas
    monkeypatch.setattr(
        sqlite_connection, "pragmas", lambda version: [each.replace("5000", "50") for each in usual(version)]
    )


def publications(count: int, size: int = 10) -> list[Publication]:
    return [Publication(Event(type="t", source="/s", data=b"x" * size)) for _ in range(count)]


def recorded(path: Path) -> set[str]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        ids = {id for (id,) in connection.execute("SELECT id FROM events")}
        assert connection.execute("SELECT count(*) FROM dispatch").fetchall() == [(len(ids),)]
    return ids


class TestPragmas:
    async def test_every_connection_is_durable_and_checks(self, store: Storage) -> None:
        await store.events.append(publications(1))
        async with store.engine.connect() as connection:
            found = {}
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout"):
                found[name] = (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar()
        safe = sqlite_connection.wal_is_safe(sqlite3.sqlite_version_info)
        journal = "wal" if safe else "persist"
        assert found == {"journal_mode": journal, "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}


class TestIdle:
    async def test_idle_polls_write_nothing(self, store: Storage, outside: sqlite3.Connection) -> None:
        await store.events.append([Publication(each.event, delay=LEASE) for each in publications(3)])
        before = outside.execute("PRAGMA data_version").fetchall()
        for _ in range(5):
            assert not (await store.queue.claim(10, LEASE)).works
            assert await store.queue.promote(10) == 0
            assert not (await store.queue.claim_deliveries({1: 5}, LEASE)).deliveries
        assert outside.execute("PRAGMA data_version").fetchall() == before
        await store.events.append(publications(1))
        assert outside.execute("PRAGMA data_version").fetchall() != before

    async def test_idle_polls_do_not_wait_for_a_writer(self, store: Storage, outside: sqlite3.Connection) -> None:
        await store.queue.claim(10, LEASE)
        outside.execute("BEGIN IMMEDIATE")
        async with asyncio.timeout(4):
            assert not (await store.queue.claim(10, LEASE)).works
            assert await store.queue.promote(10) == 0
        outside.execute("ROLLBACK")


class TestLocks:
    @pytest.mark.usefixtures("impatient")
    async def test_a_locked_file_is_unavailable_until_it_is_released(self, path: Path) -> None:
        async with opened(path) as store:
            await store.events.append(publications(1))
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as blocker:
                blocker.execute("BEGIN EXCLUSIVE")
                for call in (
                    store.events.append(publications(1)),
                    store.queue.claim(1, LEASE),
                    store.queue.settle(Settled(1, (), ())),
                ):
                    with pytest.raises(StorageUnavailable, match="locked"):
                        await call
                blocker.execute("ROLLBACK")
            assert len(await store.events.append(publications(1))) == 1
            assert len((await store.queue.claim(10, LEASE)).works) == 2

    async def test_a_short_lock_is_waited_for(self, store: Storage, outside: sqlite3.Connection) -> None:
        await store.queue.claim(1, LEASE)
        outside.execute("BEGIN IMMEDIATE")
        call = asyncio.create_task(store.events.append(publications(1)))
        done, _ = await asyncio.wait({call}, timeout=0.1)
        assert not done
        outside.execute("COMMIT")
        assert len(await call) == 1

    async def test_no_cancelled_call_leaves_a_lock(
        self, store: Storage, outside: sqlite3.Connection, path: Path
    ) -> None:
        acknowledged: set[str] = set()
        for number in range(60):
            batch = publications(50)
            appending, claiming = (
                asyncio.create_task(store.events.append(batch)),
                asyncio.create_task(store.queue.claim(5, LEASE)),
            )
            for _ in range(number % 12):
                await asyncio.sleep(0)
            appending.cancel()
            claiming.cancel()
            await asyncio.wait({appending, claiming})
            if not appending.cancelled():
                acknowledged |= {receipt.id for receipt in appending.result()}

            def free() -> bool:
                try:
                    outside.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError:
                    return False  # the call that was cancelled is still at work, as it should be
                outside.execute("ROLLBACK")
                return True

            await eventually(free, timeout=4.0)  # a lock that is left waits for the collector
        await store.events.append(publications(1))
        assert acknowledged <= recorded(path)

    async def test_no_cancelled_session_leaves_a_lock(self, store: Storage, path: Path) -> None:
        """Here SQLAlchemy closes the connection, while the cancelled call's cursor lives on in its traceback."""

        async def publish() -> None:
            async with AsyncSession(store.engine) as session, session.begin():
                await store.events.append_in(session, publications(3))

        kept = []  # the tracebacks
        for number in range(60):
            calls = [
                asyncio.create_task(publish()),
                asyncio.create_task(store.registry.beat(Instance("i", "h", number, "v"), Health())),
            ]
            await asyncio.wait(calls, timeout=0.0004 * (number % 15))
            for call in calls:
                call.cancel()
            kept += await asyncio.gather(*calls, return_exceptions=True)
            async with asyncio.timeout(4.0):
                await store.events.append(publications(1))
        assert any(isinstance(each, asyncio.CancelledError) for each in kept)
        assert len(recorded(path)) >= 60


class TestFullDisk:
    async def test_a_full_file_refuses_and_keeps_what_it_acknowledged(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usual, room = sqlite_connection.pragmas, ["PRAGMA max_page_count = 200"]
        monkeypatch.setattr(sqlite_connection, "pragmas", lambda version: [*usual(version), *room])
        async with opened(path) as store:
            acknowledged: set[str] = set()

            async def fill() -> None:
                while True:
                    acknowledged.update([receipt.id for receipt in await store.events.append(publications(10, 10_000))])

            with pytest.raises(StorageUnavailable, match="full"):
                await fill()
            assert recorded(path) == acknowledged
            assert acknowledged
            room[:] = []  # somebody made room; no restart is needed
            acknowledged |= {receipt.id for receipt in await store.events.append(publications(10, 10_000))}
            assert recorded(path) == acknowledged


class TestTwoJournals:
    @pytest.mark.parametrize(("safe", "mode"), [(True, "wal"), (False, "persist")])
    async def test_the_store_works_with_both(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, safe: bool, mode: str
    ) -> None:
        monkeypatch.setattr(sqlite_connection, "wal_is_safe", lambda version: safe)
        async with opened(path) as store:
            await store.events.append(publications(20))
            claim = await store.queue.claim(20, LEASE)
            assert await store.queue.settle(Settled(claim.token, claim.works, [Run((1, 2), 20)])) == 20
            with contextlib.closing(sqlite3.connect(path)) as connection:
                assert connection.execute("SELECT count(*) FROM delivery_states").fetchall() == [(40,)]
                [(found,)] = connection.execute("PRAGMA journal_mode").fetchall()
                # PERSIST belongs to a connection, WAL to the file.
                assert (found == "wal") == (mode == "wal")


PUBLISHER = """
import asyncio, json, sys
from pathlib import Path
from tests.integration.test_sqlite import opened, publications

async def main():
    async with opened(Path(sys.argv[1])) as store:
        while True:
            receipts = await store.events.append(publications(5, 2000))
            print(json.dumps([receipt.id for receipt in receipts]), flush=True)

asyncio.run(main())
"""


class TestKill:
    async def test_what_was_acknowledged_outlives_the_process(self, path: Path, store: Storage) -> None:
        acknowledged: set[str] = set()
        for round in range(4):
            process = subprocess.Popen(
                [sys.executable, "-c", PUBLISHER, str(path)],
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[2],
            )
            with process:
                assert process.stdout is not None
                lines = [await asyncio.to_thread(process.stdout.readline) for _ in range(3 + round)]
                process.send_signal(signal.SIGKILL)
                lines += process.stdout.read().splitlines()
            for line in lines:
                with contextlib.suppress(json.JSONDecodeError):  # the last one may have been cut
                    acknowledged |= set(json.loads(line))
            assert acknowledged <= recorded(path)
            assert acknowledged
        assert len(await store.events.append(publications(1))) == 1


class TestForeignJournal:
    """Another program, which has the file open, has put it into WAL mode."""

    @pytest.fixture
    def holder(self, path: Path) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(path, timeout=5, isolation_level=None)) as connection:
            yield connection

    @pytest.fixture(params=[True, False])
    def safe(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
        """Whether our SQLite has the fix of the WAL-reset bug."""
        monkeypatch.setattr(sqlite_connection, "wal_is_safe", lambda version: request.param)
        return bool(request.param)

    def hold(self, holder: sqlite3.Connection) -> None:
        assert holder.execute("PRAGMA journal_mode = WAL").fetchall() == [("wal",)]
        holder.execute("CREATE TABLE IF NOT EXISTS theirs (n)")

    async def test_it_is_used_as_it_is(self, path: Path, holder: sqlite3.Connection, safe: bool) -> None:
        async with opened(path) as store:
            await store.events.append(publications(1))
        self.hold(holder)
        async with opened(path) as store:
            await store.events.append(publications(1))
            holder.execute("INSERT INTO theirs VALUES (1)")
            assert len((await store.queue.claim(10, LEASE)).works) == 2
        assert holder.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
        assert len(recorded(path)) == 2

    async def test_turned_on_while_we_run(
        self, path: Path, store: Storage, holder: sqlite3.Connection, safe: bool
    ) -> None:
        await store.events.append(publications(1))
        self.hold(holder)
        await store.events.append(publications(1))
        async with opened(path) as another:  # as the command line is
            await another.events.append(publications(1))
        assert len((await store.queue.claim(10, LEASE)).works) == 3
        assert len(recorded(path)) == 3

    async def test_the_mode_is_ours_again_once_it_is_gone(self, path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
            self.hold(holder)
        async with opened(path) as store:
            await store.events.append(publications(1))
            async with store.engine.connect() as connection:
                mode = (await connection.exec_driver_sql("PRAGMA journal_mode")).scalar()
        assert mode == ("wal" if sqlite_connection.wal_is_safe(sqlite3.sqlite_version_info) else "persist")

    async def test_a_large_wal_is_copied_back_though_nobody_else_does_it(
        self, path: Path, store: Storage, holder: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite_connection, "wal_is_safe", lambda version: False)
        monkeypatch.setattr(sqlite_connection, "_LARGE", 200_000)
        holder.execute("PRAGMA wal_autocheckpoint = 0")
        await store.close()
        await store.engine.dispose()
        self.hold(holder)
        largest = 0
        for _ in range(60):
            await store.events.append(publications(1, size=50_000))
            largest = max(largest, path.with_name("runner.db-wal").stat().st_size)
        assert 200_000 < largest < 1_000_000
        assert len(recorded(path)) == 60

    @pytest.mark.parametrize("mode", ["PERSIST", "MEMORY", "OFF", "DELETE"])
    async def test_rollback_modes_are_everybodys_own(
        self, path: Path, store: Storage, holder: sqlite3.Connection, mode: str
    ) -> None:
        holder.execute(f"PRAGMA journal_mode = {mode}")
        holder.execute("CREATE TABLE theirs (n)")
        await store.events.append(publications(1))
        holder.execute("INSERT INTO theirs VALUES (1)")
        await store.events.append(publications(1))
        assert len(recorded(path)) == 2

    async def test_a_file_that_somebody_has_for_himself_is_away_and_the_error_says_why(
        self, path: Path, impatient: None
    ) -> None:
        async with opened(path) as store:
            await store.events.append(publications(1))
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
            holder.execute("PRAGMA locking_mode = EXCLUSIVE")
            holder.execute("CREATE TABLE theirs (n)")
            with pytest.raises(StorageUnavailable, match="another program holds the file"):
                async with opened(path):
                    pass

    async def test_a_file_that_is_no_database_is_refused_by_name(self, path: Path) -> None:
        await asyncio.to_thread(path.write_bytes, b"no database, but long enough to be taken for one " * 100)
        with pytest.raises(StorageError, match=r"not a database: correct storage\.dsn"):
            async with opened(path):
                pass


class TestFileThatCannotBeOpened:
    def test_nothing_is_left_that_would_speak_to_a_closed_loop(self, tmp_path: Path) -> None:
        """What is left printed a traceback once the loop had been closed, as it is at the end of a failed start."""
        before = set(threading.enumerate())

        async def fail() -> set[threading.Thread]:
            engine = open_engine(Dsn.parse(f"sqlite:///{tmp_path}", base=tmp_path), schema=None, pool=1)
            with pytest.raises(StorageUnavailable, match="unable to open"):
                await migrate(engine)
            return {each for each in threading.enumerate() if "_connection_worker_thread" in each.name} - before

        for _ in range(20):
            assert asyncio.run(fail()) == set()


class TestFirstUseThatIsCancelled:
    def test_nothing_is_left_that_would_speak_to_a_closed_loop(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """SQLAlchemy forgets a connection that was being prepared: an interrupted command printed a traceback."""
        before = set(threading.enumerate())
        connector, execute = aiosqlite.Connection._connect, aiosqlite.Connection._execute
        at = calls = 0
        opening: asyncio.Future[None]

        def cancel(function: Callable[..., Any]) -> Callable[..., Any]:
            """Return a `function` that ends after its caller was cancelled, when the time for that has come."""
            nonlocal calls
            calls += 1
            if calls != at:
                return function
            gone, loop = threading.Event(), asyncio.get_running_loop()
            loop.call_soon(opening.cancel)
            loop.call_later(0.02, gone.set)
            return lambda *args, **options: (gone.wait(), function(*args, **options))[1]

        async def connect_slowly(connection: aiosqlite.Connection) -> aiosqlite.Connection:
            connection._connector = cancel(connection._connector)
            return await connector(connection)

        def execute_slowly(
            connection: aiosqlite.Connection, function: Callable[..., Any], *args: Any, **options: Any
        ) -> Any:
            return execute(connection, cancel(function), *args, **options)  # type: ignore[no-untyped-call]  # untyped there

        monkeypatch.setattr(aiosqlite.Connection, "_connect", connect_slowly)
        monkeypatch.setattr(aiosqlite.Connection, "_execute", execute_slowly)

        async def use(engine: AsyncEngine) -> None:
            async with engine.connect():
                pass

        async def interrupt() -> set[threading.Thread]:
            nonlocal opening
            store = open_storage(Dsn.parse(f"sqlite:///{path}", base=path.parent))
            opening = asyncio.ensure_future(use(store.engine))
            with contextlib.suppress(asyncio.CancelledError):
                await opening
            await store.close()
            return {each for each in threading.enumerate() if "_connection_worker_thread" in each.name} - before

        while calls >= at:
            at, calls = at + 1, 0
            assert asyncio.run(interrupt()) == set(), at
        assert at > 5
