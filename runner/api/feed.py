"""The feed: what is recorded, read once for all streams of a process."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING

import orjson

from ..operations.cursor import Cursor
from ..operations.following import Follower
from ..operations.shapes import event_json
from ..service.background import Background
from ..service.backoff import doubling
from ..service.clock import utcnow, wait_for
from ..storage.contract.records import EventQuery

if TYPE_CHECKING:
    from ..event import Event
    from ..storage.contract.records import EventView, Records

__all__ = ["Entry", "Feed", "Mark", "Reader"]

_SHORTEST, _LONGEST = 0.05, 0.5  # seconds between two looks: after one that found something, and while none does
_ENTRIES = 1000  # that are kept for readers that lag behind, and at most so many
_BYTES = 4 * 1024 * 1024  # of them


@dataclass(frozen=True, slots=True)
class Mark:
    """
    A place from which any instance can go on: everything up to `seq` has been given, and ever will be.

    Attributes:
        at: when the event of that seq was recorded, to the second; None where it is unknown.
    """

    seq: int
    at: int | None = None

    def __str__(self) -> str:
        return f"{self.seq}" if self.at is None else f"{self.seq}.{self.at}"

    @classmethod
    def parse(cls, text: str) -> Mark:
        """Return the mark that `str()` wrote. Raise `ValueError`."""
        seq, _, at = text.strip().partition(".")
        for part in (seq, at or "0"):
            if not (part.isascii() and part.isdigit() and len(part) < 19):
                raise ValueError(text)
        return cls(int(seq), int(at) if at else None)


@dataclass(frozen=True, slots=True)
class Entry:
    """One event on its way to the streams, and the mark behind it."""

    event: Event
    mark: Mark
    text: bytes  # as the field `data` of a server-sent event


class Reader:
    """Where one stream is in the feed; `woken` is set when there may be more, or when it is to end."""

    __slots__ = ("position", "woken")

    def __init__(self, position: int) -> None:
        self.position = position
        self.woken = asyncio.Event()


class Feed:
    """
    Follow the events while there are readers, and keep the latest in memory.

    A reader that lags behind what is kept reads from the store instead: none holds back another, and each takes a
    bounded amount of memory.
    """

    def __init__(self, records: Records, draining: asyncio.Event) -> None:
        """Read from `records`, until `draining` is set, which ends all streams."""
        self._records = records
        self._draining = draining
        self._follower: Follower | None = None
        self._entries: deque[Entry] = deque()
        self._size = 0  # bytes of them
        self._next = 0  # number of the entry that comes next
        self._readers: set[Reader] = set()
        self._woken = asyncio.Event()
        self._changing = asyncio.Lock()
        self._waits = doubling(_SHORTEST, _LONGEST)
        self._loop = Background("event stream", self._step, nudge=self._woken.set)
        self.mark = Mark(0)

    @property
    def ended(self) -> bool:
        """Whether the streams are to end."""
        return self._draining.is_set()

    @contextlib.asynccontextmanager
    async def reader(self) -> AsyncIterator[Reader]:
        """Give a reader that begins behind the last event there is."""
        async with self._changing:
            if self._follower is None:
                self._follower = await Follower.beginning(self._records)
                self.mark = Mark(self._follower.safe, int(utcnow().timestamp()))
                self._loop.start()
            reader = Reader(self._next)
            self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)
            if not self._readers:
                await self._rest()

    def take(self, reader: Reader, most: int = 100) -> list[Entry] | None:
        """Return what comes next for a reader, and move it on; None if that is not kept any more."""
        first = self._next - len(self._entries)
        if reader.position < first:
            return None
        start = reader.position - first
        entries = list(islice(self._entries, start, start + most))
        reader.position += len(entries)
        return entries

    async def history(self, reader: Reader, after: Mark) -> AsyncGenerator[Entry, None]:
        """
        Yield from the store what was recorded after a mark; the reader goes on behind it.

        What is being written there is looked for by the feed from then on, so that nothing is passed over. Some events
        may come twice.
        """
        assert self._follower is not None  # a reader reads
        reader.position = self._next
        end = self._follower.newest
        cursor, now = Cursor(after.seq), monotonic()
        query = EventQuery(after_seq=after.seq, newest_first=False, limit=sys.maxsize)
        async with contextlib.aclosing(self._records.events(query)) as views:  # type: ignore[type-var]  # it is a generator
            async for view in views:
                if view.seq > end:
                    break
                cursor.fresh(view.seq, now)
                if view.seq % _ENTRIES == 0:
                    cursor.forget_gaps(now)  # no more gaps than are worth it
                yield _entry(view, cursor.safe)
        if self._follower is not None:
            gaps = cursor.gaps
            if cursor.newest < end:
                gaps.append((cursor.newest + 1, end))
            self._follower.expect(gaps)

    async def _step(self) -> None:
        assert self._follower is not None
        self._woken.clear()
        if self.ended:
            self._tell()
            await asyncio.sleep(0.1)
            return
        async for view in self._follower.look():
            self._add(_entry(view, self._follower.safe))
            self._waits = doubling(_SHORTEST, _LONGEST)
        self.mark = Mark(self._follower.safe, self.mark.at)
        await wait_for(self._woken, timedelta(seconds=next(self._waits)))

    async def _rest(self) -> None:
        """Stop following, unless a reader came meanwhile."""
        async with self._changing:
            if not self._readers:
                await self._loop.stop()
                self._follower = None
                self._next += 1  # an item that is not kept is not taken for the next one
                self._entries.clear()
                self._size = 0

    def _add(self, entry: Entry) -> None:
        self._entries.append(entry)
        self._next += 1
        self._size += len(entry.text)
        while (self._size > _BYTES and len(self._entries) > 1) or len(self._entries) > _ENTRIES:
            self._size -= len(self._entries.popleft().text)
        self.mark = entry.mark
        self._tell()

    def _tell(self) -> None:
        for reader in self._readers:
            reader.woken.set()


def _entry(view: EventView, safe: int) -> Entry:
    mark = Mark(safe, int(view.created_at.timestamp()))
    return Entry(view.event, mark, b"data: " + orjson.dumps(event_json(view), option=orjson.OPT_UTC_Z))
