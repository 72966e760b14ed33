"""The watcher of the database file, against real writers."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from runner.strategies.sqlite import Sqlite
from tests.support.eventually import eventually


class Station:
    def __init__(self, path: Path, every: float) -> None:
        self.wakes = 0
        self.sqlite = Sqlite(path, timedelta(seconds=every))

    def wake(self) -> None:
        self.wakes += 1


Start = Callable[..., Awaitable[Station]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    stations: list[Station] = []

    async def begin(path: Path, *, every: float = 0.005) -> Station:
        station = Station(path, every)
        stations.append(station)
        await station.sqlite.start(station.wake)
        return station

    yield begin
    for station in stations:
        await station.sqlite.stop()


@pytest.fixture(params=["wal", "delete"])
def journal(request: pytest.FixtureRequest) -> str:
    mode: str = request.param
    return mode


def database(path: Path, journal: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    assert connection.execute(f"PRAGMA journal_mode={journal}").fetchone() == (journal,)
    connection.execute("CREATE TABLE IF NOT EXISTS t (a)")
    return connection


def insert(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO t VALUES (1)")


async def test_commit_of_this_and_of_another_process_wakes(start: Start, tmp_path: Path, journal: str) -> None:
    path = tmp_path / "a #%? file.db"
    writer = database(path, journal)
    station = await start(path)
    await eventually(lambda: station.wakes == 1)
    insert(writer)
    await eventually(lambda: station.wakes == 2)
    program = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('INSERT INTO t VALUES (2)'); c.commit()"
    subprocess.run([sys.executable, "-c", program, path], check=True, timeout=30)
    await eventually(lambda: station.wakes == 3)
    writer.close()


async def test_file_that_comes_later_is_found(start: Start, tmp_path: Path, journal: str) -> None:
    station = await start(tmp_path / "bus.db")
    await eventually(lambda: "there is no such file" in station.sqlite.detail)
    assert not station.sqlite.hears
    assert not (tmp_path / "bus.db").exists()
    writer = database(tmp_path / "bus.db", journal)
    await eventually(lambda: all((station.sqlite.hears, station.wakes)))
    before = station.wakes
    insert(writer)
    await eventually(lambda: station.wakes > before)
    writer.close()


async def test_file_that_is_moved_away_is_no_longer_watched(start: Start, tmp_path: Path, journal: str) -> None:
    path = tmp_path / "bus.db"
    database(path, journal).close()
    station = await start(path)
    await eventually(lambda: station.wakes == 1)
    path.rename(tmp_path / "old.db")
    await eventually(lambda: not station.sqlite.hears)


async def test_replaced_file_is_followed(start: Start, tmp_path: Path) -> None:
    path, replacement = tmp_path / "bus.db", tmp_path / "new.db"
    database(path, "delete").close()
    database(replacement, "delete").close()
    station = await start(path)
    await eventually(lambda: station.wakes == 1)
    replacement.replace(path)
    await eventually(lambda: station.wakes == 2)
    writer = sqlite3.connect(path, isolation_level=None)
    insert(writer)
    await eventually(lambda: station.wakes == 3)
    writer.close()


async def test_locked_file_is_looked_at_again(start: Start, tmp_path: Path, journal: str) -> None:
    writer = database(tmp_path / "bus.db", journal)
    station = await start(tmp_path / "bus.db")
    await eventually(lambda: station.wakes == 1)
    writer.execute("BEGIN EXCLUSIVE")
    insert(writer)
    began = time.monotonic()
    station.sqlite.look()
    assert time.monotonic() - began < 4.0
    assert station.wakes == 1
    assert station.sqlite.hears
    writer.execute("COMMIT")
    await eventually(lambda: station.wakes == 2)
    writer.close()


async def test_writer_is_never_kept_waiting(start: Start, tmp_path: Path, journal: str) -> None:
    writer = database(tmp_path / "bus.db", journal)
    writer.execute("PRAGMA busy_timeout=0")
    station = await start(tmp_path / "bus.db")
    await eventually(lambda: station.sqlite.hears)
    for _ in range(50):
        station.sqlite.look()
        insert(writer)  # an error would say that the watcher still holds its lock
    writer.close()


async def test_something_else_than_a_database_is_reported(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "bus.db"
    path.write_bytes(b"no database" * 1000)
    station = await start(path)
    await eventually(lambda: "DatabaseError" in station.sqlite.detail)
    assert not station.sqlite.hears


async def test_look_costs_next_to_nothing(start: Start, tmp_path: Path, journal: str) -> None:
    writer = database(tmp_path / "bus.db", journal)
    station = await start(tmp_path / "bus.db", every=3600.0)
    station.sqlite.look()
    began = time.process_time()
    for _ in range(1000):
        station.sqlite.look()
    # 40 a second may take half a percent of a core, that is 125 microseconds each.
    assert (time.process_time() - began) / 1000 < 125e-6
    writer.close()
