"""The supervised connection, against real servers and the ways they fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from runner.nats import connection
from runner.nats.connection import Broker, BrokerError, BrokerOptions, MessageRefused
from tests.support.eventually import PATIENCE, eventually
from tests.support.nats import NatsServer
from tests.support.proxy import Proxy
from tests.support.server import free_port

TLS = Path(__file__).parent / "tls"
RECOVERY = 30.0  # seconds
SUBJECT = "test.subject"

MakeServer = Callable[..., NatsServer]
MakeBroker = Callable[..., Broker]


@pytest.fixture
async def make_broker() -> AsyncIterator[MakeBroker]:
    brokers: list[Broker] = []

    def make(*servers: str, **options: Any) -> Broker:
        brokers.append(Broker(BrokerOptions(servers=servers, **options)))
        return brokers[-1]

    yield make
    async with asyncio.timeout(PATIENCE):  # together, so that one that fails leaves none of the others dialling
        ended = await asyncio.gather(*[broker.stop() for broker in brokers], return_exceptions=True)
    assert [error for error in ended if error is not None] == []


async def connected(broker: Broker, timeout: float = RECOVERY) -> None:
    await broker.start()
    await eventually(lambda: broker.connected, timeout=timeout)


async def stuff(broker: Broker) -> None:
    """Hand over more than the buffers of the kernel and of nats-py hold, so that something stays unsent."""
    deadline = time.monotonic() + 2.0
    link = broker._link
    with contextlib.suppress(BrokerError):
        while time.monotonic() < deadline and broker._link is link:
            await broker.publish(SUBJECT, b"x" * 500_000)


async def exchange(broker: Broker) -> None:
    """Prove that messages go out and come in."""
    heard: list[bytes] = []
    ready: list[int] = []
    subscription = broker.subscribe(SUBJECT, heard.append, lambda: ready.append(1))
    await eventually(lambda: ready and broker.connected, timeout=RECOVERY)
    await broker.publish(SUBJECT, b"x", confirm=True)
    await eventually(lambda: heard)
    subscription.cancel()


# --- coming up and going down ----------------------------------------------------------------------


async def test_start_returns_at_once_and_connects_when_the_server_comes(make_broker: MakeBroker) -> None:
    port = free_port()
    broker = make_broker(f"nats://127.0.0.1:{port}")
    began = time.monotonic()
    await broker.start()
    await broker.start()
    assert time.monotonic() - began < 5.0
    await eventually(lambda: broker.counts.failures >= 2)
    with pytest.raises(BrokerError, match="not connected to NATS"):
        await broker.publish(SUBJECT)
    server = NatsServer(port=port)
    try:
        server.start()
        await eventually(lambda: broker.connected, timeout=RECOVERY)
        await exchange(broker)
    finally:
        server.discard()


async def test_back_after_every_kill(
    make_broker: MakeBroker, make_nats_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PROBE_EVERY", 60.0)  # so that it is not a probe that finds it out
    server = make_nats_server()
    broker = make_broker(server.url)
    ready: list[int] = []
    broker.subscribe(SUBJECT, lambda payload: None, lambda: ready.append(1))
    await connected(broker)
    for kills in (1, 2, 3):
        server.kill()
        await eventually(lambda: not broker.connected)
        server.start()
        await eventually(lambda: len(ready) == 1 + kills, timeout=RECOVERY)  # noqa: B023  # awaited at once
        await exchange(broker)
    assert len(ready) == 4
    assert broker.counts.connects == 4


async def test_stop_sends_what_was_handed_over(make_broker: MakeBroker, nats_server: NatsServer) -> None:
    listener, sender = make_broker(nats_server.url), make_broker(nats_server.url)
    heard: list[bytes] = []
    listener.subscribe(SUBJECT, heard.append)
    await connected(listener)
    await connected(sender)
    await sender.publish(SUBJECT, b"last")
    await sender.stop()
    await eventually(lambda: heard == [b"last"])
    assert not sender.connected
    await sender.stop()
    await connected(sender)  # and it can be started again


@pytest.mark.parametrize("mode", ["blackhole", "refuse"])
async def test_stop_is_bounded_whatever_the_network_does(
    make_broker: MakeBroker, nats_server: NatsServer, mode: Any
) -> None:
    async with Proxy(nats_server.url) as proxy:
        broker = make_broker(proxy.url)
        await connected(broker)
        await proxy.set_mode(mode)
        if mode == "blackhole":
            await stuff(broker)
        began = time.monotonic()
        await broker.stop()
        assert time.monotonic() - began < 10.0


async def test_cancelled_subscription_is_silent(make_broker: MakeBroker, nats_server: NatsServer) -> None:
    broker = make_broker(nats_server.url)
    kept: list[bytes] = []
    cancelled: list[bytes] = []
    broker.subscribe(SUBJECT, kept.append)
    subscription = broker.subscribe(SUBJECT, cancelled.append)
    await connected(broker)
    await broker.publish(SUBJECT, b"1", confirm=True)
    await eventually(lambda: kept == [b"1"] == cancelled)
    subscription.cancel()
    await broker.publish(SUBJECT, b"2", confirm=True)
    await eventually(lambda: kept == [b"1", b"2"])
    assert cancelled == [b"1"]


# --- one broken client after another ---------------------------------------------------------------


async def test_password_rotation_closes_the_client_and_not_the_broker(
    make_broker: MakeBroker, make_nats_server: MakeServer
) -> None:
    right = "authorization { user: me, password: right }"
    server = make_nats_server(right)
    broker = make_broker(server.url, user="me", password="right")
    await connected(broker)
    server.reload("authorization { user: me, password: rotated }")
    await eventually(lambda: not broker.connected and "uthorization" in broker.last_error)
    server.reload(right)
    await eventually(lambda: broker.connected, timeout=RECOVERY)
    await exchange(broker)


async def test_message_that_would_close_the_connection_is_refused(
    make_broker: MakeBroker, make_nats_server: MakeServer
) -> None:
    server = make_nats_server("max_payload: 1000")
    broker = make_broker(server.url)
    await connected(broker)
    assert broker.max_payload == 1000
    with pytest.raises(MessageRefused, match="at most 1000"):
        await broker.publish(SUBJECT, b"x" * 950, {"ce-id": "x" * 50})
    for subject in ("a..b", "a.*", "a.>", "a b", "", "a\r\nPUB b 0"):
        with pytest.raises(MessageRefused, match="subject"):
            await broker.publish(subject, b"x")
    with pytest.raises(MessageRefused):
        await broker.publish(SUBJECT, b"x", {"bad name": "x"})
    await broker.publish(SUBJECT, b"x" * 900, {"ce-id": "x" * 30}, confirm=True)
    assert broker.counts.connects == 1


async def test_dead_read_loop_is_found_out(make_broker: MakeBroker, nats_server: NatsServer) -> None:
    broker = make_broker(nats_server.url)
    await connected(broker)
    assert broker._link is not None
    reading = broker._link.client._reading_task
    assert reading is not None
    reading.cancel()  # what an exception in a callback does: the client goes on to say that it is connected
    assert broker.connected
    await eventually(lambda: broker.counts.connects == 2)
    await exchange(broker)


async def test_blackholed_server_with_unsent_bytes_is_left_for_a_healthy_one(
    make_broker: MakeBroker, nats_server: NatsServer, make_nats_server: MakeServer
) -> None:
    async with Proxy(nats_server.url) as proxy:
        other = make_nats_server()
        broker = make_broker(proxy.url)
        await connected(broker)
        assert broker.server == proxy.url.removeprefix("nats://")
        broker._configured = (*broker._configured, *BrokerOptions(servers=(other.url,)).parsed())
        await proxy.set_mode("blackhole")
        await stuff(broker)
        await eventually(lambda: broker.server == other.url.removeprefix("nats://"))
        await exchange(broker)


async def test_cancellation_of_a_stuck_publish_takes_effect(make_broker: MakeBroker, nats_server: NatsServer) -> None:
    async with Proxy(nats_server.url) as proxy:
        broker = make_broker(proxy.url)
        await connected(broker)
        await proxy.set_mode("blackhole")
        task = asyncio.ensure_future(stuff(broker))
        link = broker._link
        assert link is not None
        await eventually(lambda: link.client.pending_data_size > 1_000_000)  # it waits for the buffer now
        task.cancel()
        await asyncio.wait({task}, timeout=10)
        assert task.cancelled()


async def test_unconfirmed_message_is_an_error(make_broker: MakeBroker, nats_server: NatsServer) -> None:
    async with Proxy(nats_server.url) as proxy:
        broker = make_broker(proxy.url)
        await connected(broker)
        await proxy.set_mode("blackhole")
        began = time.monotonic()
        with pytest.raises(BrokerError):
            await broker.publish(SUBJECT, b"x", confirm=True)
        assert time.monotonic() - began < 10.0


async def test_lame_duck_is_left_before_it_cuts(make_broker: MakeBroker, make_nats_server: MakeServer) -> None:
    config = 'lame_duck_duration: "30s", lame_duck_grace_period: "10s"'
    first, second = make_nats_server(config), make_nats_server(config)
    broker = make_broker(first.url, second.url)
    ready: list[int] = []
    broker.subscribe(SUBJECT, lambda payload: None, lambda: ready.append(1))
    await connected(broker)
    await eventually(lambda: ready)
    current, other = (first, second) if broker.server == first.url.removeprefix("nats://") else (second, first)
    current.signal(signal.SIGUSR2)

    def moved() -> bool:
        assert broker.connected  # at no time is there none
        return broker.server == other.url.removeprefix("nats://")

    deadline = time.monotonic() + 9.0  # of the ten it is given
    while not moved():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
    await eventually(lambda: len(ready) == 2)
    await exchange(broker)


# --- who we talk to, and what we tell him ----------------------------------------------------------


class Impostor:
    """A server without TLS that keeps what it is told."""

    def __init__(self) -> None:
        self.received = b""
        self.visits = 0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visits += 1
        info = {"server_id": "x", "version": "2.11.0", "max_payload": 1000, "auth_required": True, "headers": True}
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
        try:
            while data := await reader.read(1000):
                self.received += data
        except ConnectionError:
            self.received += b""
        writer.close()


@pytest.mark.parametrize(
    ("scheme", "options"), [("tls", {}), ("nats", {"tls": True}), ("nats", {"tls_ca": TLS / "server.crt"})]
)
async def test_stripped_tls_gets_no_credentials(make_broker: MakeBroker, scheme: str, options: dict[str, Any]) -> None:
    impostor = Impostor()
    async with impostor as port:
        broker = make_broker(f"{scheme}://127.0.0.1:{port}", user="me", password="s3cret", **options)
        await broker.start()
        await eventually(lambda: impostor.visits >= 2)
        assert "offers no TLS" in broker.last_error
        assert impostor.received == b""
        await broker.stop()


async def test_without_tls_asked_for_the_same_server_is_told(make_broker: MakeBroker) -> None:
    impostor = Impostor()
    async with impostor as port:
        broker = make_broker(f"nats://127.0.0.1:{port}", user="me", password="s3cret")
        await broker.start()
        await eventually(lambda: b"s3cret" in impostor.received)
        await broker.stop()


async def test_tls_connects_to_who_it_trusts_and_to_nobody_else(
    make_broker: MakeBroker, make_nats_server: MakeServer
) -> None:
    certificate, key = TLS / "server.crt", TLS / "server.key"
    server = make_nats_server(f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}')
    url = server.url.replace("nats://", "tls://")
    trusting, careful = make_broker(url, tls_ca=certificate), make_broker(url)
    await careful.start()
    await connected(trusting)
    await exchange(trusting)
    await eventually(lambda: "certificate verify failed" in careful.last_error)
    assert not careful.connected
    careless = make_broker(url, tls_insecure=True)
    await connected(careless)


async def test_the_credentials_serve_every_node(make_broker: MakeBroker, make_nats_server: MakeServer) -> None:
    users = 'authorization { user: me, password: "p@ss/word" }'
    routes = [free_port(), free_port()]

    def cluster(own: int) -> str:
        others = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes if port != own)
        return f"{users}\ncluster {{ name: c, listen: 127.0.0.1:{own}, routes: [{others}] }}"

    first, second = (make_nats_server(cluster(port)) for port in routes)
    broker = make_broker(first.url, user="me", password="p@ss/word")
    await connected(broker)
    link = broker._link
    assert link is not None
    await eventually(lambda: any(node.port == second.port for node in link.discovered()))
    first.kill()
    await eventually(lambda: broker.server == second.url.removeprefix("nats://"), timeout=RECOVERY)
    await exchange(broker)


async def test_bad_credentials_file_neither_freezes_nor_ends_it(
    make_broker: MakeBroker, nats_server: NatsServer, tmp_path: Path
) -> None:
    path = tmp_path / "user.creds"
    path.write_text("no JWT in here\n")
    broker = make_broker(nats_server.url, credentials=path)
    await broker.start()
    await eventually(lambda: broker.counts.failures >= 3)
    assert "expected a NATS credentials file" in broker.last_error
    seed = "SU" + "A" * 56  # nobody asks for a signature with it: this server has no users
    path.write_text(
        "-----BEGIN NATS USER JWT-----\ne.e.e\n------END NATS USER JWT------\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
    await eventually(lambda: broker.connected, timeout=RECOVERY)


async def test_no_secret_in_the_log(
    make_broker: MakeBroker, make_nats_server: MakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server = make_nats_server("authorization { user: me, password: other }")
    broker = make_broker(server.url, user="me", password="s3cret")
    await broker.start()
    await eventually(lambda: broker.counts.failures >= 2)
    server.kill()
    await eventually(lambda: "refused" in broker.last_error or "Connect call failed" in broker.last_error)
    await broker.stop()
    written = capsys.readouterr()
    assert "nats unreachable" in written.out + written.err
    assert "s3cret" not in written.out + written.err + broker.last_error


async def test_a_confirmed_message_is_with_the_server(make_nats_server: MakeServer, make_broker: MakeBroker) -> None:
    """A PONG proves what came before the PING, so the PING must not overtake the message."""
    server = make_nats_server("trace: true")
    broker = make_broker(server.url)
    await connected(broker)
    await broker.publish(SUBJECT, b"one", {"ce-id": "1"}, confirm=True)
    seen = [line for line in server.log().splitlines() if "<<- [HPUB" in line or "<<- [PING" in line]
    assert "HPUB" in seen[-2]
    assert "PING" in seen[-1]


async def test_a_confirmation_nobody_waits_for_any_more_does_no_harm(
    make_nats_server: MakeServer, make_broker: MakeBroker
) -> None:
    server = make_nats_server()
    async with Proxy(server.url) as proxy:
        broker = make_broker(proxy.url)
        await connected(broker)
        await proxy.set_mode("blackhole")
        waiting = asyncio.create_task(broker.publish(SUBJECT, b"one", confirm=True))
        await eventually(lambda: broker._link is not None and broker._link.client._pongs)
        waiting.cancel()
        await asyncio.wait({waiting})
        await proxy.set_mode("pass")  # the PONG comes now
        await exchange(broker)
        assert broker.counts.connects == 1


# --- what the server takes, and what it refuses ----------------------------------------------------

FORBIDDEN = """authorization { users: [
    { user: me, password: pw, permissions: { publish: ["allowed.>"], subscribe: ">" } }
    { user: listener, password: pw }
] }"""


async def test_a_refusal_concerns_its_own_subject(make_broker: MakeBroker, make_nats_server: MakeServer) -> None:
    """Also one of a message that nobody waits for, between two of others."""
    broker = make_broker(make_nats_server(FORBIDDEN).url, user="me", password="pw")
    await connected(broker)
    for _ in range(50):
        results = await asyncio.gather(
            broker.publish("allowed.one", confirm=True),
            broker.publish("forbidden.unheard"),
            broker.publish("Forbidden.Ä", confirm=True),
            broker.publish('allowed."quoted\\', confirm=True),
            return_exceptions=True,
        )
        assert [type(each) for each in results] == [type(None), type(None), BrokerError, type(None)]
        assert "no permission to publish to" in str(results[2])
    assert broker.counts.connects == 1


async def test_a_refusal_of_an_odd_spelling_is_nobodys_success(
    make_broker: MakeBroker, make_nats_server: MakeServer
) -> None:
    broker = make_broker(make_nats_server(FORBIDDEN).url, user="me", password="pw")
    await connected(broker)
    for subject in ('forbidden."quoted"', "forbidden.\\", "forbidden.\u200b", "forbidden.\x7f", "forbidden.İ"):
        with pytest.raises(BrokerError, match="no permission"):
            await broker.publish(subject, confirm=True)


async def test_the_right_to_publish_is_tried_without_a_message(
    make_broker: MakeBroker, make_nats_server: MakeServer
) -> None:
    server = make_nats_server(FORBIDDEN)
    broker = make_broker(server.url, user="me", password="pw")
    listener = make_broker(server.url, user="listener", password="pw")
    heard: list[bytes] = []
    ready: list[int] = []
    listener.subscribe(">", heard.append, lambda: ready.append(1))
    await connected(broker)
    await connected(listener)
    await eventually(lambda: ready)
    await broker.try_publish("allowed.order.created")
    with pytest.raises(BrokerError, match='no permission to publish to "forbidden"'):
        await broker.try_publish("forbidden")
    await listener.try_publish("anything")
    await broker.publish("allowed.last", b"last", confirm=True)
    await eventually(lambda: heard)
    assert heard == [b"last"]


async def test_complaint_without_a_name_is_about_all_before_the_next_pong(make_broker: MakeBroker) -> None:
    """A PONG in the same packet proves nothing for what was complained about."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = b""
        writer.write(b'INFO {"server_id": "x", "version": "2.11.0", "max_payload": 1000, "headers": true}\r\n')
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                if line.startswith(b"PING"):
                    writer.write(b"-ERR 'Something Is Wrong'\r\nPONG\r\n" if b"x" in said else b"PONG\r\n")
                said = line
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        broker = make_broker(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await connected(broker)
        results = await asyncio.gather(
            *(broker.publish(SUBJECT, b"x", confirm=True) for _ in range(10)), return_exceptions=True
        )
        assert [type(each) for each in results] == [BrokerError] * 10
        assert "something is wrong" in str(results[0])
        await broker.stop()


INFO = b'INFO {"server_id": "x", "version": "2.11.0", "max_payload": 1000, "headers": true}\r\n'

BEFORE: dict[str, list[bytes]] = {
    "nothing": [],
    "a line without an end": [b"INFO " + b"x" * 1_000_000] * 1000,
    "no greeting": [b"HTTP/1.1 400 Bad Request\r\n"],
    "bytes": [b"\xff\xfe\x00\r\n"],
    "a list": [b"INFO []\r\n"],
    "a number": [b"INFO 1\r\n"],
    "a payload of text": [INFO.replace(b"1000", b'"many"'), b"PONG\r\n"],
    "an error of bytes": [INFO, b"-ERR \xff\xfe\r\n"],
}

AFTER: dict[str, bytes] = {
    "a line without an end": b"x" * 65536,
    "an error without an end": b"-ERR '" + b"x" * 65536,
    "PONGs": b"PONG\r\n" * 10_000,
    "PINGs": b"PING\r\n" * 10_000,
    "a message of 2 GB": b"MSG test.subject 1 2000000000\r\n" + b"x" * 65536,
    "an error of bytes": b"-ERR '\xff\xfe'\r\n",
    "an error of nothing": b"-ERR \r\n",
    "a greeting of nonsense": b"INFO {]\r\n",
    "nodes of nonsense": b'INFO {"connect_urls": ["::::", "h:x", "[::1", "h:99999"]}\r\nPONG\r\n',
}


@contextlib.asynccontextmanager
async def saying(first: list[bytes], then: bytes = b"") -> AsyncIterator[int]:
    """Run a server that greets so, and once it has answered the first PING says the rest without end."""
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(cast("asyncio.Task[Any]", asyncio.current_task()))
        with contextlib.suppress(OSError):
            for piece in first:
                writer.write(piece)
                await writer.drain()
            while then and (line := await reader.readline()):
                if line.startswith(b"PING"):
                    writer.write(b"PONG\r\n")
                    break
            while then:
                writer.write(then)
                await writer.drain()
                await asyncio.sleep(0)
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def patient(broker: Broker, enough: Callable[[], object]) -> None:
    """Wait for it, and require that the loop goes on meanwhile and memory does not grow."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    longest, last = 0.0, time.thread_time()  # of this thread: a busy machine changes nothing about it
    async with asyncio.timeout(30.0):
        while not enough():
            await asyncio.sleep(0.01)
            longest, last = max(longest, time.thread_time() - last), time.thread_time()
    assert longest < 2.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 128 * 1024  # KiB


@pytest.mark.parametrize("first", BEFORE.values(), ids=BEFORE)
async def test_a_greeting_that_is_none_is_given_up(make_broker: MakeBroker, first: list[bytes]) -> None:
    async with saying(first) as port:
        broker = make_broker(f"nats://127.0.0.1:{port}")
        await broker.start()
        await patient(broker, lambda: broker.counts.failures >= 1)
        assert broker.counts.connects == 0
        await broker.stop()


@pytest.mark.parametrize("then", AFTER.values(), ids=AFTER)
async def test_a_server_that_goes_mad_is_left(
    make_broker: MakeBroker, then: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    async with saying([INFO], then) as port:
        broker = make_broker(f"nats://127.0.0.1:{port}")
        await broker.start()
        await patient(broker, lambda: broker.counts.connects >= 2)
        await broker.stop()
    assert "loop failed" not in "".join(capsys.readouterr())
