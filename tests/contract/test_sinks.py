"""What every sink has to do, run against each of them and against the example of the documentation."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import itertools
import re
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import nats
import nats.aio.client
import orjson
import psutil
import pytest
from aiohttp import web

from runner.cloudevents import decode_json, from_http, from_nats, to_nats, to_nats_structured
from runner.delivery import ACCEPTED, Delivery, Failed, Outcome, Rejected
from runner.event import MAX_DATA_BYTES, Event
from runner.nats.connection import Broker, BrokerOptions
from runner.nats.jetstream import JetStream, Stream
from runner.sinks.base import BatchSink, Sink
from runner.sinks.nats import NatsSink, message_id
from runner.sinks.python import PythonSink
from runner.sinks.stdout import StdoutSink
from tests.support.eventually import eventually
from tests.support.nats import NatsServer
from tests.support.receivers import webhook
from tests.support.server import HOST, free_port


class FarSide(Protocol):
    """Where a sink's deliveries arrive."""

    sink: Sink

    def received(self) -> list[Event]:
        """Return what arrived, in any order."""

    async def down(self) -> None:
        """Go away, so that deliveries fail."""

    async def up(self) -> None:
        """Come back."""


class HangingFarSide(FarSide, Protocol):
    """A far side that can keep deliveries waiting."""

    async def stall(self) -> None:
        """Take deliveries, but do not answer."""

    async def resume(self) -> None:
        """Answer again, also what was taken meanwhile."""


async def attempt(sink: Sink, delivery: Delivery) -> Outcome:
    """Deliver as the worker does: an exception counts as a failure."""
    try:
        return await asyncio.wait_for(sink.deliver(delivery), 30)
    except Exception as error:
        return Failed(type(error).__name__)


def delivery(id: str = "1", *, attempt: int = 1, **attributes: Any) -> Delivery:
    event = Event(**{"type": "order.created", "source": "/shop", "id": id} | attributes)
    event.validate()
    return Delivery(event, "orders", attempt)


def comparable(event: Event) -> tuple[object, ...]:
    """Return all of an event as it looks after headers: extensions are text, empty data is none."""
    extensions = {name: str(value).lower() if value is True else str(value) for name, value in event.extensions.items()}
    attributes = (event.type, event.source, event.id, event.subject, event.time, event.datacontenttype)
    return (*attributes, event.dataschema, sorted(extensions.items()), event.data or None)


class SinkContract:
    """Subclasses provide the fixture `far`."""

    async def test_start_and_stop_may_come_in_any_order(self, far: FarSide) -> None:
        await far.sink.stop()
        await far.sink.start()
        await far.sink.start()
        assert await far.sink.deliver(delivery("1")) is ACCEPTED
        await far.sink.stop()
        await far.sink.stop()
        await far.sink.start()
        assert await far.sink.deliver(delivery("2")) is ACCEPTED
        await eventually(lambda: [event.id for event in far.received()] == ["1", "2"])

    @pytest.mark.parametrize(
        "attributes",
        [
            pytest.param({}, id="nothing"),
            pytest.param(
                {
                    "subject": "eu/7",
                    "time": datetime(2026, 1, 31, 12, 0, 0, 123, tzinfo=UTC),
                    "dataschema": "https://shop.example/order.json",
                    "datacontenttype": "application/json",
                    "data": b'{"n": 123456789012345678901234567890, "f": 1.50}',
                    "extensions": {"partitionkey": "a b", "sequence": -5, "sampled": True, "empty": ""},
                },
                id="everything",
            ),
            pytest.param({"data": bytes(range(256)), "datacontenttype": "image/png"}, id="bytes"),
            pytest.param({"data": bytes(range(256))}, id="bytes of no type"),
            pytest.param({"data": b"", "datacontenttype": "text/plain"}, id="empty"),
            pytest.param({"data": b"{broken", "datacontenttype": "application/json"}, id="no JSON"),
            pytest.param({"data": b"x" * 256 * 1024, "datacontenttype": "text/plain"}, id="256 KiB"),
            pytest.param(
                {
                    "type": "commande.créée",
                    "source": "/büro/€?a=%20&b",
                    "id": '"quoted" 😀 100%',
                    "subject": " spaces ",
                    "extensions": {"note": "«ünï»"},
                    "datacontenttype": 'text/plain; charset="utf-8"',
                    "data": "😀\r\n".encode(),
                },
                id="unicode",
            ),
        ],
    )
    async def test_an_event_arrives_unchanged(self, far: FarSide, attributes: dict[str, Any]) -> None:
        sent = delivery(**attributes)
        await far.sink.start()
        assert await far.sink.deliver(sent) is ACCEPTED
        (received,) = await eventually(far.received)
        assert comparable(received) == comparable(sent.event)

    async def test_the_same_delivery_twice_is_fine(self, far: FarSide) -> None:
        await far.sink.start()
        assert await far.sink.deliver(delivery("1")) is ACCEPTED
        assert await far.sink.deliver(delivery("1", attempt=2)) is ACCEPTED
        await eventually(lambda: {event.id for event in far.received()} == {"1"})

    async def test_many_at_once_all_arrive(self, far: FarSide) -> None:
        await far.sink.start()
        sent = [delivery(str(number), data=b"x" * 1000) for number in range(200)]
        outcomes = await asyncio.gather(*(attempt(far.sink, each) for each in sent))
        assert outcomes == [ACCEPTED] * 200
        expected = sorted(each.event.id for each in sent)
        await eventually(lambda: sorted(event.id for event in far.received()) == expected)

    async def test_a_peer_that_is_down_fails_deliveries_until_it_is_back(self, far: FarSide) -> None:
        await far.down()
        await far.sink.start()
        assert isinstance(await attempt(far.sink, delivery("1")), Failed)
        await far.up()
        await eventually(_accepting(far.sink, "2"))
        await eventually(lambda: "2" in {event.id for event in far.received()})
        await far.down()
        assert isinstance(await attempt(far.sink, delivery("3")), Failed)
        await far.up()
        await eventually(_accepting(far.sink, "4"))
        await eventually(lambda: "4" in {event.id for event in far.received()})


class HangingSinkContract(SinkContract):
    """Further rules for sinks whose peer can keep a delivery waiting."""

    async def test_a_cancelled_delivery_leaves_the_sink_usable(self, far: HangingFarSide) -> None:
        await far.sink.start()
        assert await far.sink.deliver(delivery("0")) is ACCEPTED
        await far.stall()
        running = [asyncio.create_task(far.sink.deliver(delivery(str(number)))) for number in range(1, 9)]
        done, _ = await asyncio.wait(running, timeout=0.1)
        assert not done
        for each in running:
            each.cancel()
        await asyncio.wait(running, timeout=5)
        assert all(each.cancelled() for each in running)
        await far.resume()
        await eventually(_accepting(far.sink, "9"))
        await eventually(lambda: "9" in {event.id for event in far.received()})

    async def test_stop_is_bounded_while_deliveries_hang(self, far: HangingFarSide) -> None:
        await far.sink.start()
        await far.stall()
        running = asyncio.create_task(far.sink.deliver(delivery("1")))
        await asyncio.wait({running}, timeout=0.1)
        async with asyncio.timeout(10):
            await far.sink.stop()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await far.resume()


class BatchSinkContract:
    """Rules for sinks that take batches; subclasses provide the fixture `batch_far`, made for them."""

    async def test_every_event_of_a_batch_arrives_unchanged(self, batch_far: FarSide) -> None:
        sink = _batches(batch_far)
        sent = [delivery(str(number), data=bytes(range(number)), subject=f"é{number}") for number in range(100)]
        await sink.start()
        assert list(await sink.deliver_batch(sent)) == [ACCEPTED] * 100
        await eventually(lambda: len(batch_far.received()) == 100)
        received = sorted(batch_far.received(), key=lambda event: int(event.id))
        assert [comparable(event) for event in received] == [comparable(each.event) for each in sent]

    async def test_a_batch_of_one_is_a_batch(self, batch_far: FarSide) -> None:
        sink = _batches(batch_far)
        await sink.start()
        assert list(await sink.deliver_batch([delivery("1", attempt=2)])) == [ACCEPTED]
        await eventually(lambda: [event.id for event in batch_far.received()] == ["1"])

    async def test_a_peer_that_is_down_fails_the_whole_batch(self, batch_far: FarSide) -> None:
        sink = _batches(batch_far)
        await batch_far.down()
        await sink.start()
        try:
            outcomes = await sink.deliver_batch([delivery("1"), delivery("2")])
            assert [type(each) for each in outcomes] == [Failed, Failed]
        except ConnectionError:
            pass  # the worker takes it for the same
        await batch_far.up()

        async def accepted() -> bool:
            return list(await sink.deliver_batch([delivery("3"), delivery("4")])) == [ACCEPTED] * 2

        await eventually(accepted)


def _batches(far: FarSide) -> BatchSink:
    assert hasattr(far.sink, "deliver_batch")
    return cast("BatchSink", far.sink)


def _accepting(sink: Sink, id: str) -> Callable[[], bool | Awaitable[bool]]:
    async def accepted() -> bool:
        return await attempt(sink, delivery(id)) is ACCEPTED

    return accepted


# --- python ----------------------------------------------------------------------------------------


class Handlers:
    """A handler of each sort."""

    def __init__(self, sort: str) -> None:
        self.events: list[Event] = []
        self.is_down = False
        self.open = threading.Event()
        self.open.set()
        self.open_on_loop = asyncio.Event()
        self.open_on_loop.set()
        self.sink: Sink = PythonSink(getattr(self, sort), threads=16)

    async def asynchronous(self, event: Event) -> None:
        await self.open_on_loop.wait()
        self._take(event)

    def synchronous(self, event: Event, delivery: Delivery) -> bool:
        assert delivery.event is event
        self.open.wait(10)
        self._take(event)
        return True

    async def lists(self, events: list[Event]) -> None:
        await self.open_on_loop.wait()
        for event in events:
            self._take(event)

    def _take(self, event: Event) -> None:
        if self.is_down:
            raise ConnectionError("the order service is away")
        self.events.append(event)

    def received(self) -> list[Event]:
        return self.events

    async def down(self) -> None:
        self.is_down = True

    async def up(self) -> None:
        self.is_down = False

    async def stall(self) -> None:
        self.open.clear()
        self.open_on_loop.clear()

    async def resume(self) -> None:
        self.open.set()
        self.open_on_loop.set()


class TestPython(HangingSinkContract, BatchSinkContract):
    @pytest.fixture
    async def batch_far(self) -> AsyncIterator[FarSide]:
        handlers = Handlers("lists")
        yield handlers
        await handlers.sink.stop()

    @pytest.fixture(params=["asynchronous", "synchronous"])
    async def far(self, request: pytest.FixtureRequest) -> AsyncIterator[HangingFarSide]:
        handlers = Handlers(request.param)
        yield handlers
        await handlers.resume()
        await handlers.sink.stop()


# --- stdout ----------------------------------------------------------------------------------------


class Output(io.BytesIO):
    """A stream that can be full, or stuck."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False
        self.open = threading.Event()
        self.open.set()
        self.sink: Sink = StdoutSink(format="json", stream=self)

    def write(self, data: Any) -> int:
        self.open.wait(10)
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)

    def received(self) -> list[Event]:
        return [decode_json(line) for line in self.getvalue().splitlines()]

    async def down(self) -> None:
        self.full = True

    async def up(self) -> None:
        self.full = False

    async def stall(self) -> None:
        self.open.clear()

    async def resume(self) -> None:
        self.open.set()


class TestStdout(HangingSinkContract):
    @pytest.fixture
    async def far(self) -> AsyncIterator[HangingFarSide]:
        output = Output()
        yield output
        await output.resume()
        await output.sink.stop()


# --- webhook ---------------------------------------------------------------------------------------


class Receiver:
    """A real HTTP server on one port."""

    def __init__(self, *, structured: bool = False) -> None:
        self.port = free_port()
        self.events: list[Event] = []
        self.open = asyncio.Event()
        self.open.set()
        self.sink: Sink = webhook(
            f"http://{HOST}:{self.port}/events?key=secret", mode="structured" if structured else "binary"
        )
        self._runner: web.AppRunner | None = None

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        await self.open.wait()
        if request.content_type == "application/cloudevents-batch+json":
            self.events += [decode_json(orjson.dumps(each)) for each in orjson.loads(body)]
        else:
            self.events.append(from_http(request.headers, body))
        return web.Response(status=204)

    def received(self) -> list[Event]:
        return self.events

    async def down(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def up(self) -> None:
        app = web.Application(client_max_size=2**21)
        app.router.add_post("/events", self._take)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, self.port).start()

    async def stall(self) -> None:
        self.open.clear()

    async def resume(self) -> None:
        self.open.set()


class TestWebhook(HangingSinkContract, BatchSinkContract):
    structured = False

    @pytest.fixture
    def batch_far(self, far: FarSide) -> FarSide:
        return far

    @pytest.fixture
    async def far(self) -> AsyncIterator[HangingFarSide]:
        receiver = Receiver(structured=self.structured)
        await receiver.up()
        yield receiver
        await receiver.resume()
        await receiver.sink.stop()
        await receiver.down()


class TestStructuredWebhook(TestWebhook):
    structured = True


# --- nats ------------------------------------------------------------------------------------------


SUBJECT = "{deployment_id}.{type}.{id}"


class Subscriber:
    """A real nats-server, and a client that hears what arrives there."""

    def __init__(
        self,
        server: NatsServer,
        broker: Broker,
        login: Mapping[str, str] | None = None,
        *,
        mode: Literal["binary", "structured"] = "binary",
        streams: JetStream | None = None,
    ) -> None:
        self.events: list[Event] = []
        self._login = login or {}
        self.sink: Sink = NatsSink(broker, SUBJECT, deployment_id="prod", mode=mode, streams=streams)
        self._server = server
        self._client: nats.aio.client.Client | None = None

    async def _hear(self, message: Any) -> None:
        self.events.append(from_nats(message.headers, message.data))

    def received(self) -> list[Event]:
        return self.events

    async def down(self) -> None:
        await self.leave()
        self._server.kill()

    async def up(self) -> None:
        if not self._server.running:
            self._server.start()
        self._client = await nats.connect(self._server.url, allow_reconnect=False, **self._login)
        await self._client.subscribe("prod.>", cb=self._hear)
        for _ in range(2):  # nats-py sends the ping of a flush past the commands that wait; the second comes after them
            await self._client.flush()

    async def leave(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def stall(self) -> None:
        self._server.signal(signal.SIGSTOP)
        process = psutil.Process(self._server.pid)
        await eventually(lambda: process.status() == psutil.STATUS_STOPPED)

    async def resume(self) -> None:
        self._server.signal(signal.SIGCONT)


class NatsContract(HangingSinkContract):
    mode: Literal["binary", "structured"] = "binary"
    jetstream = False

    @pytest.fixture
    async def far(self, make_nats_server: Callable[..., NatsServer]) -> AsyncIterator[HangingFarSide]:
        server = make_nats_server(jetstream=self.jetstream)
        broker = Broker(BrokerOptions(servers=(server.url,)))
        await broker.start()
        stream = Stream("EVENTS", ("prod.>",))
        streams = JetStream(broker, timeout=timedelta(seconds=5), stream=stream) if self.jetstream else None
        subscriber = Subscriber(server, broker, mode=self.mode, streams=streams)
        await subscriber.up()
        await eventually(lambda: broker.connected)
        yield subscriber
        if server.running:
            await subscriber.resume()
        await subscriber.leave()
        await broker.stop()

    async def test_an_event_the_server_would_hang_up_over_is_rejected(self, far: FarSide) -> None:
        """The client library measures the payload alone; the server closes the connection over headers as well."""
        largest = MAX_DATA_BYTES
        assert isinstance(await far.sink.deliver(delivery("1", data=b"x" * largest)), Rejected)
        text: dict[str, Any] = {
            "datacontenttype": "text/plain"
        }  # in structured mode it is part of the document as it is
        sent = delivery("1", data=b"x", **text)
        headers, payload = (to_nats if self.mode == "binary" else to_nats_structured)(sent.event)
        if self.jetstream:
            headers = {**headers, "Nats-Msg-Id": message_id(sent), "Nats-Expected-Stream": "EVENTS"}
        around = len("NATS/1.0\r\n\r\n") + sum(len(f"{name}: {value}\r\n") for name, value in headers.items())
        room = largest - around - len(payload) + 1
        assert isinstance(await far.sink.deliver(delivery("1", data=b"x" * (room + 1), **text)), Rejected)
        assert await far.sink.deliver(delivery("1", data=b"x" * (room - 16), **text)) is ACCEPTED


class TestStructuredNats(NatsContract):
    mode = "structured"


class TestJetStream(NatsContract):
    jetstream = True


class TestStructuredJetStream(TestJetStream):
    mode = "structured"


class TestNats(NatsContract):
    async def test_what_the_server_forbids_fails_and_nothing_else_does(
        self, make_nats_server: Callable[..., NatsServer]
    ) -> None:
        """NATS complains in passing, and goes on: a message it refused looks like any other to who does not listen."""
        async with forbidding(make_nats_server(allowing("prod.order.>")), "me") as far:
            await far.sink.start()
            sent = [delivery(str(n), type="secret.plan" if n % 3 == 0 else "order.created") for n in range(300)]
            outcomes = await asyncio.gather(*(attempt(far.sink, each) for each in sent))
            for each, outcome in zip(sent, outcomes, strict=True):
                if each.event.type == "order.created":
                    assert outcome is ACCEPTED
                else:
                    assert isinstance(outcome, Failed)  # and not rejected: the permission may come
                    assert f'no permission to publish to "prod.secret.plan.{each.event.id}"' in outcome.reason
            accepted = {each.event.id for each, outcome in zip(sent, outcomes, strict=True) if outcome is ACCEPTED}
            await eventually(lambda: {event.id for event in far.received()} == accepted)

    async def test_a_permission_that_goes_and_comes_back_under_load(
        self, make_nats_server: Callable[..., NatsServer]
    ) -> None:
        server = make_nats_server(allowing(">"))
        outcomes: dict[str, Outcome] = {}
        async with forbidding(server, "me") as far:
            await far.sink.start()

            async def load(lane: int) -> None:
                for number in itertools.count():
                    each = delivery(f"{lane}-{number}")
                    outcomes[each.event.id] = await attempt(far.sink, each)
                    if ended and outcomes[each.event.id] is ACCEPTED:
                        return

            def failed() -> int:
                return sum(isinstance(outcome, Failed) for outcome in outcomes.values())

            ended: list[bool] = []
            lanes = [asyncio.create_task(load(lane)) for lane in range(8)]
            await eventually(lambda: len(outcomes) > 200)
            server.reload(allowing("nothing"))
            await eventually(lambda: failed() > 100)
            server.reload(allowing(">"))
            ended.append(True)
            await asyncio.wait_for(asyncio.gather(*lanes), 20)
            accepted = {id for id, outcome in outcomes.items() if outcome is ACCEPTED}
            await eventually(lambda: {event.id for event in far.received()} >= accepted)
            # What it complained about has reached nobody.
            assert {event.id for event in far.received()} - accepted <= {
                id
                for id, outcome in outcomes.items()
                if isinstance(outcome, Failed) and "no permission" not in outcome.reason
            }

    async def test_a_user_who_is_thrown_out_with_messages_on_their_way(
        self, make_nats_server: Callable[..., NatsServer]
    ) -> None:
        server = make_nats_server(allowing(">"))
        async with forbidding(server, "me") as far:
            await far.sink.start()
            server.reload(allowing(">", me="somebody"))
            outcomes: list[Outcome] = []

            async def thrown_out() -> bool:
                outcomes.append(await attempt(far.sink, delivery(str(len(outcomes)))))
                return isinstance(outcomes[-1], Failed) and len(outcomes) >= 50

            await eventually(thrown_out, every=0)
            accepted = {str(number) for number, outcome in enumerate(outcomes) if outcome is ACCEPTED}
            await eventually(lambda: accepted <= {event.id for event in far.received()})


def allowing(subject: str, *, me: str = "me") -> str:
    """Return the configuration of a server with a user who may publish to `subject` alone, and one who may all."""
    return f"""authorization {{ users: [
        {{ user: {me}, password: pw, permissions: {{ publish: "{subject}", subscribe: ">" }} }}
        {{ user: listener, password: pw }}
    ] }}"""


@contextlib.asynccontextmanager
async def forbidding(server: NatsServer, user: str) -> AsyncIterator[Subscriber]:
    """Lend a sink that publishes as `user`, with a far side that hears everything."""
    broker = Broker(BrokerOptions(servers=(server.url,), user=user, password="pw"))
    await broker.start()
    subscriber = Subscriber(server, broker, login={"user": "listener", "password": "pw"})
    await subscriber.up()
    await eventually(lambda: broker.connected)
    try:
        yield subscriber
    finally:
        await subscriber.leave()
        await broker.stop()


# --- the example of the documentation --------------------------------------------------------------


class SpoolDirectory:
    """The directory the documented sink writes to; a missing one is its way to be down."""

    def __init__(self, directory: Path) -> None:
        text = (Path(__file__).parents[2] / "docs" / "writing-a-sink.md").read_text()
        found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
        assert found is not None
        module: dict[str, Any] = {}
        exec(compile(found[1], "docs/writing-a-sink.md", "exec"), module)
        self.directory = directory
        self.sink: Sink = module["Spool"](directory=str(directory))

    def received(self) -> list[Event]:
        events = [decode_json(path.read_bytes()) for path in self.directory.glob("*.json")]
        return sorted(events, key=lambda event: event.id)

    async def down(self) -> None:
        self.directory.rename(self.directory.with_name("away"))

    async def up(self) -> None:
        self.directory.with_name("away").rename(self.directory)


class TestDocumentedExample(SinkContract):
    @pytest.fixture
    async def far(self, tmp_path: Path) -> FarSide:
        (tmp_path / "spool").mkdir()
        return SpoolDirectory(tmp_path / "spool")
