"""Databases in an encoding that cannot hold every character."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from runner import Delivery
from runner.errors import EventError
from runner.event import Event
from runner.policies.retry import RetryPolicy
from runner.storage import encoding as module
from runner.storage.encoding import storable
from runner.storage.tables import attempts
from tests.support.eventually import eventually
from tests.support.postgres import PostgresServer

from .buses import Bus, running

DASH = "refused \u2013 card expired \udce9\0"


@pytest.mark.parametrize("name", sorted(module._CODECS))
def test_postgresql_holds_what_python_says_it_does(postgres: PostgresServer, name: str) -> None:
    held = [chr(code) for code in range(1, 0x2300) if storable(chr(code), name) == chr(code) and code != 0x27]
    assert len(held) > 200
    postgres.psql(f"SELECT convert_to('{''.join(held)}', '{name}')")


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("UTF8", "refused \u2013 card expired ?\ufffd"),
        ("SQL_ASCII", "refused \u2013 card expired ?\ufffd"),
        ("LATIN1", "refused \\u2013 card expired \\udce9?"),
        ("WIN1252", "refused \u2013 card expired \\udce9?"),
        ("EUC_JP", "refused \\u2013 card expired \\udce9?"),
    ],
)
def test_what_cannot_be_held_is_replaced(encoding: str, expected: str) -> None:
    assert storable(DASH, encoding) == expected
    assert storable(None, encoding) is None


@pytest.fixture(params=["LATIN1", "SQL_ASCII", "EUC_JP"])
def narrow_dsn(request: pytest.FixtureRequest, postgres: PostgresServer) -> Iterator[str]:
    name = f"narrow_{request.param.lower()}"
    postgres.psql(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{request.param}'")
    yield postgres.dsn(name)
    postgres.drop_database(postgres.dsn(name))


@pytest.fixture
async def narrow(narrow_dsn: str, tmp_path: Path) -> AsyncIterator[Bus]:
    async with running(tmp_path, narrow_dsn) as bus:
        yield bus


class TestNarrow:
    async def test_a_failure_in_words_it_cannot_hold_is_recorded_once(self, narrow: Bus) -> None:
        runner = narrow.runner()
        arrived: list[str] = []

        async def fails(event: Event, delivery: Delivery) -> None:
            raise ValueError(DASH)

        async def takes(event: Event, delivery: Delivery) -> None:
            arrived.append(event.id)

        runner.subscribe("fails", fails, retry=RetryPolicy(max_attempts=1))
        runner.subscribe("takes", takes)
        with capture_logs() as logged:
            async with runner:
                await narrow.publish([Event.new("t", source="/s", id="1")])
                await eventually(lambda: narrow.reached(delivered=1, dead=1))
        reasons = [row["last_error"] for row in await narrow.deliveries() if row["state"] == "dead"]
        assert all("card expired" in reason for reason in reasons)
        assert [f"{row['error']} (attempt 1 of 1)" for row in await narrow.database.rows(attempts)] == reasons
        assert arrived == ["1"]
        universal = narrow.dsn.endswith("sql_ascii")
        concerns = [line["concern"] for line in logged if "concern" in line]
        assert len(concerns) == (0 if universal else 1)
        assert universal or "ENCODING 'UTF8'" in concerns[0]

    async def test_an_event_it_cannot_hold_is_refused_with_the_attribute(self, narrow: Bus) -> None:
        async with narrow.runner() as bus:
            good = [bus.publish(Event.new("t", {"text": "\u2013"}, source="/s", id=str(n))) for n in range(20)]
            bad = bus.publish(Event.new("t", source="/s", subject="a \u2013 b"))
            *receipts, refusal = await asyncio.gather(*good, bad, return_exceptions=True)
        assert [receipt for receipt in receipts if isinstance(receipt, Exception)] == []
        if narrow.dsn.endswith("sql_ascii"):
            assert not isinstance(refusal, Exception)
        else:
            assert isinstance(refusal, EventError)
            assert "subject: the encoding of the database" in str(refusal)
            assert refusal.__cause__ is not refusal

    def test_publish_event_sees_characters_and_not_bytes(
        self, postgres: PostgresServer, narrow_dsn: str, tmp_path: Path, run_migrate: Callable[[str], None]
    ) -> None:
        run_migrate(narrow_dsn)
        publish = "SELECT publish_event('t', source => '/s', subject => {})"
        set_encoding = "SET client_encoding = 'UTF8'; "
        assert postgres.psql(set_encoding + publish.format("'é'"), narrow_dsn)
        for forbidden in ("E'a\\x01b'", "E'a\\x7fb'"):
            with pytest.raises(RuntimeError, match="subject has a control character"):
                postgres.psql(set_encoding + publish.format(forbidden), narrow_dsn)


@pytest.fixture
def run_migrate() -> Callable[[str], None]:
    from tests.support.migrated import migrate_now

    return migrate_now


def test_the_euro_is_no_control_character(postgres: PostgresServer, run_migrate: Callable[[str], None]) -> None:
    """In WIN1252 its code is 0x80, which in Unicode is a control character."""
    postgres.psql("CREATE DATABASE euro TEMPLATE template0 ENCODING 'WIN1252'")
    dsn = postgres.dsn("euro")
    try:
        run_migrate(dsn)
        assert postgres.psql(
            "SET client_encoding = 'UTF8'; SELECT publish_event('t', source => '/s', subject => '5 €')", dsn
        )
    finally:
        postgres.drop_database(dsn)
