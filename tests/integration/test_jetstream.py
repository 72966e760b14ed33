"""The sink that publishes to JetStream, on a real server: what a stream has, and what becomes of what it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import nats
import pytest
import structlog
from nats.aio.client import Client
from nats.js.errors import NotFoundError

from runner.cloudevents import from_nats
from runner.delivery import ACCEPTED, Delivery, Failed, Outcome, Rejected
from runner.event import Event
from runner.nats.connection import Broker, BrokerOptions
from runner.sinks.base import SinkContext
from runner.sinks.nats import NatsSink, NatsSinkOptions
from tests.support.eventually import eventually
from tests.support.nats import NatsServer


def delivery(id: str = "1", *, subscription: str = "orders", **attributes: Any) -> Delivery:
    return Delivery(Event(**{"type": "order.created", "source": "/shop", "id": id, **attributes}), subscription, 1)


class Far:
    """A server with JetStream, and a client that looks into its streams."""

    def __init__(self, server: NatsServer, broker: Broker, client: Client) -> None:
        self.server = server
        self.broker = broker
        self.client = client
        self.js = client.jetstream()

    def sink(self, **options: Any) -> NatsSink:
        options = {"servers": [self.server.url], "subject": "orders.{type}", "jetstream": True, **options}
        context = SinkContext(deployment_id="prod", broker=lambda _: self.broker, concurrency=8)
        return NatsSinkOptions.model_validate(options).build(context)

    async def stored(self, stream: str = "ORDERS") -> list[Event]:
        info = await self.js.stream_info(stream)
        found = [await self.js.get_msg(stream, seq) for seq in range(info.state.first_seq, info.state.last_seq + 1)]
        return [from_nats(each.headers or {}, each.data or b"") for each in found]


@asynccontextmanager
async def reached(server: NatsServer, *, user: str | None = None, looker: str | None = None) -> AsyncIterator[Far]:
    broker = Broker(BrokerOptions(servers=(server.url,), user=user, password="pw" if user else None))
    await broker.start()
    await eventually(lambda: broker.connected)
    looking = await nats.connect(server.url, **({"user": looker, "password": "pw"} if looker else {}))
    try:
        yield Far(server, broker, looking)
    finally:
        await looking.close()
        await broker.stop()


@pytest.fixture
async def far(make_nats_server: Callable[..., NatsServer]) -> AsyncIterator[Far]:
    async with reached(make_nats_server(jetstream=True)) as found:
        yield found


async def test_the_stream_of_the_file_is_made_as_it_says(far: Far) -> None:
    stream = {
        "name": "ORDERS",
        "storage": "memory",
        "retention": "workqueue",
        "max_age": "1h",
        "max_bytes": 1_000_000,
        "max_messages": 1000,
        "discard": "new",
        "duplicate_window": "30s",
    }
    assert await far.sink(stream=stream).deliver(delivery()) is ACCEPTED
    config = (await far.js.stream_info("ORDERS")).config
    assert (config.subjects, config.storage, config.retention, config.discard) == (
        ["orders.>"],
        "memory",
        "workqueue",
        "new",
    )
    assert (config.max_age, config.max_bytes, config.max_msgs, config.duplicate_window) == (3600, 1_000_000, 1000, 30)
    [event] = await far.stored()
    assert event == delivery().event


async def test_one_that_is_there_is_used_and_how_it_differs_is_logged(far: Far) -> None:
    await far.js.add_stream(name="ORDERS", subjects=["orders.>"], max_msgs=10)
    sink = far.sink(stream={"name": "ORDERS", "subjects": ["orders.>", "bills.>"], "max_messages": 20})
    with structlog.testing.capture_logs() as logs:
        for number in range(3):
            assert await sink.deliver(delivery(str(number))) is ACCEPTED
    told = [entry["detail"] for entry in logs if entry["event"] == "nats stream differs"]
    assert told == ["it takes orders.>, and not bills.>", "its max_msgs is 10, the file says 20"]
    assert (await far.js.stream_info("ORDERS")).config.max_msgs == 10  # it is somebody else's to change


async def test_without_one_in_the_file_any_stream_on_the_server_will_do(far: Far) -> None:
    sink = far.sink()
    outcome = await sink.deliver(delivery())
    assert isinstance(outcome, Failed)
    assert outcome.reason == "no stream takes 'orders.order.created'"
    await far.js.add_stream(name="ANY", subjects=["orders.*.*"])
    assert await sink.deliver(delivery()) is ACCEPTED


async def test_one_that_was_deleted_is_made_again(far: Far) -> None:
    sink = far.sink(stream={"name": "ORDERS"})
    assert await sink.deliver(delivery("1")) is ACCEPTED
    await far.js.delete_stream("ORDERS")
    assert isinstance(await sink.deliver(delivery("2")), Failed)
    assert await sink.deliver(delivery("2")) is ACCEPTED
    assert [event.id for event in await far.stored()] == ["2"]


async def test_a_delivery_is_stored_once_and_another_is_never_taken_for_it(far: Far) -> None:
    sink = far.sink(stream={"name": "ORDERS"})
    distinct = [
        delivery("1"),
        delivery("1", source="/other"),
        delivery("1", subscription="billing"),
        delivery("1/shop", source="/"),
        delivery("1", source="/" + "long" * 100),
    ]
    for each in [*distinct, *distinct]:
        assert await sink.deliver(each) is ACCEPTED
    assert [event.source for event in await far.stored()] == [each.event.source for each in distinct]


async def test_many_are_on_their_way_at_once(far: Far) -> None:
    sink = far.sink(stream={"name": "ORDERS", "storage": "memory"}, timeout="60s")
    outcomes = await asyncio.gather(*(sink.deliver(delivery(str(number))) for number in range(2000)))
    assert outcomes == [ACCEPTED] * 2000
    assert (await far.js.stream_info("ORDERS")).state.messages == 2000


async def test_structured(far: Far) -> None:
    sink = far.sink(stream={"name": "ORDERS"}, mode="structured")
    sent = delivery(data=b'{"n": 1}', datacontenttype="application/json")
    assert await sink.deliver(sent) is ACCEPTED
    message = await far.js.get_msg("ORDERS", 1)
    assert (message.headers or {})["Content-Type"] == "application/cloudevents+json"
    assert json.loads(message.data or b"")["data"] == {"n": 1}
    assert (await far.stored())[0].data == b'{"n": 1}'


async def test_what_the_stream_refuses_for_now_fails(far: Far) -> None:
    await far.js.add_stream(name="ORDERS", subjects=["orders.>"], max_msgs=1, discard="new")
    sink = far.sink(stream={"name": "ORDERS"})
    assert await sink.deliver(delivery("1")) is ACCEPTED
    outcome = await sink.deliver(delivery("2"))
    assert isinstance(outcome, Failed)
    assert outcome.reason == "the stream refused: maximum messages exceeded"
    await far.js.purge_stream("ORDERS")
    assert await sink.deliver(delivery("2")) is ACCEPTED


async def test_what_it_will_never_take_is_rejected(far: Far) -> None:
    await far.js.add_stream(name="ORDERS", subjects=["orders.>"], max_msg_size=1000)
    sink = far.sink(stream={"name": "ORDERS"})
    outcomes = await asyncio.gather(*(sink.deliver(delivery(str(n), data=b"x" * 600 * (n % 3))) for n in range(9)))
    assert [type(each) for each in outcomes] == [type(ACCEPTED), type(ACCEPTED), Rejected] * 3


async def test_another_stream_that_has_the_subjects_is_named(far: Far) -> None:
    await far.js.add_stream(name="OTHER", subjects=["orders.>"])
    outcome = await far.sink(stream={"name": "ORDERS"}).deliver(delivery())
    assert isinstance(outcome, Failed)
    assert outcome.reason.startswith("stream 'ORDERS' cannot be made: the stream refused: subjects overlap")
    with pytest.raises(NotFoundError):
        await far.js.stream_info("ORDERS")
    assert (await far.js.stream_info("OTHER")).state.messages == 0


async def test_a_server_without_jetstream_is_named(make_nats_server: Callable[..., NatsServer]) -> None:
    async with reached(make_nats_server()) as far:
        outcome = await far.sink(stream={"name": "ORDERS"}).deliver(delivery())
        assert isinstance(outcome, Failed)
        assert outcome.reason == "the server has no JetStream for this account; enable it there"


@asynccontextmanager
async def answering(far: Far, answer: Callable[[Any], bytes | None]) -> AsyncIterator[list[Any]]:
    """Put somebody in the place of a stream; it keeps what it does not answer at once."""
    kept: list[Any] = []

    async def take(message: Any) -> None:
        said = answer(message)
        if said is None:
            kept.append(message)
        else:
            await message.respond(said)

    subscription = await far.client.subscribe("orders.>", cb=take)
    await far.client.flush()
    yield kept
    await subscription.unsubscribe()


async def test_a_late_answer_is_nobody_elses(far: Far) -> None:
    refused = b'{"error": {"code": 503, "err_code": 10077, "description": "full"}, "stream": "S", "seq": 0}'
    sink = far.sink(timeout="200ms")
    async with answering(far, lambda _: None) as kept:
        first = await sink.deliver(delivery("1"))
        assert isinstance(first, Failed)
        assert first.reason.endswith(": no answer within 0.2 s")
        second = asyncio.create_task(far.sink(timeout="20s").deliver(delivery("2")))
        await eventually(lambda: len(kept) == 2)
        await kept[0].respond(b'{"stream": "S", "seq": 1}')
        await kept[1].respond(refused)
        assert await second == Failed("the stream refused: full")


@pytest.mark.parametrize(
    "answer", [b"", b"+OK", b"[]", b"{}", b'{"stream": "", "seq": 1}', b'{"stream": "S", "seq": true}', b'{"seq": 1}']
)
async def test_an_answer_that_is_not_of_a_stream_is_no_acknowledgement(far: Far, answer: bytes) -> None:
    async with answering(far, lambda _: answer):
        outcome = await far.sink().deliver(delivery())
    assert outcome == Failed("no stream answered: somebody else listens on the subject")


async def test_what_is_on_its_way_fails_as_soon_as_the_connection_is_lost(far: Far) -> None:
    sink = far.sink(timeout="1h")
    async with answering(far, lambda _: None) as kept:
        sent = [asyncio.create_task(sink.deliver(delivery(str(number)))) for number in range(20)]
        await eventually(lambda: len(kept) == 20)
        # All is proven to have arrived, so that nothing but the answers is waited for.
        await far.broker.publish("other", confirm=True)
        far.server.kill()
        outcomes: list[Outcome] = await asyncio.wait_for(asyncio.gather(*sent), 20)
    assert all(isinstance(each, Failed) for each in outcomes)
    with contextlib.suppress(Exception):
        await far.client.close()


USERS = """
jetstream {{ store_dir: "{directory}" }}
accounts {{ A {{ jetstream: enabled, users: [
  {{ user: me, password: pw, permissions: {{ publish: {publish}, subscribe: {subscribe} }} }}
  {{ user: all, password: pw }}
] }} }}
"""


@asynccontextmanager
async def permitted(
    make: Callable[..., NatsServer], directory: object, publish: list[str], subscribe: list[str]
) -> AsyncIterator[Far]:
    text = USERS.format(directory=directory, publish=json.dumps(publish), subscribe=json.dumps(subscribe))
    async with reached(make(text), user="me", looker="all") as far:
        await far.js.add_stream(name="ORDERS", subjects=["orders.>"])
        yield far


async def test_what_may_not_be_published_fails_and_nothing_else_does(
    make_nats_server: Callable[..., NatsServer], tmp_path: object
) -> None:
    async with permitted(make_nats_server, tmp_path, ["orders.order.>"], ["_INBOX.>"]) as far:
        sink = far.sink(timeout="1h")
        sent = [delivery(str(n), type="secret.plan" if n % 3 == 0 else "order.created") for n in range(300)]
        outcomes = await asyncio.wait_for(asyncio.gather(*map(sink.deliver, sent)), 30)
        for each, outcome in zip(sent, outcomes, strict=True):
            if each.event.type == "order.created":
                assert outcome is ACCEPTED
            else:
                assert isinstance(outcome, Failed)
                assert 'no permission to publish to "orders.secret.plan"' in outcome.reason
        assert (await far.js.stream_info("ORDERS")).state.messages == 200


async def test_nothing_is_sent_where_no_answer_could_be_heard(
    make_nats_server: Callable[..., NatsServer], tmp_path: object
) -> None:
    async with permitted(make_nats_server, tmp_path, [">"], ["other"]) as far:
        sink = far.sink()
        for _ in range(2):
            outcome = await sink.deliver(delivery())
            assert isinstance(outcome, Failed)
            assert 'no permission to subscribe to "_INBOX.>", where answers go' in outcome.reason
        assert (await far.js.stream_info("ORDERS")).state.messages == 0
