"""
`python -m bench.outward`: what leaves the bus: webhooks, unsigned and signed, and messages into a JetStream stream.

The receiver of webhooks is this process: it reads each request to its end, and answers 204. A stream acknowledges.
Beside each measurement stands the floor: the same sink, called in a process of its own without any bus.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
import httptools
import nats
import psutil
import uvloop
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from tests.support.nats import NatsServer
from tests.support.server import free_port

_ROOT = Path(__file__).parents[1]
_PATIENCE = 120.0  # seconds for one measurement
_POLL = 0.005  # seconds between two looks at how many have arrived
_WARM_UP = 10  # one in so many events does not count
_SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3"
_DATA = {"order": 17, "items": [{"sku": "a", "quantity": 2}], "customer": "c-1042"}
_SUBSCRIPTION = "subscriptions: [{name: out, types: ['*'], sink: out}]\n"

Count = Callable[[], Awaitable[int]]

# Calls the sink alone, as many deliveries at once as a worker has.
_FLOOR = """
import asyncio, json, sys
import uvloop
from runner import ACCEPTED, Delivery, Event, load
from runner.cli.loop import tune_gc

async def main():
    runner = load(sys.argv[1])
    sink, data = runner._sinks["out"], json.loads(sys.argv[3])
    events = [Event.new("order.created", data, source="/shop") for _ in range(int(sys.argv[2]))]

    async def deliver():
        while events:
            delivery = Delivery(events.pop(), "out", 1)
            while await sink.deliver(delivery) != ACCEPTED:  # the connection is not made yet
                await asyncio.sleep(0.01)

    async with runner:
        await asyncio.gather(*[deliver() for _ in range(256)])
        await asyncio.Event().wait()

tune_gc()
uvloop.run(main())
"""


@click.command()
@click.option("--events", default=20_000, help="Events of each measurement.")
@click.option("--rounds", default=1, help="Rounds, in turns.")
@click.option("--only", type=click.Choice(["webhooks", "jetstream"]), help="One of the two.")
@click.option("--store", type=click.Choice(["sqlite", "postgres"]), default="sqlite", help="Where the events are.")
def main(events: int, rounds: int, only: str | None, store: str) -> None:
    """
    Print one line of JSON for each measurement: events/s, and CPU of the sending process for each.

    Example: python -m bench.outward --only webhooks --rounds 3
    """
    for _ in range(rounds):
        if only != "jetstream":
            for signed in (False, True):
                uvloop.run(_webhooks(events, store, signed=signed))
        if only != "webhooks":
            uvloop.run(_jetstream(events, store))


async def _webhooks(events: int, store: str, *, signed: bool) -> None:
    port = free_port()
    loop = asyncio.get_running_loop()
    received = [0]
    server = await loop.create_server(lambda: _Receiver(received), "127.0.0.1", port)

    async def count() -> int:
        return received[0]

    secret = f", mode: binary, secret: {_SECRET}" if signed else ""
    sink = f"sinks: {{out: {{webhook: {{url: 'http://127.0.0.1:{port}/'{secret}}}}}}}\n"
    for floor in (True, False):
        received[0] = 0
        await _measure("webhooks signed" if signed else "webhooks", sink, events, store, count, floor=floor)
    server.close()


async def _jetstream(events: int, store: str) -> None:
    server = NatsServer(jetstream=True)
    server.start()
    try:
        for floor in (True, False):
            name = "FLOOR" if floor else "BUS"
            stream = f"stream: {{name: {name}, subjects: ['{name}.>']}}"
            options = f"servers: ['{server.url}'], subject: '{name}.{{type}}', jetstream: true, {stream}"
            client = await nats.connect(server.url)
            count = partial(_messages, client.jetstream(), name)
            await _measure("jetstream", f"sinks: {{out: {{nats: {{{options}}}}}}}\n", events, store, count, floor=floor)
            await client.close()
    finally:
        server.discard()


async def _messages(context: JetStreamContext, stream: str) -> int:
    try:
        return (await context.stream_info(stream)).state.messages
    except NotFoundError:
        return 0


async def _measure(what: str, sink: str, events: int, store: str, count: Count, *, floor: bool) -> None:
    """Have a process send so many events through a sink, and print how fast they arrive."""
    with tempfile.TemporaryDirectory(prefix="runner-bench-") as directory, _dsn(store, floor=floor) as dsn:
        path = Path(directory) / "bench.yaml"
        subscription = "" if floor else _SUBSCRIPTION
        path.write_text(f"deployment_id: bench\nstorage: {{dsn: '{dsn}'}}\nlog: {{level: error}}\n{sink}{subscription}")
        with _sender(path, events, floor=floor) as process:
            began, before, already = await _until(events // _WARM_UP, count, process)
            ended, after, _ = await _until(events, count, process)
    sent = events - already
    rate, spent = round(sent / (ended - began)), round((after - before) / sent * 1e6, 1)
    shown = {"what": what, "floor": floor, "store": None if floor else store}
    click.echo(json.dumps({**shown, "events_per_second": rate, "us_per_event": spent}))


@contextmanager
def _sender(path: Path, events: int, *, floor: bool) -> Iterator[subprocess.Popen[bytes]]:
    """Run the process that sends, a backlog where it is a bus."""
    program = ["-c", _FLOOR, str(path), str(events), json.dumps(_DATA)]
    if not floor:
        _fill(path, events)
        program = ["-m", "runner", "start", "-c", str(path)]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", *program], cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


async def _until(events: int, count: Count, process: subprocess.Popen[bytes]) -> tuple[float, float, int]:
    """Wait until so many have arrived; return the time, the CPU time of the process, and how many there are."""
    ends = time.perf_counter() + _PATIENCE
    while (arrived := await count()) < events:
        if process.poll() is not None or time.perf_counter() > ends:
            raise SystemExit(f"{arrived} of {events} events have arrived")
        await asyncio.sleep(_POLL)
    spent = psutil.Process(process.pid).cpu_times()
    return time.perf_counter(), spent.user + spent.system, arrived


def _fill(path: Path, events: int) -> None:
    """Publish a backlog by the command line, which delivers nothing."""
    event = {"specversion": "1.0", "type": "order.created", "source": "/shop", "data": _DATA}
    backlog = path.with_name("events.jsonl")
    backlog.write_text("".join(f"{json.dumps({**event, 'id': str(number)})}\n" for number in range(events)))
    for verb in (["migrate"], ["publish", "--file", str(backlog)]):
        command = [sys.executable, "-m", "runner", *verb, "-c", str(path)]
        subprocess.run(command, cwd=_ROOT, check=True, capture_output=True)


@contextmanager
def _dsn(store: str, *, floor: bool) -> Iterator[str]:
    if floor or store == "sqlite":
        yield "sqlite:///bench.db"
        return
    from tests.support.postgres import PostgresServer

    server = PostgresServer(18, fsync=True)
    try:
        server.start()
        yield server.create_database()
    finally:
        server.discard()


class _Receiver(asyncio.Protocol):
    """Counts the requests of a connection, and answers each."""

    def __init__(self, received: list[int]) -> None:
        self._received = received
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # it is a stream
        """Keep the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Count a request, and answer it."""
        self._received[0] += 1
        self._transport.write(b"HTTP/1.1 204 No Content\r\n\r\n")


if __name__ == "__main__":
    main()
