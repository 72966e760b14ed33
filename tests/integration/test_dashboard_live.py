"""Live pages: what changed comes by itself, is made once for all who look, and ends with the session."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import orjson
import pytest

from runner import Event, Runner, load
from runner.api.access import Anybody
from runner.dashboard import live
from runner.dashboard.glances import Glances
from runner.dashboard.guard import Visitor
from runner.dashboard.live import Topic
from runner.dashboard.pages import Urls
from runner.dashboard.site import PAGES
from runner.dashboard.view import View
from tests.support.eventually import PATIENCE

from .buses import Bus
from .test_dashboard import ADMIN, GUARDED, HOSTILE, OPEN, READ, Browser

NOBODY = Visitor(Anybody(), frozenset(("read",)), "", False)


class Stream:
    """The events of one stream, as they come."""

    def __init__(self, reader: asyncio.StreamReader, status: int) -> None:
        self._reader = reader
        self.status = status

    async def __anext__(self) -> tuple[str, dict[str, Any]]:
        """Return the name of the next event and its data; a stream that has ended raises `StopAsyncIteration`."""
        name = ""
        async with asyncio.timeout(PATIENCE):
            while line := await self._reader.readline():
                text = line.decode().strip()
                if text.startswith("event: "):
                    name = text[7:]
                elif text.startswith("data: "):
                    return name, orjson.loads(text[6:])
        raise StopAsyncIteration

    async def parts(self, wanted: str) -> str:
        """Return the next HTML of a part."""
        while True:
            name, parts = await self.__anext__()
            assert name == ""
            if wanted in parts:
                return str(parts[wanted])


@contextlib.asynccontextmanager
async def following(browser: Browser, path: str) -> AsyncIterator[Stream]:
    place = urlsplit(browser.runner.addresses[0])
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    head = f"GET {path} HTTP/1.1\r\nhost: {place.netloc}\r\ncookie: {cookies}\r\n\r\n"
    writer.write(head.encode())
    status = int((await reader.readline()).split()[1])
    while (await reader.readline()).strip():
        pass
    try:
        yield Stream(reader, status)
    finally:
        writer.close()


@pytest.fixture
def lite(tables_file: str, tmp_path: Path) -> Bus:
    return Bus(tmp_path, tables_file)


@pytest.fixture
async def runner(lite: Bus) -> AsyncIterator[Runner]:
    async with load(lite.write(OPEN)) as runner:
        yield runner


async def test_a_new_event_comes_by_itself_and_is_no_markup(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_LONGEST", 1.0)  # else the second look is far away where the first one was slow
    browser = Browser(runner)
    assert b'data-live="/dashboard/live/events?type=%2A"' in (await browser("/dashboard/events?type=%2A")).body
    async with following(browser, "/dashboard/live/events?type=%2A") as stream:
        assert "No event fits" in await stream.parts("events")
        await runner.publish(Event.new(HOSTILE, source="/s", id="new"))
        html = await stream.parts("events")
        assert "<bdi>new</bdi>" in html
        assert "<script>" not in html
        assert "<img" not in html


async def test_the_overview_is_looked_at_once_for_all(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_INTERVAL", 60.0)  # no second look meanwhile
    browser = Browser(runner)
    looks = 0
    look = Glances.report

    async def counting(glances: Glances) -> Any:
        nonlocal looks
        looks += 1
        return await look(glances)

    async with contextlib.AsyncExitStack() as stack:
        with patch.object(Glances, "report", counting):
            streams = [await stack.enter_async_context(following(browser, "/dashboard/live/")) for _ in range(50)]
            first = await asyncio.gather(*[each.parts("verdict") for each in streams])
            assert len(set(first)) == 1
            assert looks == 1


async def test_a_change_is_written_down_once_for_all_who_are_shown_it(runner: Runner) -> None:
    assert runner._door is not None
    surface = runner._door._surface
    assert surface is not None
    view = View(surface=surface, glances=Glances(surface.storage), visitor=NOBODY, url=Urls(""), path={}, streamed=True)
    [page] = [each for each in PAGES if each.path == "/"]
    topic = Topic(page, view, asyncio.Event(), lambda: 1)
    await topic._look()
    assert orjson.loads(topic.since(0).removeprefix(b"data: ")).keys() >= {"verdict", "figures"}
    assert topic.since(0) is topic.since(0)
    assert topic.since(topic.version) == b""
    before = topic.since(0)
    await runner.publish(Event.new("a", source="/s"))
    topic._parts.clear()
    await topic._look()
    assert topic.since(0) is not before


async def test_it_ends_with_the_session(lite: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_HEARTBEAT", timedelta(seconds=1))  # a session is looked at so often
    async with load(lite.write(GUARDED)) as runner:
        browser = Browser(runner)
        async with following(browser, "/dashboard/live/") as stream:
            assert stream.status == 401
        await browser.log_in(READ)
        async with following(browser, "/dashboard/live/") as stream:
            assert stream.status == 200
            await stream.parts("verdict")
            tokens = runner._door._surface.access  # type: ignore[union-attr]
            with patch.object(type(tokens), "live", lambda _: []):
                await runner.publish(Event.new("a", source="/s"))
                while (said := await stream.__anext__())[0] != "over":
                    pass
            assert said == ("over", {})


async def test_what_is_sent_is_nobodys_own(lite: Bus) -> None:
    """Two who may act share a page; neither gets the secret of the other."""
    async with load(lite.write(GUARDED)) as runner:
        browser = Browser(runner)
        await browser.log_in(ADMIN)
        csrf = await browser.csrf()
        async with following(browser, "/dashboard/live/subscriptions") as stream:
            assert csrf not in await stream.parts("subscriptions")


async def test_a_stop_ends_it(lite: Bus) -> None:
    runner = load(lite.write(OPEN))
    async with runner:
        stack = contextlib.AsyncExitStack()
        stream = await stack.enter_async_context(following(Browser(runner), "/dashboard/live/"))
        await stream.parts("verdict")
    with contextlib.suppress(StopAsyncIteration):
        while True:
            await stream.__anext__()
    await stack.aclose()
