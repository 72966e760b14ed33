"""Live pages: the parts of a page that changed, as server-sent events, made once for all who look at it."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

import orjson

from ..api.problems import Problem
from ..errors import RunnerError
from ..service.background import Background, spawn
from ..service.clock import utcnow, wait_for
from .pages import rendered

if TYPE_CHECKING:
    from .view import Page, View

__all__ = ["Live", "Topic"]

_INTERVAL = 2.0  # seconds between two looks
_LONGEST = 60.0
_SHARE = 0.02  # of the time that all looks together may take
_HEARTBEAT = timedelta(seconds=15)
_MOST = 500  # streams of one process
_TIME = re.compile(r"(<time [^>]*>)[^<]*")


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a page: when it changed, and its HTML without and with the words of relative times."""

    version: int
    stable: str
    html: str


class Topic:
    """
    One page as it is shown to everybody who looks at the same.

    It is looked at every two seconds, and more seldom where that took long or there are many topics, so that all of
    them together take a fiftieth of the time.
    """

    def __init__(self, page: Page, view: View, draining: asyncio.Event, share: Callable[[], int]) -> None:
        """Args: share returns how many topics there are."""
        self._page = page
        self._view = view
        self._draining = draining
        self._share = share
        self._parts: dict[str, _Part] = {}
        self._messages: dict[int, bytes] = {}  # for those who have seen a version
        self._pause = 0.0
        self.version = 0
        self.news = asyncio.Event()
        self.readers = 0
        self.loop = Background("live page", self._step, nudge=self._wake_readers)

    def since(self, version: int) -> bytes:
        """Return the parts that changed after a version as a message, made once for all; empty where none did."""
        if version >= self.version:
            return b""
        if version not in self._messages:
            changed = {name: part.html for name, part in self._parts.items() if part.version > version}
            self._messages[version] = b"data: " + orjson.dumps(changed) + b"\n\n"
        return self._messages[version]

    async def _step(self) -> None:
        await wait_for(self._draining, timedelta(seconds=self._pause))
        if self._draining.is_set():
            self._wake_readers()
            await asyncio.sleep(0.1)
            return
        began = monotonic()
        with contextlib.suppress(RunnerError, Problem):  # it stays as it was
            await self._look()
        self._pause = min(max(_INTERVAL, (monotonic() - began) / _SHARE * self._share()), _LONGEST)

    async def _look(self) -> None:
        view = replace(self._view, now=utcnow())
        context = view.context() | dict(await self._page.look(view))
        changed = False
        for name, template in self._page.parts.items():
            html = rendered(template, **context).strip()
            stable = _TIME.sub(r"\1", html)
            before = self._parts.get(name)
            if html and (before is None or before.stable != stable):
                self._parts[name] = _Part(self.version + 1, stable, html)
                changed = True
        if changed:
            self.version += 1
            self._messages.clear()
            self._wake_readers()

    def _wake_readers(self) -> None:
        self.news.set()
        self.news = asyncio.Event()


class Live:
    """The topics of a process, each as long as it has viewers."""

    def __init__(self, draining: asyncio.Event) -> None:
        """All streams end when `draining` is set."""
        self._draining = draining
        self._topics: dict[object, Topic] = {}
        self._streams = 0

    async def stream(self, key: object, page: Page, view: View, admitted: Callable[[], bool]) -> AsyncIterator[bytes]:
        """
        Yield what changes on a page, until the process stops or the visitor is not admitted any more.

        Args:
            key: equal for visitors who are shown the same.
            admitted: is asked before each answer.
        """
        with self._topic(key, page, view) as topic:
            yield b"retry: 2000\n\n"
            version = 0
            while not self._draining.is_set():
                if not admitted():
                    yield b"event: over\ndata: {}\n\n"
                    return
                news, changed = topic.news, topic.since(version)
                version = topic.version
                if changed:
                    yield changed
                else:
                    await wait_for(news, _HEARTBEAT)
                    if not news.is_set():
                        yield b":\n\n"

    def check_room(self) -> None:
        """Raise a `Problem` of status 503 where there are too many streams, or the process stops."""
        if self._draining.is_set() or self._streams >= _MOST:
            raise Problem(503, "too-many-streams", "too many live pages are open", headers={"retry-after": "5"})

    @contextlib.contextmanager
    def _topic(self, key: object, page: Page, view: View) -> Iterator[Topic]:
        topic = self._topics.get(key)
        if topic is None:
            topic = self._topics[key] = Topic(page, view, self._draining, lambda: len(self._topics))
            topic.loop.start()
        topic.readers += 1
        self._streams += 1
        try:
            yield topic
        finally:
            topic.readers -= 1
            self._streams -= 1
            if not topic.readers:
                del self._topics[key]
                spawn(topic.loop.stop(), "live page ends")
