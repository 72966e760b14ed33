"""Claims: the requests of a worker, and their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import inf
from typing import ClassVar, NamedTuple

from msgspec import Struct

from ...errors import EventError
from ...event import Event
from ...policies.rate import Rate

__all__ = [
    "AT_ONCE",
    "CLAIM",
    "LARGEST",
    "UNREADABLE",
    "Claim",
    "ClaimedDelivery",
    "DeliveryClaim",
    "ExpiredClaim",
    "ExpiredDeferral",
    "ExpiredDelivery",
    "RegulatedRequest",
    "UnreadableDelivery",
    "UnreadableWork",
    "Work",
]

_NO_AGE = timedelta(0)

CLAIM = 8 * 1024 * 1024
"""The most that the events of one claim may weigh: bytes of their data, and sixteen for each of their extensions'."""

AT_ONCE = 1024 * 1024
"""The weight of events whose data comes with the claim.

The data of others is fetched later, when the claim is committed: an event that kills its process while it is fetched
has then used an attempt."""

LARGEST = 16 * 1024 * 1024
"""The most that an event may weigh to be read at all: one that weighs more was not written by the bus."""

UNREADABLE = (EventError, ValueError, TypeError, OverflowError)
"""Errors of a row that is no event, raised by the drivers or here."""


class Work(Struct):
    """
    One claimed event. `attempt` counts its claims, this one included; `size` is not zero while data is missing.

    `deadline` is when the event expires, on the monotonic clock of the process that claimed it.
    """

    position: int
    attempt: int
    seq: int
    event: Event
    size: int = 0
    deadline: float = inf

    age: ClassVar[timedelta] = _NO_AGE  # since the first attempt, which a dispatch is


@dataclass(frozen=True, slots=True)
class UnreadableWork:
    """One claimed event that cannot be read, and why; `type` if at least that can."""

    position: int
    attempt: int
    seq: int
    type: object
    reason: str


class Claim(Struct, frozen=True):
    """
    The result of a claim of events.

    Attributes:
        token: fences every write about `works`.
        works: events in the order in which they were published.
        unreadable: what else was leased.
        version: of the subscription set, read in the same round trip.
        scheduled_in: until the first scheduled event is due (zero or less: now); None without one.
        again_in: until the queue should be read again without a signal (a lease that ends); None if never.
        waiting: whether any delivery is pending or leased.
        weight: what the events weigh together.
        more: whether some that are due were left for a later claim.
        now: the time on the clock of the store; None for events that were leased as they were recorded.
        recorded: when the first and the last of the events were recorded, on the monotonic clock; None if unknown.
    """

    token: int
    works: Sequence[Work]
    version: int
    scheduled_in: timedelta | None = None
    again_in: timedelta | None = None
    waiting: bool = False
    unreadable: Sequence[UnreadableWork] = ()
    weight: int = 0
    more: bool = False
    now: datetime | None = None
    recorded: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class ExpiredDeferral:
    """A deferral without success: how long it was waited for, and the reason of a reported failure."""

    waited: timedelta
    refusal: str | None


@dataclass(slots=True)
class ClaimedDelivery:
    """
    One claimed delivery. `attempt` counts its claims, this one included.

    `suspect`: the lease it had ended without an answer, so it may have ended the process that held it. `age`: how long
    before the claim the first recorded attempt began. `expired`: its deferral has ended, and it is claimed only to be
    settled. `size`: above zero while the data of the event is missing. `deadline`: as for `Work`. `recorded`: when the
    event was recorded, on the monotonic clock.
    """

    seq: int
    subscription_id: int
    attempt: int
    suspect: bool
    event: Event
    age: timedelta = _NO_AGE
    expired: ExpiredDeferral | None = None
    size: int = 0
    deadline: float = inf
    recorded: float | None = None


@dataclass(frozen=True, slots=True)
class UnreadableDelivery:
    """One claimed delivery whose event cannot be read, and why."""

    seq: int
    subscription_id: int
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class RegulatedRequest:
    """
    A request for deliveries of one subscription with an order or a rate.

    `after` is the key at which the last claim stopped, so that each key has its turn. From `since` on, round to
    `after`, claims have taken every delivery that may start.
    """

    subscription_id: int
    quota: int
    ordered: bool
    rate: Rate | None
    after: str = ""
    since: str = ""


@dataclass(frozen=True, slots=True)
class DeliveryClaim:
    """
    The result of a claim of deliveries.

    `next_due` is the time until the next one this caller could claim, as far as seen; zero asks for another claim.
    `paced`: only its rate keeps the subscription from more until then. `after` and `since` are for the next
    `RegulatedRequest`; `more`: there are lines that claims since then have not seen. `held_up`: a line waits for the
    dispatch of an earlier event, which sends no signal. `unreadable` is what else was leased. `now`: the time on the
    clock of the store; None if nothing was claimed.
    """

    token: int
    deliveries: Sequence[ClaimedDelivery]
    next_due: timedelta | None = None
    unreadable: Sequence[UnreadableDelivery] = ()
    paced: bool = False
    after: str = ""
    since: str = ""
    more: bool = False
    held_up: bool = False
    now: datetime | None = None


class ExpiredDelivery(NamedTuple):
    """One claimed delivery whose event has expired. `attempt` counts its claims, this one included."""

    seq: int
    subscription_id: int
    attempt: int
    expired_at: datetime


class ExpiredClaim(NamedTuple):
    """
    Deliveries of expired events, leased under `token`.

    `due_now` is how many scheduled events were made due. `again_in` is the time until the next look: zero if there is
    more, None if no recorded event expires.
    """

    token: int
    deliveries: Sequence[ExpiredDelivery]
    due_now: int
    again_in: timedelta | None
