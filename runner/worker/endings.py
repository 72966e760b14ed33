"""The claimed events that must not be delivered any more, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from time import monotonic
from typing import Protocol, TypeVar

from ..delivery import Rejected
from ..event import EXPIRY, NO_EXTENSIONS, Event
from ..tracing.causation import hops_of

__all__ = ["Expired", "Perishable", "endings", "expired", "set_deadlines", "with_extensions"]


class Perishable(Protocol):
    """Something claimed that may expire: a `Work` or a `ClaimedDelivery`."""

    event: Event
    deadline: float


class Work(Perishable, Protocol):
    """A claimed event."""

    position: int


W = TypeVar("W", bound=Perishable)


class Expired(Rejected):
    """The outcome of a delivery whose event expired before it began."""


def expired(expires_at: datetime | None) -> str:
    """Return the reason for which a delivery is dead that has not begun in time."""
    when = "" if expires_at is None else f" at {expires_at.isoformat().replace('+00:00', 'Z')}"
    return f"expired{when}, undelivered"


def with_extensions(works: Sequence[W]) -> Sequence[W]:
    """Return the works whose events carry extensions: only those may expire, or have hops."""
    return [work for work in works if work.event.extensions is not NO_EXTENSIONS]


def set_deadlines(works: Iterable[Perishable], now: datetime | None, sent: float) -> bool:
    """
    Set the deadlines of works whose events expire; return whether there are any.

    Args:
        now: the time on the clock of the store when it leased them; None for works that never expire.
        sent: when it was asked to, on the monotonic clock.
    """
    found = False
    if now is None:
        return found
    for work in works:
        if EXPIRY in work.event.extensions and (expires_at := work.event.expires_at) is not None:
            work.deadline = sent + (expires_at - now).total_seconds()
            found = True
    return found


def endings(works: Iterable[Work], max_hops: int) -> Mapping[int, str]:
    """Return the reasons for which events end undelivered, by their positions."""
    moment = monotonic()
    reasons = {}
    for work in works:
        if work.deadline <= moment:
            reasons[work.position] = expired(work.event.expires_at)
        elif (hops := hops_of(work.event)) > max_hops:
            reasons[work.position] = (
                f"{hops} events led to this one, each published by a handler of the one before, and worker.max_hops is"
                f" {max_hops}: handlers that go round in a circle"
            )
    return reasons
