"""How connections are made: TLS as libpq means it, and nothing that a pooler would mix up."""

from __future__ import annotations

import ssl
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text

from runner.config.dsn import Dsn
from runner.errors import StorageError, StorageUnavailable
from runner.storage.engine import mapped_errors, open_engine, tls

FILES = Path(__file__).parents[2] / "integration" / "tls"
ROOT = "sslrootcert=server.crt"
CLIENT = "sslcert=server.crt&sslkey=server.key"


def tls_of(parameters: str) -> str | ssl.SSLContext:
    return tls(Dsn.parse(f"postgresql://db/events?{parameters}", base=FILES))


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"])
def test_a_mode_without_files_is_the_drivers_business(mode: str) -> None:
    assert tls_of(f"sslmode={mode}") == mode


@pytest.mark.parametrize(
    ("parameters", "verify_mode", "check_hostname"),
    [
        (f"sslmode=require&{ROOT}", ssl.CERT_REQUIRED, False),
        (f"sslmode=verify-ca&{ROOT}", ssl.CERT_REQUIRED, False),
        (f"sslmode=verify-full&{ROOT}", ssl.CERT_REQUIRED, True),
        (f"sslmode=require&{ROOT}&{CLIENT}", ssl.CERT_REQUIRED, False),
        (f"sslmode=require&{CLIENT}", ssl.CERT_NONE, False),
        (f"sslmode=verify-ca&{CLIENT}", ssl.CERT_REQUIRED, False),
        (f"sslmode=prefer&{CLIENT}", ssl.CERT_NONE, False),
        (f"sslmode=allow&{ROOT}&{CLIENT}", ssl.CERT_REQUIRED, False),
    ],
)
def test_files_are_used_as_libpq_would(parameters: str, verify_mode: ssl.VerifyMode, check_hostname: bool) -> None:
    context = tls_of(parameters)
    assert isinstance(context, ssl.SSLContext)
    assert (context.verify_mode, context.check_hostname) == (verify_mode, check_hostname)
    if ROOT in parameters:
        assert len(context.get_ca_certs()) == 1


@pytest.mark.parametrize("files", [ROOT, CLIENT, f"{ROOT}&{CLIENT}"])
def test_disabled_stays_disabled_whatever_files_there_are(files: str) -> None:
    assert tls_of(f"sslmode=disable&{files}") == "disable"


@pytest.mark.parametrize("mode", ["allow", "prefer"])
def test_a_root_certificate_alone_takes_away_no_fallback(mode: str) -> None:
    assert tls_of(f"sslmode={mode}&{ROOT}") == mode


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
    assert (cache is None, left == 0, name == "") == (pgbouncer,) * 3


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
