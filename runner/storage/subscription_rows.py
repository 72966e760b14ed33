"""Subscriptions as they are recorded, read from a row of any driver."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import structlog

from ..errors import StorageError
from ..policies.breaker import Trip
from ..subscription import Matcher, Subscription
from .contract.registry import Registered

__all__ = ["SubscriptionRow", "compilable", "readable", "registered", "spec_in"]

log = structlog.get_logger(__name__)

R = TypeVar("R", bound=Any)


class SubscriptionRow(NamedTuple):
    """The columns of `subscriptions.sql` after the version of the set; `now` is the store's."""

    now: datetime
    id: int
    name: str
    spec: Any
    origin: str
    paused: bool
    breaker_until: datetime | None
    breaker_trips: int
    paused_at: datetime | None
    paused_by: str | None


def spec_in(text: str) -> Any:
    """Return what a column of JSON holds; None where it holds none, which is told of by the subscription's name."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def registered(row: Any) -> Registered:
    """Return the subscription in a row with the columns of `SubscriptionRow`."""
    subscription = Subscription.from_json(row.name, row.spec)
    trip = None
    if row.breaker_until is not None:
        left, policy = row.breaker_until - row.now, subscription.breaker
        # Further ahead than it can be, it is of a clock that has been set back since.
        longest = left if policy is None else policy.pause_after(row.breaker_trips)
        trip = Trip(row.breaker_trips, min(left, longest))
    return Registered(
        id=row.id,
        subscription=subscription,
        paused=row.paused,
        origin=row.origin,
        breaker=trip,
        paused_at=row.paused_at if row.paused else None,
        paused_by=row.paused_by if row.paused else None,
        expires_in=None if subscription.expires_at is None else subscription.expires_at - row.now,
    )


def readable(rows: Iterable[R]) -> list[tuple[R, Registered]]:
    """Return the subscriptions in rows of the table; one that cannot be read or compiled is left out, and logged."""
    found = []
    for row in rows:
        try:
            found.append((row, compilable(row)))
        except StorageError as error:
            log.error("subscription left out", detail=str(error))
    return found


def compilable(row: Any) -> Registered:
    """Return the subscription in a row of the table. Raise `StorageError` when it cannot be read or compiled."""
    try:
        each = registered(row)
        Matcher([(each.subscription, each.id)])
    except Exception as error:
        raise StorageError(
            f"subscription {row.name!r} cannot be read: {type(error).__name__}: {error}; "
            "start a runner whose file has it, which writes it anew, or the version that wrote it"
        ) from error
    return each
