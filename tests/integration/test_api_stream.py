"""`GET /events/stream` of a runner that runs: nothing is passed over, wherever a client comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from runner import Event, Runner, load
from runner.api import feed, stream
from tests.support.eventually import eventually

from .buses import Bus

API = "api: {listen: '127.0.0.1:0'}\n"
SHOP, OPS = "evb_" + "s" * 43, "evb_" + "o" * 43


@pytest.fixture(params=["sqlite", "postgres"])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Bus:
    return Bus(tmp_path, request.getfixturevalue("tables_file" if request.param == "sqlite" else "tables_dsn"))


@pytest.fixture
def lite(tables_file: str, tmp_path: Path) -> Bus:
    return Bus(tmp_path, tables_file)


@pytest.fixture
async def large(tables_dsn: str, tmp_path: Path) -> AsyncIterator[Bus]:
    bus = Bus(tmp_path, tables_dsn)
    yield bus
    await bus.close()


@dataclass(slots=True)
class Client:
    """A client of a stream, that reads it as a browser does."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    status: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)
    others: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    last_id: str = ""
    comments: int = 0
    ended: bool = False

    @property
    def ids(self) -> list[str]:
        return [each["event"]["id"] for each in self.events]

    async def read(self) -> None:
        head = await self.reader.readuntil(b"\r\n\r\n")
        self.status = int(head.split()[1])
        assert b"text/event-stream" in head or self.status != 200
        kind, data, last_id = "message", "", self.last_id
        async for line in self._lines():
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if line == "":
                self.last_id = last_id
                if data and kind == "message":
                    self.events.append(json.loads(data))
                elif data:
                    self.others.append((kind, json.loads(data)))
                kind, data = "message", ""
            elif name == "":
                self.comments += 1
            elif name == "data":
                data += value
            elif name == "event":
                kind = value
            elif name == "id":
                last_id = value
        self.ended = True

    async def _lines(self) -> AsyncIterator[str]:
        """Yield the lines of a chunked body."""
        rest = ""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                rest += (await self.reader.readexactly(size + 2))[:-2].decode()
                *lines, rest = rest.split("\n")
                for line in lines:
                    yield line


@contextlib.asynccontextmanager
async def streaming(runner: Runner, query: str = "", **headers: str) -> AsyncIterator[Client]:
    parts = urlsplit(runner.addresses[0])
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    lines = [f"GET /events/stream{query} HTTP/1.1", "host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    client = Client(reader, writer)
    reading = asyncio.create_task(client.read())
    try:
        await eventually(lambda: client.status != 0)
        if client.status == 200:
            await eventually(lambda: client.last_id != "")
        yield client
    finally:
        reading.cancel()
        await asyncio.wait({reading})
        writer.close()


def event(id: str, type: str = "a", **more: Any) -> Event:
    return Event.new(type, source="/", id=id, **more)


def has(client: Client, *ids: str) -> Callable[[], bool]:
    return lambda: set(ids) <= set(client.ids)


class TestEvents:
    async def test_what_is_published_comes_at_once_and_in_order(self, bus: Bus) -> None:
        async with load(bus.write(API)) as runner:
            await runner.publish(event("before"))
            async with streaming(runner) as client, streaming(runner, "?types=order.*,b&types=c") as some:
                await runner.publish_many([event(str(number)) for number in range(300)])
                await runner.publish_many([event("x", "order.created"), event("y", "b"), event("z", "c")])
                await eventually(has(client, "x", "y", "z"))
                assert client.ids == [*map(str, range(300)), "x", "y", "z"]
                await eventually(has(some, "z"))
                assert some.ids == ["x", "y", "z"]
                assert client.events[0].keys() >= {"seq", "created_at", "event"}
                assert client.events[0]["created_at"].endswith("Z")
                assert client.events[0]["event"]["specversion"] == "1.0"

    async def test_what_another_process_publishes(self, bus: Bus) -> None:
        async with load(bus.write(API)) as runner, streaming(runner) as client:
            await bus.publish([event("1"), event("2")])
            await eventually(has(client, "1", "2"))
            assert client.ids == ["1", "2"]

    async def test_a_sign_of_life_moves_the_mark_on(self, lite: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stream, "_HEARTBEAT", timedelta(milliseconds=50))
        async with load(lite.write(API)) as runner, streaming(runner, "?types=b") as client:
            first = client.last_id
            await runner.publish(event("1"))
            await eventually(lambda: client.comments > 1 and client.last_id != first)
            assert client.events == []

    async def test_events_that_are_not_for_a_client_are_no_sign_of_life(
        self, lite: Bus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stream, "_HEARTBEAT", timedelta(milliseconds=500))
        async with load(lite.write(API)) as runner, streaming(runner, "?types=b") as client:
            busy = asyncio.create_task(self._publish_for_ever(runner))  # never a pause as long as that
            await eventually(lambda: client.comments > 1)
            busy.cancel()
            assert client.events == []

    @staticmethod
    async def _publish_for_ever(runner: Runner) -> None:
        while True:
            await runner.publish(Event.new("a", source="/"))
            await asyncio.sleep(0.02)

    @pytest.mark.parametrize("query", ["?type=a", "?types=" + "a," * 101, "?types=a&x=1", "?token=canary"])
    async def test_parameters_that_nobody_knows(self, lite: Bus, query: str) -> None:
        async with load(lite.write(API)) as runner, streaming(runner, query) as client:
            assert client.status == 400


class TestComingBack:
    async def test_it_goes_on_behind_what_was_seen_at_any_instance(self, bus: Bus) -> None:
        async with load(bus.write(API)) as runner, load(bus.write(API)) as other:
            async with streaming(runner) as client:
                await runner.publish_many([event(str(number)) for number in range(10)])
                await eventually(has(client, "9"))
            await runner.publish_many([event(str(number)) for number in range(10, 1500)])
            async with streaming(other, last_event_id=client.last_id) as again:
                await runner.publish(event("last"))
                await eventually(has(again, "last"))
                assert set(map(str, range(10, 1500))) <= set(again.ids)
                assert again.others == []

    async def test_from_the_beginning(self, bus: Bus) -> None:
        async with load(bus.write(API)) as runner:
            await runner.publish_many([event(str(number)) for number in range(20)])
            async with streaming(runner, last_event_id="0") as client:
                await eventually(has(client, "19"))
                assert client.ids == [*map(str, range(20))]

    async def test_what_is_committed_late_is_not_passed_over(self, large: Bus) -> None:
        async with load(large.write(API)) as runner, load(large.write(API)) as other:
            async with AsyncSession(large.database.engine) as session, session.begin():
                await runner.publish(event("late"), session=session)
                async with streaming(runner) as client:
                    await runner.publish(event("early"))
                    await eventually(has(client, "early"))
                    seen = client.last_id
                await other.publish(event("between"))
            async with streaming(other, last_event_id=seen) as again:
                await eventually(has(again, "late", "between"))

    async def test_late_at_a_stream_that_is_open(self, large: Bus) -> None:
        async with load(large.write(API)) as runner, streaming(runner) as client:
            async with AsyncSession(large.database.engine) as session, session.begin():
                await runner.publish(event("late"), session=session)
                await runner.publish_many([event(str(number)) for number in range(5)])
                await eventually(has(client, "4"))
                mark = int(client.last_id.partition(".")[0])
                assert mark < client.events[0]["seq"]
            await eventually(has(client, "late"))
            assert sorted(client.ids) == sorted(["late", *map(str, range(5))])

    async def test_a_rollback_holds_the_mark_back_for_a_moment_only(self, large: Bus) -> None:
        async with load(large.write(API)) as runner, streaming(runner) as client:
            session = AsyncSession(large.database.engine)
            await runner.publish(event("never"), session=session)
            await runner.publish(event("1"))
            await eventually(has(client, "1"))
            await session.rollback()
            await session.close()

            async def moved_on() -> bool:
                await runner.publish(event(datetime.now(UTC).isoformat()))
                return int(client.last_id.partition(".")[0]) >= int(client.events[-1]["seq"])

            await eventually(moved_on)

    async def test_a_slow_client_is_served_from_the_store(self, lite: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(feed, "_ENTRIES", 20)
        async with load(lite.write(API)) as runner, streaming(runner) as client:
            client.reader._transport.pause_reading()  # type: ignore[attr-defined]
            data = b"x" * 100_000
            for number in range(100):
                await runner.publish(event(str(number), data=data, datacontenttype="text/plain"))
            async with streaming(runner) as quick:
                await runner.publish(event("quick"))
                await eventually(has(quick, "quick"))
            client.reader._transport.resume_reading()  # type: ignore[attr-defined]
            await eventually(has(client, "quick", *map(str, range(100))))

    async def test_retention_that_has_passed_is_told(self, lite: Bus) -> None:
        path = lite.write(API + "retention: {delivered: 1ms, dead: 1ms}\n")
        async with load(path) as runner:
            await runner.publish_many([event(str(number)) for number in range(3)])

            async def gone() -> bool:
                await runner._operations.prune(runner._plan.retention)
                return await runner._storage.records.seqs(None, 10) == []

            await eventually(gone)
            async with streaming(runner, last_event_id="1") as client:
                await eventually(lambda: client.others != [])
                assert client.others[0][0] == "truncated"
                assert client.others[0][1]["after"] == 1

    async def test_nothing_is_told_where_nothing_is_missing(self, lite: Bus) -> None:
        async with load(lite.write(API + "retention: {delivered: 1h, dead: 1h}\n")) as runner:
            await runner.publish_many([event(str(number)) for number in range(3)])
            async with streaming(runner, last_event_id="1") as client:
                await eventually(has(client, "1", "2"))
                assert client.others == []

    @pytest.mark.parametrize("mark", ["x", "-1", "1.x", "9" * 30, "1 2", "٣"])
    async def test_a_mark_that_is_none(self, lite: Bus, mark: str) -> None:
        async with load(lite.write(API)) as runner:
            parts = urlsplit(runner.addresses[0])
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write(f"GET /events/stream HTTP/1.1\r\nhost: localhost\r\nlast-event-id: {mark}\r\n\r\n".encode())
            assert b" 400 " in await reader.readline()
            writer.close()


class TestEnd:
    async def test_a_stop_ends_the_streams(self, bus: Bus) -> None:
        async with load(bus.write(API, grace="30s")) as runner, streaming(runner) as client:
            await runner.publish(event("1"))
            await eventually(has(client, "1"))
            begun = asyncio.get_running_loop().time()
            await runner.stop()
            assert asyncio.get_running_loop().time() - begun < 20  # less than the grace for requests
            await eventually(lambda: client.ended)

    async def test_who_leaves_is_forgotten(self, lite: Bus) -> None:
        async with load(lite.write(API)) as runner:

            def loops() -> int:
                return sum(each.get_name() == "event stream" for each in asyncio.all_tasks())

            async with streaming(runner), streaming(runner):
                await eventually(lambda: loops() == 1)
            await eventually(lambda: loops() == 0)
            async with streaming(runner) as client:
                await runner.publish(event("1"))
                await eventually(has(client, "1"))


class TestWhoSeesWhat:
    async def test_a_tenant_sees_its_own(self, lite: Bus) -> None:
        bound = "types: ['order.*'], attributes: {tenantid: shop}"
        tokens = [
            f"{{name: shop, secret: {SHOP}, scopes: [read], {bound}}}",
            f"{{name: ops, secret: {OPS}, scopes: [read]}}",
            f"{{name: publisher, secret: {OPS}p, scopes: [publish]}}",
        ]
        api = f"api: {{listen: '127.0.0.1:0', tokens: [{', '.join(tokens)}]}}\n"
        async with load(lite.write(api)) as runner:
            async with (
                streaming(runner, authorization=f"Bearer {SHOP}") as shop,
                streaming(runner, authorization=f"Bearer {OPS}") as ops,
                streaming(runner) as nobody,
                streaming(runner, authorization=f"Bearer {OPS}p") as publisher,
            ):
                assert (nobody.status, publisher.status) == (401, 403)
                own, other = {"tenantid": "shop"}, {"tenantid": "other"}
                await runner.publish(event("1", "order.a", extensions=own))
                await runner.publish(event("2", "order.a", extensions=other))
                await runner.publish(event("3", "invoice", extensions=own))
                await runner.publish(event("4", "order.b", extensions=own))
                await eventually(has(ops, "1", "2", "3", "4"))
                await eventually(has(shop, "4"))
                assert shop.ids == ["1", "4"]
            async with streaming(runner, authorization=f"Bearer {SHOP}", last_event_id="0") as again:
                await eventually(has(again, "4"))
                assert again.ids == ["1", "4"]
