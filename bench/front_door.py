"""
`python -m bench.front_door`: what `POST /events` takes, beside an empty handler behind the same listener and client.

The client and the server are a process each. The client sends prepared requests over kept connections and looks at no
more of an answer than its status and its length, so that the server is what is measured.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import psutil

from runner.event import new_id
from tests.support.postgres import PostgresServer
from tests.support.server import free_port

_ROOT = Path(__file__).parents[1]
_SETTINGS = {"shared_buffers": "256MB", "max_wal_size": "8GB", "checkpoint_timeout": "30min"}
_DATA = {"order": 17, "items": [{"sku": "a", "quantity": 2}], "customer": "c-1042"}

# Serves in the place of a runner: the same listener, and a handler that reads the body and does nothing.
_EMPTY = """
import asyncio, sys
from pathlib import Path
from runner.api.listener import Listener
from runner.api.sockets import listen
from runner.config import load_config
from runner.service.watchdog import Watchdog

async def app(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}"})

async def main():
    watchdog = Watchdog()
    await watchdog.start()
    api = load_config(sys.argv[1]).api
    await Listener(api, watchdog, await listen(api)).start(app)
    print("started", flush=True)
    await asyncio.Event().wait()

import uvloop
uvloop.run(main())
"""


@click.command()
@click.option("--seconds", default=10.0, help="Length of each measurement.")
@click.option("--connections", default=64, help="Requests at once.")
@click.option("--streams", default=10_000, help="Idle streams of the last measurement; 0 leaves it out.")
@click.option("--store", type=click.Choice(["sqlite", "postgres"]), multiple=True, default=["sqlite", "postgres"])
def main(seconds: float, connections: int, streams: int, store: tuple[str, ...]) -> None:
    """Print one line of JSON for each measurement."""
    with tempfile.TemporaryDirectory(prefix="runner-bench-") as directory:
        with _served(Path(directory), "sqlite:///empty.db", empty=True) as (address, process):
            for batch in (0, 100):
                _measure("empty", batch, process, _publish(address, seconds, connections, batch))
        for kind in store:
            with _database(kind) as dsn, _served(Path(directory), dsn) as (address, process):
                for batch in (0, 100):
                    _measure(kind, batch, process, _publish(address, seconds, connections, batch))
                if streams and kind == store[-1]:
                    grown = asyncio.run(_idle(address, process, streams))
                    click.echo(json.dumps({"store": kind, "idle_streams": streams, "mib": round(grown, 1)}))


def _measure(store: str, batch: int, process: psutil.Process, publishing: Coroutine[Any, Any, dict[str, Any]]) -> None:
    """Publish, and print what came of it and what the server has spent on an event."""
    before = process.cpu_times()
    measured = asyncio.run(publishing)
    after = process.cpu_times()
    spent = after.user + after.system - before.user - before.system
    measured["server_us_per_event"] = round(spent / measured.pop("events") * 1e6, 1)
    click.echo(json.dumps({"store": store, "batch": batch or 1, **measured}))


@contextmanager
def _database(kind: str) -> Iterator[str]:
    if kind == "sqlite":
        yield "sqlite:///bench.db"
        return
    server = PostgresServer(18, fsync=True, settings=_SETTINGS)
    try:
        server.start()
        yield server.create_database()
    finally:
        server.discard()


@contextmanager
def _served(directory: Path, dsn: str, *, empty: bool = False) -> Iterator[tuple[tuple[str, int], psutil.Process]]:
    """Serve in a process of its own; give its address, and the process."""
    port = free_port()
    path = directory / "bench.yaml"
    path.write_text(
        f"deployment_id: bench\nstorage: {{dsn: '{dsn}'}}\nlog: {{level: error}}\n"
        f"api: {{listen: '127.0.0.1:{port}', limits: {{body: 8MiB, connections: 15000}}}}\n"
    )
    program = ["-c", _EMPTY, str(path)] if empty else ["-m", "runner", "start", "-c", str(path)]
    process = subprocess.Popen([sys.executable, "-W", "ignore", *program], cwd=_ROOT)
    try:
        asyncio.run(_ready(port))
        yield ("127.0.0.1", port), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


async def _ready(port: int) -> None:
    for _ in range(600):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            status = await reader.readline()
            writer.close()
            if b" 20" in status:
                return
        except OSError:
            pass
        await asyncio.sleep(0.1)
    raise SystemExit("the server did not become ready")


async def _publish(address: tuple[str, int], seconds: float, connections: int, batch: int) -> dict[str, Any]:
    """Publish on so many connections at once, each the next request after the answer to the one before."""
    waits: list[float] = []
    ends = time.perf_counter() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection(*address)
        while (begun := time.perf_counter()) < ends:
            writer.write(_request(batch))
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 202"):
                raise SystemExit(f"refused: {head!r}")
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
            waits.append(time.perf_counter() - begun)
        writer.close()

    begun = time.perf_counter()
    await asyncio.gather(*[client() for _ in range(connections)])
    spent = time.perf_counter() - begun
    waits.sort()
    return {
        "events": len(waits) * (batch or 1),
        "events_per_second": round(len(waits) * (batch or 1) / spent),
        "p50_ms": round(statistics.median(waits) * 1000, 2),
        "p99_ms": round(waits[int(len(waits) * 0.99)] * 1000, 2),
    }


_BODY = json.dumps(_DATA).encode()
_HEAD = (
    b"POST /events HTTP/1.1\r\nhost: localhost\r\nce-specversion: 1.0\r\nce-type: order.created\r\nce-source: /shop\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\nce-id: %s\r\n\r\n%s"
)
_BATCH = (
    b"POST /events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/cloudevents-batch+json\r\n"
    b"content-length: %d\r\n\r\n%s"
)
_DOCUMENT = b'{"specversion":"1.0","type":"order.created","source":"/shop","id":"%s","data":%s}'


def _request(batch: int) -> bytes:
    if not batch:
        return _HEAD % (len(_BODY), new_id().encode(), _BODY)
    body = b"[%s]" % b",".join(_DOCUMENT % (new_id().encode(), _BODY) for _ in range(batch))
    return _BATCH % (len(body), body)


async def _idle(address: tuple[str, int], process: psutil.Process, count: int) -> float:
    """Open streams that nothing is sent to; return by how many MiB the server has grown."""
    before = process.memory_info().rss
    held = []
    for number in range(count):
        host = f"127.0.{number // 20_000}.1"  # not more than the ports of one address
        reader, writer = await asyncio.open_connection(*address, local_addr=(host, 0))
        writer.write(b"GET /events/stream HTTP/1.1\r\nhost: localhost\r\n\r\n")
        held.append((reader, writer))
    for reader, _ in held:
        await reader.readuntil(b"id: ")
    grown: float = (process.memory_info().rss - before) / 2**20
    for _, writer in held:
        writer.close()
    return grown


if __name__ == "__main__":
    main()
