"""Connections to a PostgreSQL that speaks TLS, or does not, from homes that have certificates, or are not ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import ssl
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from runner.config.dsn import Dsn
from runner.errors import StorageUnavailable
from runner.storage.postgres.connector import PostgresConnector
from tests.support.postgres import PostgresServer
from tests.support.server import HOST

FILES = Path(__file__).parent / "tls"
ASKS_FOR_TLS = struct.pack("!ii", 8, 80877103)
NOBODY = 65534


class Front:
    """Stands before a PostgreSQL that was built without TLS, and speaks it in its place, or says no to it."""

    def __init__(self, server: int, *, tls: bool) -> None:
        self.encrypted: list[bool] = []
        self.port = 0
        self._server = server
        self._tls = tls
        self._pipes: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, encrypted = await reader.readexactly(8), False
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if first == ASKS_FOR_TLS:
                writer.write(b"S" if self._tls else b"N")
                await writer.drain()
                if encrypted := self._tls:
                    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
                    context.load_cert_chain(FILES / "server.crt", FILES / "server.key")
                    await writer.start_tls(context)
                first = await reader.readexactly(8)
            self.encrypted.append(encrypted)
            inward, outward = await asyncio.open_connection(HOST, self._server)
            outward.write(first)
            await asyncio.gather(_pipe(reader, outward), _pipe(inward, writer))
        writer.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()


@contextlib.asynccontextmanager
async def front(postgres: PostgresServer, *, tls: bool) -> AsyncIterator[Front]:
    made = Front(postgres.port, tls=tls)
    server = await asyncio.start_server(made.serve, HOST, 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


async def connect(port: int, parameters: str) -> None:
    dsn = Dsn.parse(f"postgresql://postgres@{HOST}:{port}/postgres?{parameters}", base=FILES)
    connection = await PostgresConnector(dsn).connect()
    try:
        assert await connection.fetchval("SELECT 1") == 1
    finally:
        await connection.close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def home_of_another(home: Path) -> Iterator[None]:
    """A home that this process may not look into."""
    home.chmod(0o700 if os.geteuid() == 0 else 0)
    was = os.geteuid()
    if was == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(was)
        home.chmod(0o700)


@pytest.mark.parametrize(
    ("parameters", "with_tls", "without_tls"),
    [
        ("", True, False),
        ("sslmode=prefer", True, False),
        ("sslmode=allow", False, False),
        ("sslmode=disable", False, False),
        ("sslmode=require", True, None),
        ("sslmode=verify-full&sslrootcert=server.crt", True, None),
    ],
)
async def test_modes(
    postgres: PostgresServer, home: Path, parameters: str, with_tls: bool, without_tls: bool | None
) -> None:
    async with front(postgres, tls=True) as speaks:
        await connect(speaks.port, parameters)
    assert speaks.encrypted == [with_tls]
    async with front(postgres, tls=False) as refuses:
        if without_tls is None:
            with pytest.raises(StorageUnavailable, match="rejected SSL upgrade"):
                await connect(refuses.port, parameters)
        else:
            await connect(refuses.port, parameters)
            assert refuses.encrypted[-1:] == [False]


@pytest.mark.usefixtures("home_of_another")
@pytest.mark.parametrize("parameters", ["", "sslmode=prefer", "sslmode=allow", "sslmode=require"])
async def test_a_home_that_may_not_be_entered_is_no_outage(postgres: PostgresServer, parameters: str) -> None:
    async with front(postgres, tls=True) as speaks:
        await connect(speaks.port, parameters)


async def test_the_authorities_of_the_system(
    postgres: PostgresServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with front(postgres, tls=True) as speaks:
        with pytest.raises(StorageUnavailable, match="certificate verify failed"):
            await connect(speaks.port, "sslrootcert=system")
        monkeypatch.setenv("SSL_CERT_FILE", str(FILES / "server.crt"))
        await connect(speaks.port, "sslrootcert=system")
    assert speaks.encrypted == [True]


async def test_the_root_certificate_at_home(postgres: PostgresServer, home: Path) -> None:
    (home / ".postgresql").mkdir()
    shutil.copy(FILES / "server.crt", home / ".postgresql" / "root.crt")
    async with front(postgres, tls=True) as speaks:
        await connect(speaks.port, "sslmode=verify-full")
    assert speaks.encrypted == [True]
