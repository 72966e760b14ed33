"""Whoever listens where PostgreSQL should: a time and a size for all that is said before it is ready."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import resource
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import uvloop

from runner.config.dsn import Dsn
from runner.errors import StorageUnavailable
from runner.storage.postgres import handshake
from runner.storage.postgres.connector import CONNECT_TIMEOUT, PostgresConnector
from runner.storage.postgres.handshake import MAX_ITERATIONS
from tests.support.postgres import PostgresServer
from tests.support.server import HOST

TLS = Path(__file__).parent / "tls"
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
READY = b"Z\0\0\0\x05I"
OK = b"R\0\0\0\x08\0\0\0\0"


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def sasl(code: int, body: bytes) -> bytes:
    return message(b"R", struct.pack("!i", code) + body)


VERSION = message(b"S", b"server_version\0" + b"16.4\0")
MECHANISMS = sasl(10, b"SCRAM-SHA-256\0\0")
SALT = base64.b64encode(b"x" * 16)


@contextlib.asynccontextmanager
async def impostor(talk: Talk) -> AsyncIterator[Dsn]:
    """Run a server that reads the first message and goes on as `talk` does."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            size = int.from_bytes(await reader.readexactly(4), "big")
            await reader.readexactly(size - 4)
            await talk(reader, writer)
            await writer.drain()
            await reader.read()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield Dsn.parse(f"postgresql://me:s3cret-w0rd@127.0.0.1:{port}/shop?sslmode=disable", Path())


def saying(*pieces: bytes) -> Talk:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()

    return talk


def scram(reply: Callable[[bytes], bytes]) -> Talk:
    """Answer the client's first message of SCRAM by what `reply` makes of its nonce."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(MECHANISMS)
        said = await reader.read(1000)
        writer.write(sasl(11, reply(said.rpartition(b"r=")[2])))

    return talk


def endless(piece: bytes) -> Talk:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(piece)
            await writer.drain()

    return talk


GARBAGE: dict[str, Talk] = {
    "nothing": saying(),
    "http": saying(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "ssh": saying(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "zeros": saying(bytes(100)),
    "random": saying(bytes(range(255, -1, -1)) * 10),
    "2 GB announced": saying(b"R" + struct.pack("!i", 2**31 - 1) + b"x" * 1000),
    "a negative length": saying(b"R" + struct.pack("!i", -5) + b"x" * 1000),
    "a length of 0": saying(b"S\0\0\0\0" * 100),
    "a length of 3": saying(b"R\0\0\0\x03" * 100),
    "an error of 2002": saying(b"Ecould not fork new process for connection: \x1b[31mno memory\n\0"),
    "an empty error": saying(message(b"E", b"")),
    "an error without an end": saying(message(b"E", b"SFATAL\0Mno")),
    "an error of nothing": saying(message(b"E", b"\0")),
    "an error in bytes": saying(message(b"E", b"S\xff\xfe\0C\xff\0M\xff\xff\0\0")),
    "no authentication": saying(message(b"R", b"")),
    "unknown authentication": saying(sasl(99, b"")),
    "kerberos": saying(sasl(2, b"")),
    "no mechanism": saying(sasl(10, b"\0")),
    "another mechanism": saying(sasl(10, b"ROT13\0\0")),
    "mechanisms in bytes": saying(sasl(10, b"\xff\xfe\0\0")),
    "md5 without salt": saying(sasl(5, b"")),
    "scram out of turn": saying(sasl(11, b"r=x,s=eA==,i=4096")),
    "scram at its end": saying(sasl(12, b"v=eA==")),
    "a parameter without an end": saying(OK + message(b"S", b"server_version")),
    "an encoding of its own": saying(OK + VERSION + message(b"S", b"client_encoding\0ROT13\0") + READY),
    "half a key": saying(OK + message(b"K", b"\0")),
    "an empty end": saying(OK + message(b"Z", b"")),
    "no version": saying(OK + READY),
    "a version of its own": saying(OK + message(b"S", b"server_version\0latest\0") + READY),
    "a version of 5,000 digits": saying(OK + message(b"S", b"server_version\0" + b"9" * 5000 + b"\0") + READY),
    "rows": saying(OK + message(b"D", b"\0\0")),
    "notices without end": endless(message(b"N", b"SNOTICE\0C00000\0Mhello\0\0")),
    "parameters without end": endless(message(b"S", b"a\0b\0")),
    "one byte a second": saying(b"R"),
    "scram: 200 million iterations": scram(lambda nonce: b"r=" + nonce + b"x,s=" + SALT + b",i=200000000"),
    "scram: iterations twice": scram(lambda nonce: b"r=" + nonce + b"x,s=" + SALT + b",i=4096,i=200000000"),
    "scram: a number of 1,000 digits": scram(lambda nonce: b"r=" + nonce + b"x,s=" + SALT + b",i=" + b"9" * 1000),
    "scram: no iterations": scram(lambda nonce: b"r=" + nonce + b"x,s=" + SALT),
    "scram: zero iterations": scram(lambda nonce: b"r=" + nonce + b"x,s=" + SALT + b",i=0"),
    "scram: another nonce": scram(lambda nonce: b"r=other,s=" + SALT + b",i=4096"),
    "scram: no salt": scram(lambda nonce: b"r=" + nonce + b"x,i=4096"),
    "scram: a salt that is none": scram(lambda nonce: b"r=" + nonce + b"x,s=!,i=4096"),
    "scram: bytes": scram(lambda nonce: b"\xff\xfe,i=4096"),
}


@pytest.mark.parametrize("talk", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_is_an_unavailable_server_soon_and_cheap(talk: Talk) -> None:
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with impostor(talk) as dsn:
        used = time.process_time()  # of this process: a busy machine changes nothing about it
        with pytest.raises(StorageUnavailable) as caught:
            async with asyncio.timeout(10 * CONNECT_TIMEOUT):
                await PostgresConnector(dsn).connect()
        assert time.process_time() - used < CONNECT_TIMEOUT
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB
    assert "s3cret-w0rd" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert not [each for each in unheard if "data_received" in each["message"]]


@pytest.mark.parametrize("encoding", [b"UTF8", b"utf-8", b"'utf-8'"])
def test_utf_8_is_believed_as_a_pooler_spells_it(encoding: bytes) -> None:
    """Pgbouncer repeats what the client has asked for, with its quotes."""
    assert handshake._UTF_8.fullmatch(b"client_encoding\0" + encoding + b"\0")


async def test_the_loop_goes_on_while_iterations_are_refused() -> None:
    async with impostor(GARBAGE["scram: 200 million iterations"]) as dsn:
        with pytest.raises(StorageUnavailable, match="wants 200000000 iterations of SCRAM, at most 1000000 are made"):
            await PostgresConnector(dsn).connect()


async def test_what_a_strict_server_may_want_is_made() -> None:
    """The proof is wrong in the end, since the impostor does not know the password; until then all is as ever."""
    made: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(MECHANISMS)
        nonce = (await reader.read(1000)).rpartition(b"r=")[2]
        writer.write(sasl(11, b"r=" + nonce + b"x,s=" + SALT + b",i=%d" % (MAX_ITERATIONS // 10)))
        made.append(await reader.read(1000))
        writer.write(sasl(12, b"v=" + base64.b64encode(b"y" * 32)) + OK + READY)

    async with impostor(talk) as dsn:
        with pytest.raises(StorageUnavailable):
            await PostgresConnector(dsn).connect()
    assert b",p=" in made[0]


async def test_garbage_within_tls() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.crt", TLS / "server.key")

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"S")
        await writer.drain()
        await writer.start_tls(context)
        size = int.from_bytes(await reader.readexactly(4), "big")
        await reader.readexactly(size - 4)
        writer.write(MECHANISMS)
        nonce = (await reader.read(1000)).rpartition(b"r=")[2]
        writer.write(sasl(11, b"r=" + nonce + b"x,s=" + SALT + b",i=200000000"))

    async with impostor(talk) as plain:
        dsn = Dsn.parse(plain.reveal().replace("disable", "require"), Path())
        with pytest.raises(StorageUnavailable, match="iterations of SCRAM"):
            await PostgresConnector(dsn).connect()


async def test_bytes_in_small_pieces_are_read_as_ever() -> None:
    """A gate that looked at each packet by itself would be passed by whoever cuts a message."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in MECHANISMS:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        nonce = (await reader.read(1000)).rpartition(b"r=")[2]
        for byte in sasl(11, b"r=" + nonce + b"x,s=" + SALT + b",i=200000000"):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)

    async with impostor(talk) as dsn:
        with pytest.raises(StorageUnavailable, match="iterations of SCRAM"):
            await PostgresConnector(dsn).connect()


async def test_of_a_server_that_is_one_nothing_is_left_of_the_gate(postgres_dsn: str) -> None:
    connection = await PostgresConnector(Dsn.parse(postgres_dsn, Path())).connect()
    try:
        assert connection._loop is asyncio.get_running_loop()
        assert connection._transport.get_protocol() is connection._protocol
        assert await connection.fetchval("SELECT repeat('x', 1000000)") == "x" * 1_000_000
        with pytest.raises(asyncio.TimeoutError):
            await connection.execute("SELECT pg_sleep(10)", timeout=0.05)  # cancelled over a connection of its own
        assert await connection.fetchval("SELECT 1") == 1
    finally:
        await connection.close()


@pytest.fixture(scope="module")
def strict(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A server with a role for each way to log in."""
    server = PostgresServer(request.config.getoption("--postgres"), fsync=False)
    server.start()
    ways = ("scram-sha-256", "md5", "password")
    for way in ways:
        encryption = "md5" if way == "md5" else "scram-sha-256"
        server.psql(f"""SET password_encryption = '{encryption}'; CREATE ROLE "{way}" LOGIN PASSWORD 'pässw0rd'""")
    rules = "".join(f'host all "{way}" {HOST}/32 {way}\n' for way in ways)
    hba = server.data / "pg_hba.conf"
    hba.write_text(rules + hba.read_text())
    server.psql("SELECT pg_reload_conf()")
    try:
        yield server
    finally:
        server.discard()


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("way", ["scram-sha-256", "md5", "password"])
@pytest.mark.parametrize("socket", [False, True], ids=["tcp", "socket"])
def test_every_login_of_a_real_server_passes(
    strict: PostgresServer, make_loop: Callable[[], asyncio.AbstractEventLoop], way: str, socket: bool
) -> None:
    where = f"?host={strict.data}&port={strict.port}" if socket else ""
    at = "" if socket else f"{HOST}:{strict.port}"

    async def enter(password: str) -> str:
        connection = await PostgresConnector(
            Dsn.parse(f"postgresql://{way}:{password}@{at}/postgres{where}", Path())
        ).connect()
        try:
            return str(await connection.fetchval("SELECT current_user"))
        finally:
            await connection.close()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        assert runner.run(enter("p%C3%A4ssw0rd")) == way
        if not socket:  # which is trusted
            with pytest.raises(asyncpg.InvalidPasswordError):
                runner.run(enter("wrong"))
