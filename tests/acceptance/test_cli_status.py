"""The screen of each verdict, as docs/status.md shows it, on real servers."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog

from runner import Event, Runner, load
from runner.config.dsn import Dsn
from runner.periodic import heartbeat
from runner.runtime import runner as runtime
from runner.storage import Storage, open_storage
from runner.storage.contract.events import Publication
from runner.subscription import Subscription
from tests.support.documents import ROOT, alike, commands, read
from tests.support.eventually import eventually
from tests.support.nats import NatsServer
from tests.support.process import run_cli

STATUS = ROOT / "docs" / "status.md"

CONFIG = """\
deployment_id: shop
storage: {{dsn: "{dsn}", start_timeout: 1s}}
strategies:
  - polling: 30s
  - nats: {{servers: ["{nats}"]}}
sinks:
  audit: {{python: "status_handlers:accept"}}
  crm: {{python: "status_handlers:{handler}"}}
subscriptions:
  - {{name: audit, types: ["*"], sink: audit}}
  - {{name: crm, types: ["order.*"], sink: crm, retry: {{max_attempts: {attempts}, delay: 1h, jitter: 0}},
     breaker: {{failures: 3, pause: 1h, max_pause: 1h}}}}
log: {{level: error}}
"""

HANDLERS = """\
def accept(event):
    pass

def fail(event):
    raise RuntimeError("no such customer")
"""


def shown(title: str) -> str:
    """Return the screen under a title of the manual."""
    [block] = [each for each in read(STATUS) if each.above == f"{title}:" and "run by" in each.notes]
    [command] = commands(block)
    assert command.line == "runner status"
    return command.shown


class Shop:
    """One deployment on real servers."""

    def __init__(self, directory: Path, dsn: str, nats: str) -> None:
        self.path = directory / "runner.yaml"
        self.dsn = dsn
        self._nats = nats
        (directory / "status_handlers.py").write_text(HANDLERS)
        self.write()

    def write(self, handler: str = "accept", attempts: int = 3) -> None:
        text = CONFIG.format(dsn=self.dsn, nats=self._nats, handler=handler, attempts=attempts)
        self.path.write_text(text)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Runner]:
        async with load(self.path) as runner:
            yield runner

    @asynccontextmanager
    async def storage(self) -> AsyncIterator[Storage]:
        storage = open_storage(Dsn.parse(self.dsn, base=self.path.parent))
        try:
            yield storage
        finally:
            await storage.close()

    async def status(self) -> tuple[int, str]:
        done = await asyncio.to_thread(run_cli, "status", "-c", self.path)
        assert not done.stderr, done.stderr
        return done.returncode, done.stdout

    async def is_as_shown(self, title: str, code: int) -> None:
        """Expect the screen under a title of the manual, soon."""

        async def same() -> bool:
            found, screen = await self.status()
            assert found == code, screen
            assert alike(shown(title), screen), screen
            return True

        await eventually(same, every=0.2)


@pytest.fixture
def shop(tables_dsn: str, nats: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "status_handlers", raising=False)
    return Shop(tmp_path, tables_dsn, nats.url)


@pytest.fixture
def nats(make_nats_server: Callable[..., NatsServer]) -> NatsServer:
    return make_nats_server()


async def publish(runner: Runner, count: int, type: str = "order.created") -> None:
    await runner.publish_many([Event.new(type, {"number": number}, source="/shop") for number in range(count)])


async def test_healthy(shop: Shop) -> None:
    async with shop.running() as runner:
        await publish(runner, 5)
        await shop.is_as_shown("Healthy", 0)


async def test_all_runners_stopped(shop: Shop) -> None:
    async with shop.running() as runner:
        await publish(runner, 5)
        await eventually(lambda: _delivered(shop, 10))
    async with shop.storage() as storage:
        await storage.events.append([Publication(Event.new("order.created", source="/shop")) for _ in range(1000)])
    await shop.is_as_shown("All runners are stopped", 2)
    listed = await asyncio.to_thread(run_cli, "subscriptions", "list", "-c", shop.path)
    assert re.search(r"^crm .* 1000 queued$", listed.stdout, re.MULTILINE)
    assert listed.stderr.startswith("no live instance: ")


async def test_nats_is_deaf(shop: Shop, nats: NatsServer) -> None:
    async with shop.running() as runner:
        await publish(runner, 5)
        nats.stop()
        await shop.is_as_shown("NATS is out of reach", 1)


async def test_a_breaker_is_open(shop: Shop) -> None:
    shop.write("fail")
    async with shop.running() as runner:
        await publish(runner, 5)
        await shop.is_as_shown("A receiver fails, and its breaker is open", 1)


async def test_dead_deliveries(shop: Shop) -> None:
    shop.write("fail", attempts=1)
    async with shop.running() as runner:
        await publish(runner, 2)
        await shop.is_as_shown("Deliveries are dead", 1)


async def test_nobody_serves_it(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    async with shop.running() as runner:
        report = Subscription(name="report", sink="function:report", types=("order.*",))
        async with shop.storage() as storage:
            await storage.registry.put_subscriptions([report], "function:report")
        await publish(runner, 5)
        await shop.is_as_shown("Nobody serves a subscription", 1)
        listed = await asyncio.to_thread(run_cli, "subscriptions", "list", "-c", shop.path)
        assert re.search(r"^report +nobody serves it ", listed.stdout, re.MULTILINE)
        assert not listed.stderr
    log = structlog.testing.CapturingLogger()
    monkeypatch.setattr(runtime, "log", log)
    async with shop.running():
        pass
    told = [call.kwargs["subscription"] for call in log.calls if call.args == ("nobody serves it",)]
    assert told == ["report"]


async def test_the_store_is_away(shop: Shop) -> None:
    shop.dsn = "postgresql://shop@127.0.0.1:9/shop"
    shop.write()
    await shop.is_as_shown("The store is away", 2)


async def _delivered(shop: Shop, count: int) -> bool:
    async with shop.storage() as storage:
        recent = await storage.overview.recent()
    return sum(each.delivered for each in recent.values()) == count
