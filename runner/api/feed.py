"""The feed: recorded events, read once for all streams of a process."""

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
_ENTRIES = 1000  # entries that are kept for readers that lag behind
_BYTES = 4 * 1024 * 1024  # of the text of these entries


@dataclass(frozen=True, slots=True)
class Mark:
    """
    A position from which any instance can continue: all events up to `seq` have been given, and no other can appear.

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
    """The position of one stream; `woken` is set when there may be more entries, or when the stream must end."""

    __slots__ = ("position", "woken")

    def __init__(self, position: int) -> None:
        self.position = position
        self.woken = asyncio.Event()


class Feed:
    """
    Follow the events while there are readers, and keep the latest in memory.

    A reader that lags behind the kept entries reads from the store instead, so no reader delays another, and each takes
    a bounded amount of memory.
    """

    def __init__(self, records: Records, draining: asyncio.Event) -> None:
        """Read from `records`, until `draining` is set, which ends all streams."""
        self._records = records
        self._draining = draining
        self._follower: Follower | None = None
        self._entries: deque[Entry] = deque()
        self._size = 0  # bytes of the text of the entries
        self._next = 0  # number of the entry that comes next
        self._readers: set[Reader] = set()
        self._woken = asyncio.Event()
        self._changing = asyncio.Lock()
        self._waits = doubling(_SHORTEST, _LONGEST)
        self._loop = Background("event stream", self._step, nudge=self._woken.set)
        self.mark = Mark(0)

    @property
    def ended(self) -> bool:
        """Whether the streams must end."""
        return self._draining.is_set()

    @contextlib.asynccontextmanager
    async def reader(self) -> AsyncIterator[Reader]:
        """Yield a reader that begins after the newest event."""
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
        """Return the next entries for a reader, and advance it; None if they are no longer kept."""
        first = self._next - len(self._entries)
        if reader.position < first:
            return None
        start = reader.position - first
        entries = list(islice(self._entries, start, start + most))
        reader.position += len(entries)
        return entries

    async def history(self, reader: Reader, after: Mark) -> AsyncGenerator[Entry, None]:
        """
        Yield from the store the events recorded after a mark; the reader continues behind them.

        The feed watches the gaps in that range from then on, so that no event is missed. Some events may come twice.
        """
        assert self._follower is not None  # there is a reader, so the feed follows
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
                    cursor.forget_gaps(now)  # keeps the number of gaps bounded
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
            self._wake_readers()
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
                self._next += 1  # so that a reader does not take a later entry for one that was dropped
                self._entries.clear()
                self._size = 0

    def _add(self, entry: Entry) -> None:
        self._entries.append(entry)
        self._next += 1
        self._size += len(entry.text)
        while (self._size > _BYTES and len(self._entries) > 1) or len(self._entries) > _ENTRIES:
            self._size -= len(self._entries.popleft().text)
        self.mark = entry.mark
        self._wake_readers()

    def _wake_readers(self) -> None:
        for reader in self._readers:
            reader.woken.set()


def _entry(view: EventView, safe: int) -> Entry:
    mark = Mark(safe, int(view.created_at.timestamp()))
    return Entry(view.event, mark, b"data: " + orjson.dumps(event_json(view), option=orjson.OPT_UTC_Z))
