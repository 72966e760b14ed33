"""The spans of dispatches: begun with the claim of an event, ended with its settlement or its lease."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from time import monotonic
from typing import Any, NamedTuple, Protocol

from ..event import Event

__all__ = ["Dispatches", "Spanning"]


class Spanning(Protocol):
    """A span, as far as it is used here."""

    def end(self) -> None:
        """End the span."""


class _Open(NamedTuple):
    key: tuple[str, str]
    span: Any
    until: float  # when its lease ends, on the monotonic clock


class Dispatches:
    """The dispatches of this process that are under way, by the number and by the identity of their events."""

    def __init__(self, begin: Callable[[Event], Spanning]) -> None:
        """Args: begin starts the span of one event's dispatch."""
        self._begin = begin
        self._open: dict[int, _Open] = {}  # by seq, the oldest first
        self._spans: dict[tuple[str, str], Any] = {}

    def of(self, event: Event) -> Any:
        """Return the span of the event's dispatch; None if none is under way."""
        return self._spans.get((event.source, event.id))

    def around(self, store: Any) -> Any:
        """Return a store that works as `store` does, and reports claims and settlements."""
        return _Told(store, self)

    def claimed(self, works: Sequence[Any], lease: timedelta) -> None:
        """Begin the spans of claimed events, and end those whose lease is over, which are not settled here."""
        now = monotonic()
        while self._open and (seq := next(iter(self._open))) is not None and self._open[seq].until <= now:
            self.settled([seq])
        for work in works:
            key = (work.event.source, work.event.id)
            self.settled([work.seq])
            span = self._spans[key] = self._begin(work.event)
            self._open[work.seq] = _Open(key, span, now + lease.total_seconds())

    def settled(self, seqs: Sequence[int]) -> None:
        """End the spans of settled events."""
        for seq in seqs:
            ended = self._open.pop(seq, None)
            if ended is not None:
                ended.span.end()
                if self._spans.get(ended.key) is ended.span:
                    del self._spans[ended.key]


class _Told:
    """A store that reports claims and settlements, and delegates everything else."""

    def __init__(self, store: Any, dispatches: Dispatches) -> None:
        self._store = store
        self._dispatches = dispatches

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def claim(self, limit: int, lease: timedelta, *options: Any, **named: Any) -> Any:
        claim = await self._store.claim(limit, lease, *options, **named)
        self._dispatches.claimed(claim.works, lease)
        return claim

    async def append_leased(self, publications: Sequence[Any], lease: timedelta) -> Any:
        receipts, claim = await self._store.append_leased(publications, lease)
        if claim is not None:
            self._dispatches.claimed(claim.works, lease)
        return receipts, claim

    async def settle(self, settled: Any) -> Any:
        count = await self._store.settle(settled)
        self._dispatches.settled([work.seq for work in settled.works])
        return count
