"""Connections to a PostgreSQL of several hosts: the present primary is found, whatever the others say."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from runner.config.dsn import Dsn
from runner.errors import StorageUnavailable
from runner.storage.postgres import connector as module
from runner.storage.postgres.connector import PostgresConnector
from runner.storage.postgres.database import PostgresDatabase
from tests.support.eventually import eventually
from tests.support.postgres import PostgresServer
from tests.support.proxy import Proxy
from tests.support.server import HOST


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """A former primary that still takes writes, and its standby, which has been promoted."""
    version = request.config.getoption("--postgres")
    former = PostgresServer(version, fsync=False)
    former.start()
    present = PostgresServer(version, fsync=False, primary=former.dsn())
    try:
        present.start()
        present.promote()
        yield former, present
    finally:
        present.discard()
        former.discard()


def connector(*ports: int) -> PostgresConnector:
    hosts = ",".join(f"{HOST}:{port}" for port in ports)
    return PostgresConnector(Dsn.parse(f"postgresql://postgres@{hosts}/postgres", base=Path()))


async def port_of(connection: asyncpg.Connection) -> int:
    try:
        return int(await connection.fetchval("SELECT current_setting('port')::int"))
    finally:
        await connection.close()


async def test_the_first_connection_goes_to_the_newest_timeline(pair: tuple[PostgresServer, PostgresServer]) -> None:
    former, present = pair
    for ports in ((former.port, present.port), (present.port, former.port)):
        assert await port_of(await connector(*ports).connect()) == present.port


async def test_no_connection_is_left_on_the_hosts_that_were_not_taken(
    pair: tuple[PostgresServer, PostgresServer],
) -> None:
    former, present = pair
    assert await port_of(await connector(former.port, present.port).connect()) == present.port
    others = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'runner'"
    await eventually(lambda: former.psql(others) == "0")


async def test_a_former_primary_is_refused_once_a_newer_one_was_seen(
    pair: tuple[PostgresServer, PostgresServer],
) -> None:
    former, present = pair
    async with Proxy(present.dsn()) as proxy:
        known = connector(former.port, proxy.port)
        assert await port_of(await known.connect()) == present.port
        await proxy.set_mode("refuse")
        with pytest.raises(StorageUnavailable, match="former primary"):
            await known.connect()


async def test_a_silent_host_costs_a_head_start_only(
    pair: tuple[PostgresServer, PostgresServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECT_TIMEOUT", 30.0)
    _, present = pair
    async with Proxy(present.dsn()) as proxy:
        known = connector(proxy.port, present.port)
        assert await port_of(await known.connect()) == present.port
        await proxy.set_mode("blackhole")
        began = time.monotonic()
        assert await port_of(await known.connect()) == present.port
        assert time.monotonic() - began < 25.0


async def test_a_host_that_takes_no_writes_is_left_for_one_that_does(
    make_postgres: Callable[..., PostgresServer],
) -> None:
    primary = make_postgres(fsync=False)
    standby = make_postgres(fsync=False, primary=primary.dsn())
    known = connector(primary.port, standby.port)
    assert await port_of(await known.connect()) == primary.port
    primary.psql("ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf()")
    standby.promote()

    async def moved() -> bool:
        return await port_of(await known.connect()) == standby.port

    await eventually(moved)


async def test_a_silent_server_is_found_out_once_and_not_by_each_connection(
    postgres: PostgresServer, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Proxy(postgres_dsn) as proxy:
        connections = PostgresDatabase(Dsn.parse(proxy.url, base=Path()), held=3).connections
        with monkeypatch.context() as patched:
            patched.setattr(module, "COMMAND_TIMEOUT", 2.0)  # of these two, which are to meet the silence
            async with connections.take() as one, connections.take() as two:
                before = {one.get_server_pid(), two.get_server_pid()}
        await proxy.set_mode("blackhole")
        with pytest.raises(StorageUnavailable):
            await connections.fetch("SELECT 1")
        await proxy.set_mode("pass")
        assert (await connections.fetch("SELECT pg_backend_pid()"))[0][0] not in before
        await connections.close()
