"""The contract of reading records, and its values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from ...delivery import DeliveryState
from ...event import Event
from .registry import Configuration, Instance, Registered, StrategyHealth

__all__ = [
    "AttemptView",
    "DeliveryQuery",
    "DeliveryView",
    "EventQuery",
    "EventView",
    "Found",
    "FoundDeliveries",
    "InstanceView",
    "Records",
    "SubscriptionView",
    "TraceView",
]

_STUCK = timedelta(seconds=30)  # without progress; a step asks the database at most a few times, ten seconds each


@dataclass(frozen=True, slots=True)
class EventView:
    """One recorded event. `state` sums it up: scheduled, queued, settled or cancelled."""

    seq: int
    event: Event
    created_at: datetime
    state: str
    due_at: datetime | None = None
    deliveries: Mapping[str, int] = field(default_factory=dict)  # state of delivery -> how many


@dataclass(frozen=True, slots=True)
class DeliveryView:
    """One recorded delivery."""

    seq: int
    subscription: str
    event_source: str
    event_id: str
    event_type: str
    state: DeliveryState
    attempts: int
    due_at: datetime | None
    last_error: str | None
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class AttemptView:
    """One recorded attempt."""

    number: int
    at: datetime
    duration: timedelta
    status: int | None
    error: str | None
    excerpt: str | None


class SubscriptionView(NamedTuple):
    """One subscription, whether it is active, and its open and dead deliveries by state."""

    registered: Registered
    active: bool
    deliveries: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class InstanceView:
    """
    One process that reported; `alive` if it did so lately on the database's clock.

    What a process of an earlier version did not say is None.

    Attributes:
        progress_at: when the loops that claim last went round, or were asleep as they should be.
        lag: the longest its event loop was held up before the last heartbeat, since the one before.
        running: deliveries at the last heartbeat.
        sinks: their names.
        strategies: how each was at the last heartbeat.
        holder: what its lease tokens begin with, see `tokens.py`.
        configuration: the file that it has in use.
    """

    instance: Instance
    started_at: datetime
    heartbeat_at: datetime
    alive: bool
    progress_at: datetime | None = None
    lag: timedelta | None = None
    running: int | None = None
    sinks: Sequence[str] | None = None
    strategies: Sequence[StrategyHealth] | None = None
    holder: int | None = None
    configuration: Configuration | None = None

    @property
    def state(self) -> str:
        """`working`, `stuck` (it reports, but claims nothing any more) or `silent`."""
        if not self.alive:
            return "silent"
        stuck = self.progress_at is not None and self.heartbeat_at - self.progress_at >= _STUCK
        return "stuck" if stuck else "working"


@dataclass(frozen=True, slots=True)
class TraceView:
    """
    The events that share a correlation, and their deliveries.

    Attributes:
        correlation: what they share: a `correlationid`, which is the id of the first one unless another was given.
        events: without data, in the order of their seqs.
        deliveries: by the seq of the event, in the order of their subscriptions.
        complete: whether that is all there is on record.
    """

    correlation: str
    events: Sequence[EventView]
    deliveries: Mapping[int, Sequence[DeliveryView]]
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EventQuery:
    """
    Selection of events: all conditions must hold; None is no condition.

    `type`, `source` and `subject` are patterns (`*`).

    With `gaps`, each a first and a last seq, what is in one of them counts as being after `after_seq`.
    Without `data` their data is left out, and not read.
    """

    type: str | None = None
    source: str | None = None
    subject: str | None = None
    id: str | None = None
    state: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    after_seq: int | None = None
    gaps: Sequence[tuple[int, int]] = ()
    before_seq: int | None = None
    limit: int = 100
    newest_first: bool = True
    data: bool = True


class Found(NamedTuple):
    """
    The events that a search has found.

    Attributes:
        reached: the seq up to which these are all, where it ended before it had looked at everything and before it had
            as many as were wanted: it goes on with `before_seq`, or `after_seq` where the oldest come first.
    """

    events: Sequence[EventView]
    reached: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryQuery:
    """
    Selection of deliveries: all conditions must hold; None is no condition.

    `type` is a pattern (`*`) for that of the event; `since` and `until` bound the last change. `before` is a seq and a
    subscription, of the last delivery of the page before, where the newest event is first. With `soonest_first`
    only those that are due some time, by that.
    """

    state: DeliveryState | None = None
    subscription: str | None = None
    seq: int | None = None
    type: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    before: tuple[int, str] | None = None
    limit: int | None = 100
    soonest_first: bool = False


class FoundDeliveries(NamedTuple):
    """
    The deliveries that a search has found.

    Attributes:
        reached: what to go on from, as `before` of the query, where it ended before it had looked at everything and
            before it had as many as were wanted.
    """

    deliveries: Sequence[DeliveryView]
    reached: tuple[int, str] | None


class Records(Protocol):
    """Read records. Not on the hot path."""

    def events(self, query: EventQuery) -> AsyncIterator[EventView]:
        """Yield the events `query` describes, read in pages."""

    async def search(self, query: EventQuery, patience: timedelta) -> Found:
        """
        Return the events `query` describes, those that are found within `patience`.

        A query without an index reads all events, by statements that each take a fraction of a second.
        """

    async def seqs(self, end: int | None, limit: int) -> Sequence[int]:
        """Return the seqs of the last `limit` events, up to `end`."""

    async def writers(self) -> Collection[str]:
        """
        Return an id for each transaction that may be recording events.

        A seq that is missing, of those given out by now, appears by the time these have ended, or never.
        """

    async def event(self, reference: str) -> EventView:
        """Return one event by its seq (digits) or its id. Raise `NotFound`; name the sources if an id has several."""

    async def trace(self, reference: str, limit: int) -> TraceView:
        """
        Return the events that led to an event, or that it led to, if they carry the same correlation.

        Args:
            reference: the event, by its seq or its id, as for `event()`.
            limit: events, and deliveries, that are read at most.
        """

    async def search_deliveries(self, query: DeliveryQuery, patience: timedelta) -> FoundDeliveries:
        """Return the deliveries `query` describes, newest event first, those that are found within `patience`."""

    def deliveries(self, query: DeliveryQuery) -> AsyncIterator[DeliveryView]:
        """Yield the deliveries `query` describes, newest event first unless it says otherwise, read in pages."""

    async def delivery(self, seq: int, subscription: str) -> tuple[DeliveryView, Sequence[AttemptView]]:
        """Return one delivery and its attempts in order. Raise `NotFound`."""

    async def attempts(self, seq: int, names: Sequence[str]) -> Mapping[str, Sequence[AttemptView]]:
        """Return the attempts to deliver an event to each of these subscriptions, in order."""

    async def registered(self) -> Sequence[SubscriptionView]:
        """
        Return every subscription ever known.

        Cancelled deliveries are not counted: no index finds them, and this is asked every few seconds.
        """

    async def subscription(self, name: str) -> SubscriptionView:
        """Return one subscription. Raise `NotFound`, with the existing names."""

    async def instances(self) -> Sequence[InstanceView]:
        """Return the processes that reported, the latest first."""
