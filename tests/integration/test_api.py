"""The HTTP interface beside a runner that runs: its probes, its address, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from runner import ConfigError, Event, Runner, load
from runner.errors import ListenError
from runner.runtime.place import take_place
from tests.support.eventually import eventually
from tests.support.http import Answer, ask

from .buses import Bus

API = "api: {listen: '127.0.0.1:0'}\n"
TOKEN = "evb_" + "k" * 43


@pytest.fixture(params=["sqlite", "postgres"])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Bus:
    return Bus(tmp_path, request.getfixturevalue("tables_file" if request.param == "sqlite" else "tables_dsn"))


@pytest.fixture
def lite(tables_file: str, tmp_path: Path) -> Bus:
    return Bus(tmp_path, tables_file)


@contextlib.asynccontextmanager
async def serving(bus: Bus, more: str = API) -> AsyncIterator[Runner]:
    async with load(bus.write(more)) as runner:
        yield runner


async def get(runner: Runner, path: str, **headers: str) -> Answer:
    return await asyncio.to_thread(lambda: ask(runner.addresses[0], path, headers=headers))


class TestProbes:
    async def test_a_runner_that_runs_is_well_and_ready(self, bus: Bus) -> None:
        async with serving(bus) as runner:
            answer = await get(runner, "/healthz")
            assert (answer.status, answer.json) == (200, {"status": "ok"})
            answer = await get(runner, "/readyz")
            assert answer.status == 200
            assert answer.json.items() >= {"ready": True, "phase": "running", "store": True, "tables": True}.items()
            assert {each["name"] for each in answer.json["strategies"]} >= {"polling"}

    @pytest.mark.parametrize("name", ["claim", "claim deliveries", "heartbeat", "renew"])
    async def test_a_loop_that_ended_is_told_until_it_goes_round_again(self, lite: Bus, name: str) -> None:
        async with serving(lite) as runner:
            [task] = [each for each in asyncio.all_tasks() if each.get_name() == name]
            task.cancel()
            await asyncio.wait({task})
            assert (await get(runner, "/healthz")).status == 503
            assert (await get(runner, "/readyz")).status == 200
            await eventually(lambda: self._well(runner))

    @staticmethod
    async def _well(runner: Runner) -> bool:
        return (await get(runner, "/healthz")).status == 200

    async def test_a_blocked_event_loop_is_told_from_outside(self, lite: Bus) -> None:
        seen: list[int] = []
        blocked = asyncio.Event()

        def probe(address: str) -> None:
            deadline = time.monotonic() + 30
            while 503 not in seen and time.monotonic() < deadline:
                with contextlib.suppress(OSError):  # one that was accepted before the loop was blocked
                    seen.append(ask(address, "/healthz", timeout=1).status)

        async def block(event: Event) -> None:
            blocked.set()
            deadline = time.monotonic() + 30
            while 503 not in seen and time.monotonic() < deadline:
                time.sleep(0.05)  # noqa: ASYNC251  # that is the fault

        runner = load(lite.write(API))
        runner.subscribe("blocker", block)
        async with runner:
            probing = asyncio.create_task(asyncio.to_thread(probe, runner.addresses[0]))
            await runner.publish(Event.new("a", source="/s"))
            await blocked.wait()
            await probing
            assert seen[-1] == 503
            await eventually(lambda: self._well(runner))

    async def test_it_is_not_ready_while_it_drains_and_well_all_the_time(self, lite: Bus) -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow(event: Event) -> None:
            begun.set()
            await go_on.wait()

        runner = load(lite.write(API))
        runner.subscribe("slow", slow)
        async with runner:
            await runner.publish(Event.new("a", source="/s"))
            await begun.wait()
            stopping = asyncio.create_task(runner.stop())
            await asyncio.sleep(0)
            answer = await get(runner, "/readyz")
            assert (answer.status, answer.json["phase"]) == (503, "draining")
            assert (await get(runner, "/healthz")).status == 200
            address = runner.addresses[0]
            go_on.set()
            await stopping
        with pytest.raises(ConnectionError):
            ask(address, "/healthz", timeout=1)

    async def test_it_answers_while_it_waits_for_the_store(self, tmp_path: Path) -> None:
        runner = load(Bus(tmp_path, "postgresql://nobody@127.0.0.1:1/none").write(API))
        starting = asyncio.create_task(runner.start())
        await eventually(lambda: bool(runner.addresses))
        assert (await get(runner, "/healthz")).status == 200
        answer = await get(runner, "/readyz")
        assert (answer.status, answer.json["phase"], answer.json["store"]) == (503, "starting", False)
        assert answer.json["tables"] is None  # not false: nothing is known of them, so `runner migrate` is no cure
        starting.cancel()
        await asyncio.wait({starting})
        await runner.stop()


class TestAddress:
    async def test_one_that_is_taken_ends_the_start_and_nothing_is_left_behind(self, lite: Bus) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            runner = load(lite.write(f"api: {{listen: '127.0.0.1:{port}'}}\n"))
            with pytest.raises(ListenError, match=rf"127\.0\.0\.1:{port} is taken: another process listens there"):
                async with runner:
                    pass

    async def test_a_socket_is_made_and_removed_and_a_stale_one_replaced(self, lite: Bus, tmp_path: Path) -> None:
        path = tmp_path / "run.sock"
        with socket.socket(socket.AF_UNIX) as left_behind:
            left_behind.bind(str(path))
        async with serving(lite, "api: {listen: 'unix:run.sock'}\n") as runner:
            assert runner.addresses == [f"unix:{path}"]
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert b" 200 OK" in await reader.readline()
            writer.close()
            other = load(lite.write("api: {listen: 'unix:run.sock'}\n"))
            with pytest.raises(ListenError, match="is taken"):
                await other.start()
            await other.stop()
            assert path.exists()
        assert not path.exists()

    async def test_two_may_share_one_port(self, lite: Bus) -> None:
        with socket.socket() as chosen:
            chosen.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            chosen.bind(("127.0.0.1", 0))
            more = f"api: {{listen: '127.0.0.1:{chosen.getsockname()[1]}', reuse_port: true}}\n"
            async with serving(lite, more) as one, serving(lite, more) as other:
                assert one.addresses == other.addresses
                assert (await get(one, "/healthz")).status == 200

    async def test_tls_by_files(self, lite: Bus) -> None:
        file = lite.write("api: {listen: '127.0.0.1:0', tls: {cert: no.pem, key: no.key}}\n")
        with pytest.raises(ConfigError, match=r"runner\.yaml:5:\d+: api\.tls: cert: .*no\.pem cannot be read"):
            load(file)


class TestAnswers:
    @pytest.mark.parametrize("store", ["sqlite", "postgres"])
    async def test_what_comes_before_the_tables_are_made_may_come_again(
        self, store: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dsn = f"sqlite:///{tmp_path}/new.db" if store == "sqlite" else request.getfixturevalue("postgres_dsn")
        go_on = asyncio.Event()

        async def late(*given: Any) -> None:
            await go_on.wait()
            await take_place(*given)

        monkeypatch.setattr("runner.runtime.runner.take_place", late)
        runner = load(Bus(tmp_path, dsn).write(API))
        starting = asyncio.create_task(runner.start())
        await eventually(lambda: runner.addresses)
        for path in ("/events", "/deliveries", "/subscriptions", "/status", "/dashboard/events"):
            answer = await get(runner, path)
            assert (path, answer.status) == (path, 503)
        head = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "a"}
        publish = partial(ask, runner.addresses[0], "/events", method="POST", headers=head)
        answer = await asyncio.to_thread(publish)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.json["type"] == "urn:runner:problem:store-unavailable"
        go_on.set()
        await starting
        assert (await asyncio.to_thread(publish)).status == 202
        assert (await get(runner, "/events")).status == 200
        await runner.stop()

    async def test_what_is_not_there_is_a_problem(self, lite: Bus) -> None:
        async with serving(lite) as runner:
            answer = await get(runner, "/nowhere")
            assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json")
            assert answer.json == {"type": "urn:runner:problem:no-such-path", "title": "no such path", "status": 404}
            answer = await asyncio.to_thread(ask, runner.addresses[0], "/healthz", method="POST")
            assert (answer.status, {*answer.headers["allow"].split(", ")}) == (405, {"GET", "HEAD"})
            assert "access-control-allow-origin" not in answer.headers

    async def test_another_host_is_refused(self, lite: Bus) -> None:
        async with serving(lite) as runner:
            answer = await get(runner, "/metrics", host="evil.example")
            assert (answer.status, answer.json["type"]) == (421, "urn:runner:problem:host-not-allowed")

    @pytest.mark.parametrize("path", ["/bus/healthz", "/healthz"])
    async def test_behind_a_proxy_with_its_path_or_without(self, lite: Bus, path: str) -> None:
        async with serving(lite, "api: {listen: '127.0.0.1:0', root_path: /bus}\n") as runner:
            assert (await get(runner, path)).status == 200
            assert (await get(runner, "/business/healthz")).status == 404

    async def test_a_client_that_sends_no_head_loses_its_place(
        self, lite: Bus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("runner.api.connection._HEAD_TIME", 0.2)
        async with serving(lite) as runner:
            port = int(runner.addresses[0].rpartition(":")[2])
            for sent, expected in ((b"", b""), (b"GET /healthz HT", b"HTTP/1.1 408 Request Timeout\r\n")):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(sent)
                assert await reader.readline() == expected
                writer.close()

    @pytest.mark.parametrize("method", ["GET", "POST"])
    async def test_a_client_that_sends_no_other_request_loses_its_place(
        self, lite: Bus, monkeypatch: pytest.MonkeyPatch, method: str
    ) -> None:
        """Whatever else it sends: an empty line, or more of a body that was refused, held the connection for ever."""
        monkeypatch.setattr("runner.api.listener._KEEP_ALIVE", 1)
        token = f"tokens: [{{name: a, secret: {'evb_' + 'a' * 43}, scopes: [publish]}}]"
        async with serving(lite, f"api: {{listen: '127.0.0.1:0', {token}}}\n") as runner:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(runner.addresses[0].rpartition(":")[2]))
            path, length = ("/healthz", 0) if method == "GET" else ("/events", 1_000_000)
            head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n"
            writer.write(head.encode())
            answer = await reader.readuntil(b"}")
            assert answer.split(b" ")[1] == (b"200" if method == "GET" else b"401")
            writer.write(b"\r\n" if method == "GET" else b"x" * 100)
            assert b"HTTP" not in await asyncio.wait_for(reader.read(), 30)
            writer.close()

    async def test_a_client_that_takes_nothing_of_its_answers_loses_its_place(
        self, lite: Bus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("runner.api.connection._BLOCKED", 0.2)
        async with serving(lite) as runner:
            listener = runner._door._listener
            assert listener is not None
            assert listener._server is not None
            connections = listener._server.server_state.connections
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(client, ("127.0.0.1", int(runner.addresses[0].rpartition(":")[2])))
                await loop.sock_sendall(client, b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n" * 200)
                await eventually(lambda: len(connections) == 1)
                await eventually(lambda: not connections)

    @pytest.mark.parametrize(
        ("request_", "status", "name"),
        [
            (b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: %b\r\n\r\n" % (b"y" * 70_000), 431, "headers-too-large"),
            (b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n%b\r\n" % (b"x: y\r\n" * 1101), 431, "headers-too-large"),
            (b"GET /%b HTTP/1.1\r\nhost: localhost\r\n\r\n" % (b"x" * 66_000), 431, "headers-too-large"),
            (b"GET /healthz HTTP/1.1\r\nhost : localhost\r\n\r\n", 400, "bad-request"),
            (b"\x16\x03\x01\x02\x00\r\n\r\n", 400, "bad-request"),
        ],
        ids=["long", "many", "long-path", "blank", "tls"],
    )
    async def test_a_head_that_is_refused_is_told_why(self, lite: Bus, request_: bytes, status: int, name: str) -> None:
        async with serving(lite) as runner:
            answer, body = await self._sent(runner, request_)
            assert answer.startswith(b"HTTP/1.1 %d " % status)
            assert b"content-type: application/problem+json" in answer
            assert orjson.loads(body)["type"] == f"urn:runner:problem:{name}"

    @staticmethod
    async def _sent(runner: Runner, request: bytes) -> tuple[bytes, bytes]:
        """Return the head and the body of the answer, after which the connection ends."""
        port = int(runner.addresses[0].rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        try:
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
        return head, body

    async def test_a_connection_above_the_limit_takes_the_place_of_one_that_waits(self, lite: Bus) -> None:
        async with serving(lite, "api: {listen: '127.0.0.1:0', limits: {connections: 10}}\n") as runner:
            port = int(runner.addresses[0].rpartition(":")[2])
            silent, resting = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            resting[1].write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert (await resting[0].readuntil(b"}")).startswith(b"HTTP/1.1 200 ")
            busy = []
            for _ in range(10):
                busy.append(await asyncio.open_connection("127.0.0.1", port))
                busy[-1][1].write(b"GET /events/stream HTTP/1.1\r\nhost: localhost\r\n\r\n")
                assert (await busy[-1][0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            assert await silent[0].read() == b""
            assert await resting[0].read() == b""
            assert (await get(runner, "/healthz")).status == 200
            answer, body = await self._sent(runner, b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1" in answer
            assert orjson.loads(body)["type"] == "urn:runner:problem:too-many-connections"
            for _, writer in (silent, resting, *busy):
                writer.close()

    async def test_a_body_that_is_no_http_is_told_why(self, lite: Bus) -> None:
        async with serving(lite) as runner:
            request = b"POST /events HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
            answer, body = await self._sent(runner, request)
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert orjson.loads(body)["type"] == "urn:runner:problem:bad-request"

    async def test_a_head_without_end_is_refused(self, lite: Bus) -> None:
        async with serving(lite) as runner:
            port = int(runner.addresses[0].rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n")
            with contextlib.suppress(ConnectionError):
                for number in range(2000):
                    writer.write(b"x-%d: %s\r\n" % (number, b"y" * 100))
                    await writer.drain()
            assert await reader.readline() == b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
            writer.close()


class TestMounted:
    async def test_a_program_serves_it_and_nothing_listens(self, lite: Bus) -> None:
        runner = load(lite.write(API))
        app: Any = runner.asgi()
        async with runner:
            assert runner.addresses == []
            sent: list[dict[str, object]] = []

            async def send(message: dict[str, object]) -> None:
                sent.append(message)

            scope = {
                "type": "http",
                "method": "GET",
                "path": "/bus/healthz",
                "root_path": "/bus",
                "headers": [(b"host", b"localhost")],
                "query_string": b"",
            }
            await app(scope, None, send)
            assert sent[0]["status"] == 200

    async def test_alone_it_starts_and_stops_the_runner(self, lite: Bus) -> None:
        runner = load(lite.write(API))
        ending = asyncio.Event()
        messages: asyncio.Queue[dict[str, object]] = asyncio.Queue()
        received = iter(["lifespan.startup", "lifespan.shutdown"])

        async def receive() -> dict[str, object]:
            if (kind := next(received)) == "lifespan.shutdown":
                await ending.wait()
            return {"type": kind}

        app: Any = runner.asgi()
        living = asyncio.create_task(app({"type": "lifespan"}, receive, messages.put))
        assert await messages.get() == {"type": "lifespan.startup.complete"}
        assert (await runner.publish(Event.new("a", source="/s"))).seq == 1
        ending.set()
        assert await messages.get() == {"type": "lifespan.shutdown.complete"}
        await living
