"""A pooler in transaction mode, which gives each transaction another session of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.pgbouncer import BINARY, PgBouncer
from tests.support.postgres import PostgresServer

from .deployment import Subscriber
from .trial import Trial

SESSIONS = 4  # of the server, for all processes together

pytestmark = pytest.mark.skipif(BINARY is None, reason="there is no pgbouncer on this machine")


@pytest.fixture
def pooler(durable_postgres: PostgresServer) -> Iterator[PgBouncer]:
    pooler = PgBouncer(durable_postgres.port, size=SESSIONS)
    try:
        pooler.start()
        yield pooler
    finally:
        pooler.discard()


async def pooled(trial: Trial, pooler: PgBouncer, console: Callable[[str], str]) -> None:
    """All that runs shares a few sessions; who takes the pooler for a server is told what to do."""
    through = pooler.dsn(trial.dsn.rsplit("/", 1)[1])
    options: dict[str, Any] = {"runner_dsn": through, "publisher_dsn": through}
    unaware = trial.deploy(Subscriber("work"), **options).launch()
    code = await asyncio.to_thread(unaware.wait)
    trial.require(code == 1, f"without the option a runner ended with {code}")
    told = any("set storage.pgbouncer: true" in line for line in unaware.stderr)
    trial.require(told, f"the cure is not named: {unaware.stderr[-1:]}")

    await trial.start(Subscriber("work"), Subscriber("hook", hook=0.005), storage="pgbouncer: true", **options)
    publisher = trial.publish(1500, rate=200.0)
    await trial.reach(trial.random.randint(300, 900))
    clients = console("SHOW CLIENTS").count(trial.dsn.rsplit("/", 1)[1])
    trial.bite(f"connections over {SESSIONS} sessions", clients * (clients > SESSIONS))
    trial.note(f"{clients} connections share {SESSIONS} sessions")
    await trial.drain(20)
    trial.require(publisher.returncode == 0, "the publisher did not end well")
    await trial.verify(duplicates=0)


@pytest.mark.chaos_postgres
@pytest.mark.chaos("FI-31", "pgbouncer in transaction mode, with the option and without it")
async def test_fi_31(trial: Trial, pooler: PgBouncer, durable_postgres: PostgresServer) -> None:
    await pooled(trial, pooler, lambda sql: durable_postgres.psql(sql, pooler.dsn("pgbouncer")))
