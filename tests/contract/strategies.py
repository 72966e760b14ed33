"""What the contract of the strategies is run on: every implementation, and stacks of them."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import asyncpg
import pytest

from runner.nats.connection import Broker, BrokerOptions
from runner.strategies.base import NotifyStrategy, PushStrategy
from runner.strategies.nats import Nats
from runner.strategies.polling import Polling
from runner.strategies.postgres import Postgres
from runner.strategies.sqlite import Sqlite
from runner.strategies.stack import StrategyStack, compose
from tests.support.proxy import Mode, Proxy

QUICK = timedelta(seconds=0.5)  # between two probes, so that no test waits for the real interval


class Bench(Protocol):
    """One kind of strategy and the peer it depends on.

    `pushes` is how many ways it has to wake other processes.
    """

    pushes: int

    def make(self, deployment: str = "one") -> NotifyStrategy:
        """Return a new instance, as another process of the deployment would have it."""

    async def signal(self, sender: NotifyStrategy, deployment: str = "one") -> None:
        """Do what makes the other instances wake."""

    async def cut(self, mode: Mode) -> None:
        """Put the network between the strategies and their peer into this mode."""


class PollingBench:
    pushes = 0

    def make(self, deployment: str = "one") -> NotifyStrategy:
        return Polling(timedelta(seconds=30))

    async def signal(self, sender: NotifyStrategy, deployment: str = "one") -> None:
        await sender.notify("e")

    async def cut(self, mode: Mode) -> None:
        """Have no peer to cut."""


class NatsBench:
    pushes = 1

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.brokers: list[Broker] = []

    def make(self, deployment: str = "one") -> NotifyStrategy:
        broker = Broker(BrokerOptions(servers=(self._proxy.url,)))
        self.brokers.append(broker)
        return Nats(broker, f"mesh.{deployment}.events.notify", probe_every=QUICK)

    async def signal(self, sender: NotifyStrategy, deployment: str = "one") -> None:
        await sender.notify("e")

    async def cut(self, mode: Mode) -> None:
        await self._proxy.set_mode(mode)


class PostgresBench:
    pushes = 1

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    def make(self, deployment: str = "one") -> NotifyStrategy:
        return Postgres(self._connect, f"mesh.{deployment}.events.notify", heartbeat=QUICK)

    async def signal(self, sender: NotifyStrategy, deployment: str = "one") -> None:
        await sender.notify("e")

    async def cut(self, mode: Mode) -> None:
        await self._proxy.set_mode(mode)

    async def _connect(self) -> asyncpg.Connection:
        return await asyncpg.connect(self._proxy.url, timeout=1)


class SqliteBench:
    """Its peer is the file; each deployment has one."""

    pushes = 1

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._commit("one")
        self._commit("two")

    def make(self, deployment: str = "one") -> NotifyStrategy:
        return Sqlite(self._path(deployment), timedelta(milliseconds=5))

    async def signal(self, sender: NotifyStrategy, deployment: str = "one") -> None:
        self._commit(deployment)

    async def cut(self, mode: Mode) -> None:
        """Have no network to cut; what becomes of the file is tested with the strategy itself."""

    def _path(self, deployment: str) -> Path:
        return self._directory / f"{deployment}.db"

    def _commit(self, deployment: str) -> None:
        connection = sqlite3.connect(self._path(deployment), isolation_level=None)
        connection.execute("CREATE TABLE IF NOT EXISTS t (a)")
        connection.execute("INSERT INTO t VALUES (1)")
        connection.close()


class StackBench:
    """Several of them as one."""

    def __init__(self, parts: Sequence[Bench]) -> None:
        self._parts = parts
        self.pushes = sum(part.pushes for part in parts)

    def make(self, deployment: str = "one") -> NotifyStrategy:
        return compose(*(part.make(deployment) for part in self._parts))

    async def signal(self, sender: NotifyStrategy, deployment: str = "one") -> None:
        await sender.notify("e")
        for part in self._parts:
            if isinstance(part, SqliteBench):
                await part.signal(sender, deployment)

    async def cut(self, mode: Mode) -> None:
        for part in self._parts:
            await part.cut(mode)


@asynccontextmanager
async def open_bench(kinds: str, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    """Make the bench for `kinds`: one of them, or `[several, of, them]` for a stack."""
    async with AsyncExitStack() as exits:
        parts = [await _part(kind, request, exits) for kind in kinds.strip("[]").split(", ")]
        yield StackBench(parts) if kinds.startswith("[") else parts[0]


async def _part(kind: str, request: pytest.FixtureRequest, exits: AsyncExitStack) -> Bench:
    match kind:
        case "nats":
            bench = NatsBench(await exits.enter_async_context(Proxy(request.getfixturevalue("nats_server").url)))

            async def stop() -> None:
                for broker in bench.brokers:
                    await broker.stop()

            exits.push_async_callback(stop)
            return bench
        case "postgres":
            return PostgresBench(await exits.enter_async_context(Proxy(request.getfixturevalue("postgres_dsn"))))
        case "sqlite":
            return SqliteBench(request.getfixturevalue("tmp_path"))
        case _:
            return PollingBench()


class Ear:
    """A started strategy and the wakes it caused."""

    def __init__(self, strategy: NotifyStrategy) -> None:
        self.strategy = strategy
        self.wakes = 0

    def wake(self) -> None:
        self.wakes += 1

    @property
    def hears(self) -> bool:
        """Whether every way it has is proven to hear; true where there is none."""
        return all(self.states)

    @property
    def deaf(self) -> bool:
        """Whether none of the ways it has is proven to hear."""
        return not any(self.states)

    @property
    def states(self) -> list[bool]:
        if isinstance(self.strategy, StrategyStack):
            return [state.hears for state in self.strategy.states() if state.hears is not None]
        return [self.strategy.hears] if isinstance(self.strategy, PushStrategy) else []


Listen = Callable[..., Awaitable[Ear]]
