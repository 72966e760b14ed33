"""How connections are made: with nothing that a pooler would mix up."""

from __future__ import annotations

import os
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text

from runner.config.dsn import Dsn
from runner.errors import ConfigError, StorageError, StorageUnavailable
from runner.storage.errors import mapped_errors
from tests.support.engines import open_engine


@pytest.mark.parametrize("pgbouncer", [True, False])
async def test_through_a_pooler_nothing_is_left_in_the_session(postgres_dsn: str, pgbouncer: bool) -> None:
    engine = open_engine(Dsn.parse(postgres_dsn, base=Path()), pool=1, pgbouncer=pgbouncer)
    async with engine.connect() as connection:
        for number in range(3):
            assert await connection.scalar(text("SELECT :n + 1"), {"n": number}) == number + 1
        left = await connection.scalar(text("SELECT count(*) FROM pg_prepared_statements"))
        name = await connection.scalar(text("SELECT current_setting('application_name')"))
        raw = (await connection.get_raw_connection()).dbapi_connection
        # SQLAlchemy's own cache; there is no other way to see it.
        cache = raw._prepared_statement_cache  # type: ignore[union-attr]  # of the asyncpg adapter
    await engine.dispose()
    assert (cache is None, left == 0) == (pgbouncer,) * 2
    assert name == "runner"


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.ProtocolViolationError("unsupported startup parameter: jit"),
        asyncpg.DuplicatePreparedStatementError('prepared statement "__asyncpg_stmt_1__" already exists'),
        asyncpg.InvalidSQLStatementNameError('prepared statement "__asyncpg_stmt_1__" does not exist'),
    ],
)
def test_who_takes_a_pooler_for_a_server_is_told_what_to_set(error: Exception) -> None:
    with (
        pytest.raises(StorageError, match=r"pgbouncer is in between; set storage\.pgbouncer: true") as caught,
        mapped_errors(),
    ):
        raise error
    assert str(error) in str(caught.value)
    assert not isinstance(caught.value, StorageUnavailable), "to wait for it would be to wait for ever"


def test_a_refused_password_comes_with_its_cure() -> None:
    error = asyncpg.InvalidPasswordError('password authentication failed for user "shop"')
    with pytest.raises(StorageError, match=r"correct storage\.password, the DSN or PGPASSWORD"), mapped_errors():
        raise error


@pytest.mark.parametrize("dsn", ["postgresql://db/shop", "postgresql:///shop?host=/run/postgresql"])
def test_a_dsn_without_a_user_needs_a_user_of_the_system(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGUSER", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # as in a container that runs under a number
    with pytest.raises(ConfigError, match=rf"storage\.dsn: names no user, and the user id {os.getuid()} has no name"):
        open_engine(Dsn.parse(dsn, base=Path()))
    open_engine(Dsn.parse(dsn.replace("//", "//shop@", 1), base=Path()))
    monkeypatch.setenv("PGUSER", "shop")
    open_engine(Dsn.parse(dsn, base=Path()))
