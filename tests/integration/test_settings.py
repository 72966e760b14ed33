"""What an administrator may set for a role or a database, and what of it may not reach the bus."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from runner.config.dsn import Dsn
from runner.event import Event
from runner.storage import open_storage
from runner.storage.contract.events import Publication
from runner.storage.contract.settlements import Run, Settled
from runner.storage.migrate import HEAD, migrate
from tests.contract.storage_contract import LEASE, Database
from tests.support.postgres import PostgresServer

SETTINGS = {
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "statement_timeout": "1ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "1ms",
    "idle_session_timeout": "1ms",
    "standard_conforming_strings": "off",
    "bytea_output": "escape",
    "datestyle": "german, dmy",
    "intervalstyle": "sql_standard",
    "timezone": "Asia/Kathmandu",
    "extra_float_digits": "-15",
    "transform_null_equals": "on",
    "array_nulls": "off",
    "row_security": "off",
    "session_replication_role": "replica",
    "check_function_bodies": "off",
    "client_encoding": "sql_ascii",
    "search_path": "pg_temp, public",
    "plan_cache_mode": "force_custom_plan",
    "enable_indexscan": "off",
}


@pytest.fixture
def strict_dsn(postgres: PostgresServer, postgres_dsn: str) -> Iterator[str]:
    """The DSN of a superuser with every setting of the list, on a database of its own."""
    role = f"strict_{uuid.uuid4().hex[:8]}"
    lines = [f"CREATE ROLE {role} LOGIN SUPERUSER"]
    lines += [
        f"ALTER ROLE {role} SET {name} = {value if ',' in value else repr(value)}" for name, value in SETTINGS.items()
    ]
    postgres.psql(";".join(lines), postgres_dsn)
    yield postgres_dsn.replace("//postgres@", f"//{role}@")
    postgres.psql(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}", postgres_dsn)


async def test_what_a_role_says_changes_nothing(strict_dsn: str) -> None:
    database = Database(strict_dsn)
    try:
        await migrate(database.engine)
        stores = [database.open() for _ in range(2)]
        wanted = [Publication(Event.new("t", {"n": n}, source="/s", extensions={"k": "\\x"})) for n in range(200)]
        # At once, so that a stricter isolation would have something to refuse.
        await asyncio.gather(
            *(store.events.append(wanted[at : at + 50]) for at in range(0, 200, 50) for store in stores)
        )
        claims = await asyncio.gather(*(store.queue.claim(40, LEASE) for store in stores * 3))
        for store, claim in zip(stores * 3, claims, strict=True):
            done = [Run((1,), len(claim.works))] if claim.works else []
            assert await store.queue.settle(Settled(claim.token, claim.works, done)) == len(claim.works)
        events = [work.event for claim in claims for work in claim.works]
        assert {event.id for event in events} == {each.event.id for each in wanted}
        assert {event.extensions["k"] for event in events} == {"\\x"}
    finally:
        await database.close()


async def test_runners_that_start_together_all_start(strict_dsn: str) -> None:
    storages = [open_storage(Dsn.parse(strict_dsn, base=Path())) for _ in range(3)]
    try:
        applied = await asyncio.gather(*(storage.take("one", create=True, upgrade=True) for storage in storages))
        assert sorted(map(len, applied))[:2] == [0, 0]
        assert max(applied, key=len)[-1] == HEAD
    finally:
        for storage in storages:
            await storage.close()


async def test_a_role_behind_a_pooler_has_to_carry_the_search_path(
    postgres: PostgresServer, strict_dsn: str, postgres_dsn: str
) -> None:
    """A pooler in transaction mode takes no parameters of a start: what is found is said, with a cure that works."""
    role = strict_dsn.split("//")[1].partition("@")[0]
    postgres.psql(f"ALTER ROLE {role} RESET ALL", postgres_dsn)
    dsn = Dsn.parse(strict_dsn, base=Path())

    async def concerns(schema: str | None) -> Sequence[str]:
        storage = open_storage(dsn, schema=schema, pgbouncer=True)
        try:
            await storage.take("one", create=True, upgrade=True)
            return await storage.concerns()
        finally:
            await storage.close()

    [said] = await concerns(None)
    cure = re.search(r"ALTER ROLE \S+ SET search_path = [a-z_, ]+(?=, with storage)", said)
    assert cure is not None, said
    postgres.psql(cure[0], strict_dsn)
    assert await concerns("public") == []
