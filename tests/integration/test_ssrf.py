"""Every way out leads where it may, however a name changes its addresses: FI-52, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from runner import Event, load
from runner.delivery import ACCEPTED, Delivery, DeliveryState
from runner.sinks.http import pool
from runner.storage.contract.records import DeliveryQuery
from tests.support.dns import Rebinding
from tests.support.eventually import eventually
from tests.support.receivers import sink

INSIDE, OUTSIDE = "127.0.0.1", "127.0.0.2"  # the latter stands for a public address: it is the only one allowed
ALLOW = {"http": True, "cidrs": (f"{OUTSIDE}/32",)}
NAME = "rebind.example"
FILE = f"""\
deployment_id: guarded
storage: {{dsn: "sqlite:///bus.db"}}
destinations: {{allow: {{http: true, cidrs: ["{OUTSIDE}/32"]}}, ports: null}}
sealing: {{keys: [a-key-of-more-than-thirty-two-characters]}}
"""
DELIVERY = Delivery(Event(type="a", source="/s", id="1"), "crm", 1)
TIMES = 6


class Network:
    """
    A name whose addresses change from one look-up to the next, a server outside and a canary inside on one port.

    Attributes:
        seen: the request lines that the server outside has got.
        visits: connections to the canary.
        answers: of the server outside, in turn; it ends every connection, so that the next request needs another one.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.visits = 0
        self.answers = ["200 OK\r\nContent-Length: 0"]
        self.port = 0
        self.dns = Rebinding(lambda number: self.addresses[number % len(self.addresses)])
        self.addresses: Sequence[Sequence[str]] = ([OUTSIDE], [INSIDE])

    @property
    def url(self) -> str:
        return f"http://{NAME}:{self.port}"

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            lengths = [int(line.partition(":")[2]) for line in head if line.lower().startswith("content-length")]
            await reader.readexactly(sum(lengths))
            answer = self.answers[len(self.seen) % len(self.answers)]
            self.seen.append(head[0])
            writer.write(f"HTTP/1.1 {answer}\r\nConnection: close\r\n\r\n".encode())
            await writer.drain()
        writer.close()

    async def visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visits += 1
        writer.close()


@pytest.fixture
async def network(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Network]:
    made = Network()
    monkeypatch.setattr(pool, "_REMEMBERED", 0.0)  # every connection looks its name up
    async with (
        await asyncio.start_server(made.visit, INSIDE, 0) as canary,
        contextlib.AsyncExitStack() as stack,
    ):
        made.port = canary.sockets[0].getsockname()[1]
        await stack.enter_async_context(await asyncio.start_server(made.accept, OUTSIDE, made.port))
        await made.dns.start()
        stack.callback(made.dns.stop)
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", made.dns.getaddrinfo)
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            for spelled in (name, name.lower()):
                monkeypatch.setenv(spelled, f"http://{INSIDE}:{made.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        yield made


def oauth2(url: str) -> dict[str, object]:
    return {"oauth2": {"token_url": f"{url}/token", "client_id": "us", "client_secret": "cl1ent-secret"}}


Way = Callable[[Network, Path], Awaitable[None]]


async def sink_of_the_file(network: Network, directory: Path) -> None:
    async with sink(f"{network.url}/hook", allow=ALLOW) as crm:
        for _ in range(TIMES):
            await crm.deliver(DELIVERY)


async def batches(network: Network, directory: Path) -> None:
    async with sink(f"{network.url}/hook", allow=ALLOW) as crm:
        for _ in range(TIMES):
            await crm.deliver_batch([DELIVERY, DELIVERY])


async def token_of_the_file(network: Network, directory: Path) -> None:
    async with sink(f"http://{OUTSIDE}:{network.port}/hook", allow=ALLOW, auth=oauth2(network.url)) as crm:
        assert crm._tokens is not None
        for _ in range(TIMES):
            crm._tokens._failed = None  # as if the second in which nobody asks again were over
            await crm.deliver(DELIVERY)


async def handshake(network: Network, directory: Path) -> None:
    async with sink(f"{network.url}/hook", allow=ALLOW, handshake="required") as crm:
        assert crm._consent is not None
        for _ in range(TIMES):
            crm._consent._until = 0.0  # as if it were time to ask again
            await crm.deliver(DELIVERY)


async def destination(network: Network, directory: Path) -> None:
    await _delivered(directory, {"url": f"{network.url}/hook"})


async def token_of_a_destination(network: Network, directory: Path) -> None:
    webhook: dict[str, object] = {"url": f"http://{OUTSIDE}:{network.port}/hook", "auth": oauth2(network.url)}
    await _delivered(directory, webhook, attempts=2, delay="1100ms")  # after a failure nobody asks for a second


async def _delivered(directory: Path, webhook: dict[str, object], *, attempts: int = TIMES, delay: str = "1ms") -> None:
    (directory / "bus.yaml").write_text(FILE)
    retry = {"max_attempts": attempts, "delay": delay, "max_delay": delay, "jitter": 0}
    async with load(directory / "bus.yaml") as runner:
        definition = {"destination": {"webhook": {**webhook, "secret": "whsec_" + "A" * 32}}, "retry": retry}
        await runner.subscriptions.put("crm", definition | {"breaker": "off", "concurrency": 1})
        await runner.publish_many([Event(type="a", source="/s", id=str(number)) for number in range(TIMES)])
        records = runner._operations.records
        ended = (DeliveryState.DEAD, DeliveryState.DELIVERED)

        async def over() -> bool:
            found = [each.state async for each in records.deliveries(DeliveryQuery())]
            return len(found) == TIMES and all(each in ended for each in found)

        await eventually(over)


WAYS: tuple[Way, ...] = (
    sink_of_the_file,
    batches,
    token_of_the_file,
    handshake,
    destination,
    token_of_a_destination,
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_a_name_that_leads_outside_and_then_inside(way: Way, network: Network, tmp_path: Path) -> None:
    network.addresses = ([OUTSIDE], [INSIDE])
    await way(network, tmp_path)
    assert network.dns.asked >= 2
    assert network.seen, "the way leads nowhere, and shows nothing"
    assert network.visits == 0


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_a_name_that_leads_to_both(way: Way, network: Network, tmp_path: Path) -> None:
    network.addresses = ([OUTSIDE, INSIDE], [INSIDE, OUTSIDE])
    await way(network, tmp_path)
    assert network.dns.asked >= 1
    assert network.visits == 0


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_a_redirect_inside(way: Way, network: Network, tmp_path: Path) -> None:
    network.addresses = ([OUTSIDE],)
    targets = {"307": f"http://{INSIDE}:{network.port}/", "308": f"//{INSIDE}", "302": "/elsewhere"}
    network.answers = [
        f"{status} Moved\r\nLocation: {target}\r\nRefresh: 0; url={target}\r\nContent-Length: 0"
        for status, target in targets.items()
    ]
    await way(network, tmp_path)
    assert network.seen
    assert {line.split(" ")[1] for line in network.seen} <= {"/hook", "/token"}
    assert network.visits == 0


async def test_no_proxy_of_the_environment_is_used(network: Network) -> None:
    """Without the section `allow`, too: a canary that is a proxy would hear of it."""
    network.addresses = ([OUTSIDE],)
    choices: tuple[dict[str, Any], ...] = ({}, {"allow": ALLOW})
    for options in choices:
        async with sink(f"{network.url}/hook", timeout=timedelta(seconds=5), **options) as crm:
            assert await crm.deliver(DELIVERY) is ACCEPTED
    assert len(network.seen) == 2
    assert network.visits == 0
