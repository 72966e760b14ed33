"""LISTEN and NOTIFY, against a real server and what happens to its sessions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import asyncpg
import pytest

from runner.strategies import postgres
from runner.strategies.postgres import PROBE, Postgres, channel_for
from tests.support.eventually import eventually
from tests.support.postgres import PostgresServer

SUBJECT = "mesh.one.events.notify"
CHANNEL = channel_for(SUBJECT)


class Station:
    """A started strategy and the connections it made."""

    def __init__(self, dsn: str, heartbeat: float) -> None:
        self.wakes = 0
        self.connections: list[asyncpg.Connection] = []
        self.postgres = Postgres(self._connect, SUBJECT, heartbeat=timedelta(seconds=heartbeat))
        self._dsn = dsn

    def wake(self) -> None:
        self.wakes += 1

    async def _connect(self) -> asyncpg.Connection:
        self.connections.append(await asyncpg.connect(self._dsn, timeout=3))
        return self.connections[-1]


Start = Callable[..., Awaitable[Station]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    stations: list[Station] = []

    async def begin(dsn: str, *, heartbeat: float = 10.0, wait: bool = True) -> Station:
        station = Station(dsn, heartbeat)
        stations.append(station)
        await station.postgres.start(station.wake)
        if wait:
            await eventually(lambda: station.postgres.hears)
        return station

    yield begin
    for station in stations:
        await station.postgres.stop()


@pytest.fixture
async def session(postgres_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres_dsn)
    yield connection
    await connection.close()


async def test_notify_of_any_sql_client_wakes(start: Start, postgres_dsn: str, session: asyncpg.Connection) -> None:
    station = await start(postgres_dsn)
    assert station.wakes == 1
    await session.execute("SELECT pg_notify($1, $2)", CHANNEL, PROBE)
    await session.execute("SELECT pg_notify($1, 'anything')", CHANNEL)
    await eventually(lambda: station.wakes == 2)
    assert station.postgres.received == 1


async def test_own_signal_wakes_others_only(start: Start, postgres_dsn: str) -> None:
    one, other = await start(postgres_dsn), await start(postgres_dsn)
    await one.postgres.notify("a")
    await eventually(lambda: other.wakes == 2)
    await other.postgres.notify("b")
    await eventually(lambda: one.wakes == 2)
    assert (one.wakes, other.wakes) == (2, 2)


async def test_ended_session_is_noticed_and_replaced(
    start: Start, postgres_dsn: str, session: asyncpg.Connection
) -> None:
    station = await start(postgres_dsn)
    for losses in (1, 2):
        pid = station.connections[-1].get_server_pid()
        await session.execute("SELECT pg_terminate_backend($1)", pid)
        # Long before a heartbeat would notice, and maybe faster than anyone can see it gone.
        await eventually(lambda: station.postgres.connects == 1 + losses and station.postgres.hears)  # noqa: B023  # awaited at once
        assert station.wakes == 1 + losses


async def test_forgotten_listen_is_noticed_by_the_heartbeat(
    start: Start, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "ANSWER_TIMEOUT", 60.0)  # so that it is not an echo that does not come
    station = await start(postgres_dsn, heartbeat=0.2)
    async with station.postgres._one_at_a_time:
        await station.connections[-1].execute("UNLISTEN *")  # as a pooler in transaction mode does
    await eventually(lambda: station.postgres.connects == 2)
    await eventually(lambda: station.postgres.hears)
    assert station.wakes == 2


async def test_echo_that_does_not_come_is_noticed_by_the_heartbeat(
    start: Start, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "ANSWER_TIMEOUT", 0.3)
    station = await start(postgres_dsn, heartbeat=0.2)
    station.connections[-1]._listeners.clear()  # notifications come, and nobody is told
    await eventually(lambda: station.postgres.connects == 2)
    await eventually(lambda: station.postgres.hears)
    assert station.wakes == 2


async def test_back_after_a_restart_of_the_server(start: Start, make_postgres: Callable[..., PostgresServer]) -> None:
    server = make_postgres(fsync=False)
    one, other = await start(server.dsn()), await start(server.dsn())
    server.stop("immediate")
    await eventually(lambda: not one.postgres.hears and not other.postgres.hears)
    assert "not listening" in one.postgres.detail
    await one.postgres.notify("while it is down")
    server.start()
    await eventually(lambda: one.postgres.hears and other.postgres.hears)
    await eventually(lambda: one.postgres.sent == 1)
    before = other.wakes
    await one.postgres.notify("e")
    await eventually(lambda: other.wakes > before)


async def test_foreign_notify_that_hangs_in_its_commit_delays_no_publisher(
    start: Start, make_postgres: Callable[..., PostgresServer]
) -> None:
    server = make_postgres(fsync=False, settings={"synchronous_standby_names": "nobody", "synchronous_commit": "local"})
    one, other = await start(server.dsn(), heartbeat=0.5), await start(server.dsn(), heartbeat=0.5)
    foreign = await asyncpg.connect(server.dsn())
    # It waits for a standby there is not, and holds the lock that every NOTIFY of the cluster needs.
    hanging = asyncio.ensure_future(
        foreign.execute("SET synchronous_commit = on; BEGIN; CREATE TABLE t (); NOTIFY elsewhere; COMMIT")
    )
    await eventually(lambda: one.postgres.connects > 1 and not one.postgres.hears)
    began = time.monotonic()
    for number in range(50):
        await one.postgres.notify(f"e{number}")
    assert time.monotonic() - began < 5.0
    admin = await asyncpg.connect(server.dsn())
    await admin.execute("SELECT pg_cancel_backend($1)", foreign.get_server_pid())
    await admin.close()
    await hanging
    await foreign.close()
    await eventually(lambda: one.postgres.hears and one.postgres.sent == 1)
    await eventually(lambda: other.postgres.hears)


async def test_process_that_ends_at_once_gets_its_signal_out(start: Start, postgres_dsn: str) -> None:
    listener = await start(postgres_dsn)
    brief = await start(postgres_dsn, wait=False)
    await brief.postgres.notify("e")
    await brief.postgres.stop()
    await eventually(lambda: listener.postgres.received == 1)
    assert all(connection.is_closed() for connection in brief.connections)


async def test_id_of_any_length_is_signalled(start: Start, postgres_dsn: str) -> None:
    one, other = await start(postgres_dsn), await start(postgres_dsn)
    await one.postgres.notify("é" * 9000 + "'; DROP TABLE x; --")
    await eventually(lambda: other.postgres.received == 1)
    assert one.postgres.failed == 0


async def test_cause_is_told_without_secrets(start: Start, postgres_dsn: str) -> None:
    station = await start(postgres_dsn.replace("postgres@", "nobody:s3cret@"), wait=False)
    await eventually(lambda: "Error" in station.postgres.detail)
    assert "s3cret" not in station.postgres.detail
