"""Signals over NATS, against a real server and what can be wrong with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import pytest

from runner.nats import connection
from runner.nats.connection import Broker, BrokerOptions
from runner.nats.options import NatsConnection
from runner.strategies.nats import PROBE, Nats
from runner.strategies.stack import compose
from tests.support.eventually import eventually
from tests.support.nats import NatsServer
from tests.support.proxy import Proxy
from tests.support.server import free_port

SUBJECT = "mesh.one.events.notify"

MakeServer = Callable[..., NatsServer]


class Station:
    """A started strategy with its own connection."""

    def __init__(self, url: str, probe_every: float) -> None:
        self.broker = Broker(BrokerOptions.of(NatsConnection.model_validate({"servers": url})))
        self.nats = Nats(self.broker, SUBJECT, probe_every=timedelta(seconds=probe_every))
        self.wakes = 0

    def wake(self) -> None:
        self.wakes += 1

    async def stop(self) -> None:
        await self.nats.stop()
        await self.broker.stop()


Start = Callable[..., Awaitable[Station]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    stations: list[Station] = []

    async def begin(url: str, *, probe_every: float = 0.3, wait: bool = True) -> Station:
        station = Station(url, probe_every)
        stations.append(station)
        await station.nats.start(station.wake)
        if wait:
            await eventually(lambda: station.nats.hears)
        return station

    yield begin
    for station in stations:
        await station.stop()


async def test_payload_is_the_id_of_the_event(start: Start, nats_server: NatsServer) -> None:
    station = await start(nats_server.url)
    heard: list[bytes] = []
    taken = asyncio.Event()
    station.broker.subscribe(SUBJECT, heard.append, taken.set)
    await taken.wait()
    await station.nats.notify("0198-e")
    await eventually(lambda: b"0198-e" in heard)


async def test_own_signal_and_foreign_probes_wake_nobody(start: Start, nats_server: NatsServer) -> None:
    one, other = await start(nats_server.url), await start(nats_server.url)
    assert (one.wakes, other.wakes) == (1, 1)
    await one.broker.publish(SUBJECT, PROBE, confirm=True)
    await one.nats.notify("a")
    await eventually(lambda: other.wakes == 2 and one.nats.sent == 1)
    one.nats._receive(b"a")  # the echo once more, to be sure that it was here
    assert (one.wakes, one.nats.received) == (1, 0)
    await other.nats.notify("b")
    await eventually(lambda: one.wakes == 2)
    assert one.nats.received == 1


async def test_signal_lost_with_its_connection_is_sent_again(start: Start, nats_server: NatsServer) -> None:
    async with Proxy(nats_server.url) as proxy:
        listener, speaker = await start(nats_server.url), await start(proxy.url)
        await proxy.set_mode("blackhole")
        await speaker.nats.notify("e")
        await eventually(lambda: speaker.nats.failed)
        assert listener.nats.received == 0
        await proxy.set_mode("reset")
        await proxy.set_mode("pass")
        await eventually(lambda: listener.nats.received == 1)
        await speaker.stop()


@pytest.mark.alone
async def test_signal_is_quick(start: Start, nats_server: NatsServer) -> None:
    one, other = await start(nats_server.url), await start(nats_server.url)
    waits = []
    for number in range(20):
        before, began = other.wakes, time.monotonic()
        await one.nats.notify(f"e{number}")
        await eventually(lambda: other.wakes > before, every=0.001)  # noqa: B023  # awaited at once
        waits.append(time.monotonic() - began)
    assert sorted(waits)[10] < 1.0


async def test_process_that_ends_at_once_gets_its_signal_out(start: Start, nats_server: NatsServer) -> None:
    listener = await start(nats_server.url)
    brief = await start(nats_server.url, wait=False)
    await brief.nats.notify("e")
    await brief.stop()
    await eventually(lambda: listener.nats.received == 1)


async def test_process_that_ends_at_once_does_not_hang_without_server(start: Start) -> None:
    began = time.monotonic()
    brief = await start(f"nats://127.0.0.1:{free_port()}", wait=False)
    await brief.nats.notify("e")
    await brief.stop()
    assert time.monotonic() - began < 10.0


async def test_lost_and_back_with_a_killed_server(
    start: Start, make_nats_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PROBE_EVERY", 60.0)  # so that it is not a probe that finds it out
    server = make_nats_server()
    one, other = await start(server.url), await start(server.url)
    stack = compose(one.nats)
    server.kill()
    await eventually(lambda: stack.deaf)
    assert "not connected" in one.nats.detail
    server.start()
    await eventually(lambda: one.nats.hears and other.nats.hears)
    assert (one.wakes, other.wakes) == (2, 2)
    await one.nats.notify("e")
    await eventually(lambda: other.wakes == 3)


async def test_forbidden_subscription_is_deaf_until_it_is_allowed(start: Start, make_nats_server: MakeServer) -> None:
    def config(subject: str) -> str:
        return (
            "authorization { users: [ { user: me, password: pw, permissions: "
            f'{{ publish: ">", subscribe: "{subject}" }} }} ] }}'
        )

    server = make_nats_server(config("other"))
    station = await start(server.url.replace("nats://", "nats://me:pw@"), wait=False)
    await eventually(lambda: "deaf" in station.nats.detail)
    assert station.broker.connected
    assert not station.nats.hears
    server.reload(config(SUBJECT))
    await eventually(lambda: station.nats.hears)
    server.reload(config("other"))
    await eventually(lambda: not station.nats.hears)


async def test_silence_is_doubted_after_one_interval(start: Start, nats_server: NatsServer) -> None:
    every = 4.0
    listener = await start(nats_server.url, probe_every=60.0)
    probed: list[float] = []
    listener.broker.subscribe(SUBJECT, lambda payload: probed.append(time.monotonic()) if payload == PROBE else None)
    station = await start(nats_server.url, probe_every=every)
    await eventually(lambda: probed)
    await listener.broker.publish(SUBJECT, b"x")  # heard just after the wait for the next probe has begun
    await eventually(lambda: station.nats.received == 1)
    heard, before = time.monotonic(), len(probed)
    await eventually(lambda: len(probed) > before)
    assert probed[before] - heard < 1.9 * every


async def test_forbidden_publish_is_no_deafness_once_something_is_heard(
    start: Start, make_nats_server: MakeServer
) -> None:
    server = make_nats_server(
        "authorization { users: [ { user: all, password: pw },"
        ' { user: mute, password: pw, permissions: { publish: { deny: ">" } } } ] }'
    )
    speaker = await start(server.url.replace("nats://", "nats://all:pw@"), probe_every=60.0)
    mute = await start(server.url.replace("nats://", "nats://mute:pw@"), wait=False, probe_every=60.0)
    await eventually(lambda: mute.wakes == 1)

    async def heard() -> bool:
        await speaker.nats.notify("e")  # again and again: the server may not have its subscription yet
        return mute.nats.hears

    await eventually(heard)
    await mute.nats.notify("e")  # and whoever asks is told that nobody hears it
    await eventually(lambda: mute.nats.failed)
    assert f'mute: {mute.broker.server}: no permission to publish to "{SUBJECT}"' in mute.nats.detail
    assert mute.nats.sent == 0


async def test_flood_of_strangers_is_survived(start: Start, nats_server: NatsServer) -> None:
    one, other, stranger = [await start(nats_server.url) for _ in range(3)]
    for _ in range(20):
        for _ in range(1000):
            await stranger.broker.publish(SUBJECT, b"junk")
        await stranger.broker.publish(SUBJECT, b"junk", confirm=True)
    await eventually(lambda: one.nats.received > 0)
    settled = await eventually(lambda: one.wakes)
    await other.nats.notify("e")
    await eventually(lambda: one.wakes > settled)
    assert one.nats.hears
    assert one.broker.counts.connects == 1
