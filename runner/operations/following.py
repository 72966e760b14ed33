"""Follow the events as they are recorded, without a gap, although their numbers become visible out of order."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from ..storage.contract.records import EventQuery
from .cursor import Cursor

if TYPE_CHECKING:
    from ..storage.contract.records import EventView, Records

__all__ = ["Follower"]

_BEFORE = 1000  # events before the first one that is given among which gaps are looked for


class Follower:
    """Give every event once, as soon as it can be seen."""

    def __init__(self, records: Records, cursor: Cursor) -> None:
        """Begin where `cursor` is."""
        self._records = records
        self._cursor = cursor
        self._given_up = 0

    @classmethod
    async def beginning(cls, records: Records, since: datetime | None = None) -> Follower:
        """
        Return a follower that begins after the newest event, or before the first one since then.

        It watches the gaps before that position, because events may still be written there.
        """
        end = None
        if since is not None:
            async for view in records.events(EventQuery(since=since, newest_first=False, limit=1)):
                end = view.seq - 1
        seqs = await records.seqs(end, _BEFORE)
        cursor = Cursor(0 if len(seqs) < _BEFORE else min(seqs) - 1)
        for seq in sorted(seqs):
            cursor.fresh(seq, 0.0)
        return cls(records, cursor)

    @property
    def newest(self) -> int:
        """The largest seq that was seen."""
        return self._cursor.newest

    @property
    def safe(self) -> int:
        """The seq before the first gap that may still be filled: up to it every event has been given."""
        return self._cursor.safe

    def given_up(self) -> int:
        """Return how many gaps were given up since the last call, being too many; events in them may be missed."""
        number, self._given_up = self._given_up, 0
        return number

    def expect(self, gaps: Iterable[tuple[int, int]]) -> None:
        """Look at these gaps, too, each a first and a last seq, until no transaction is left that may fill them."""
        self._cursor.expect(gaps, time.monotonic())

    async def look(self) -> AsyncIterator[EventView]:
        """Yield the visible events that have not been given yet."""
        if self._cursor.gaps:
            self._cursor.look(await self._records.writers())
        now = time.monotonic()
        query = EventQuery(after_seq=self._cursor.newest, gaps=self._cursor.gaps, newest_first=False, limit=sys.maxsize)
        async for view in self._records.events(query):
            if self._cursor.fresh(view.seq, now):
                yield view
        self._given_up += self._cursor.forget_gaps(now)
