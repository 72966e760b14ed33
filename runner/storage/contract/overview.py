"""The contract of `runner status` and `runner why`, and its values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from ...delivery import DeliveryState
from ...event import Event
from .registry import Registered

__all__ = ["MOST", "RECENT", "SAMPLE", "Hold", "Load", "Overview", "Queue", "Recent", "Turned"]

MOST = 10_000
"""The highest count of one kind; `MOST + 1` stands for more."""

SAMPLE = 5_000
"""How many of the last events and deliveries a rate is taken from."""

RECENT = timedelta(minutes=1)
"""How far back a rate looks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """
    The events that are not dispatched yet, and how many come in.

    Attributes:
        now: by the clock of the store.
        queued, scheduled: no more than `MOST + 1`.
        oldest_at: when the first of the queued ones was recorded.
        next_at: when the first of the scheduled ones is due.
        recorded: events of the last minute, no more than `SAMPLE`.
        recorded_since: when the first of them was recorded.
    """

    now: datetime
    queued: int = 0
    oldest_at: datetime | None = None
    scheduled: int = 0
    next_at: datetime | None = None
    recorded: int = 0
    recorded_since: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """
    The deliveries of one subscription that are not over.

    Attributes:
        pending, leased: together no more than `MOST + 1`, those that are due first.
        dead: no more than `MOST + 1`.
        expired: how many of these were not delivered before their event expired.
        oldest_at: when the oldest of their events was recorded.
        failing_from: the first attempt of the oldest of them that has failed.
    """

    pending: int = 0
    leased: int = 0
    dead: int = 0
    expired: int = 0
    oldest_at: datetime | None = None
    failing_from: datetime | None = None

    @property
    def open(self) -> int:
        """Number of deliveries that wait or run."""
        return self.pending + self.leased


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    """
    The results of the last deliveries of one subscription, within the last `SAMPLE` of all.

    Attributes:
        delivered: in the time since `since`, a minute at most.
    """

    delivered: int = 0
    since: datetime | None = None
    last_success: datetime | None = None
    last_failure: datetime | None = None
    last_error: str | None = None


@dataclass(frozen=True, slots=True)
class Turned:
    """
    The place of a delivery in the line of its key.

    Attributes:
        first: the event at the head of the line, which may be its own.
        earlier: an earlier event that waits to be dispatched, and may have to go first.
    """

    key: str
    first: int
    earlier: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """
    All that the store knows of why one event is not delivered to one subscription.

    Attributes:
        version: of the set of subscriptions.
        created_at, updated_at: of the subscription.
        scheduled_at: when the event is due, before it is dispatched.
        queued: whether it waits to be dispatched; `dispatch_until` and `dispatch_token` are the lease of that.
        state: of the delivery; None where none is recorded.
        paced_until: when the rate of the subscription is as if never used.
    """

    now: datetime
    version: int
    registered: Registered
    active: bool
    created_at: datetime
    updated_at: datetime
    scheduled_at: datetime | None = None
    queued: bool = False
    dispatch_until: datetime | None = None
    dispatch_token: int | None = None
    state: DeliveryState | None = None
    attempts: int = 0
    due_at: datetime | None = None
    token: int | None = None
    last_error: str | None = None
    changed_at: datetime | None = None
    turn: Turned | None = None
    paced_until: datetime | None = None


class Overview(Protocol):
    """The seam of `runner status` and `runner why`. Not on the hot path; no cost grows with what is recorded."""

    async def queue(self) -> Queue:
        """Return the state of the queue of events."""

    async def undispatched(self, limit: int) -> Sequence[Event]:
        """Return the first `limit` events that wait to be dispatched, without their data."""

    async def recorded(self, limit: int) -> Sequence[Event]:
        """Return the last `limit` events, of those recorded within `RECENT`, without their data."""

    async def subscribed(self) -> Sequence[tuple[Registered, bool]]:
        """Return every subscription ever known, and whether it is active."""

    async def loads(self) -> Mapping[int, Load]:
        """Return, by the id of the subscription, the deliveries that are not over."""

    async def recent(self) -> Mapping[int, Recent]:
        """Return, by the id of the subscription, the results of its last deliveries."""

    async def hold(self, seq: int, subscription: str) -> Hold:
        """Return what holds an event for a subscription. Raise `NotFound` for an unknown name."""

    async def holds(self, seq: int, names: Sequence[str]) -> Mapping[str, Hold]:
        """Return what holds an event for each of these subscriptions; those that are not known are left out."""
