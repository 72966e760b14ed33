"""A delivery, one event for one subscription: its states, the outcomes of sinks, and the settlements."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Protocol

from msgspec import Struct

from .event import Event

__all__ = [
    "ACCEPTED",
    "Accepted",
    "AwaitAck",
    "Dead",
    "Deferred",
    "Delivered",
    "Delivery",
    "DeliveryState",
    "Failed",
    "Lease",
    "Outcome",
    "Rejected",
    "RetryIn",
    "Settlement",
    "Withheld",
]


class DeliveryState(StrEnum):
    """The state of a delivery. A retry or a delay is `pending` with a due time in the future."""

    PENDING = "pending"
    LEASED = "leased"
    DELIVERED = "delivered"
    DEAD = "dead"
    CANCELLED = "cancelled"


class Claimed(Protocol):
    """One delivery that was claimed."""

    @property
    def seq(self) -> int:
        """Return the number of the event."""

    @property
    def subscription_id(self) -> int:
        """Return the id of the subscription."""

    @property
    def attempt(self) -> int:
        """Return the number of its claims."""


class Lease(Struct, frozen=True):
    """A claimed delivery: `attempt` counts its claims, this one included; `token` fences every write about it."""

    seq: int
    subscription_id: int
    attempt: int
    token: int

    @classmethod
    def of(cls, claimed: Claimed, token: int) -> Lease:
        """Return the lease of a delivery claimed under `token`."""
        return cls(claimed.seq, claimed.subscription_id, claimed.attempt, token)

    @property
    def key(self) -> tuple[int, int]:
        """Return the identity of the delivery: the numbers of its event and its subscription."""
        return self.seq, self.subscription_id


class Delivery(Struct, frozen=True):
    """
    One event for one subscription, as a sink is given it.

    `attempt` starts at 1 and counts claims, so that a crash counts too. The same delivery may come
    twice; `event.source` and `event.id` stay the same over all attempts.
    """

    event: Event
    subscription: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """The sink has the event; the delivery is done."""


@dataclass(frozen=True, slots=True)
class Failed:
    """
    This attempt failed; another one may succeed.

    `retry_after` is the wait the other side asked for, `status` its answer in its own terms (an HTTP
    status code), `excerpt` the beginning of what it said.
    """

    reason: str
    retry_after: timedelta | None = None
    status: int | None = None
    excerpt: str | None = None


@dataclass(frozen=True, slots=True)
class Withheld(Failed):
    """
    Nothing was sent, for a reason outside the event: the attempt does not count.

    The delivery is due again in `retry_after`. Whether it counts for the breaker depends on `blameless`: a receiver
    that only wants fewer at once works.
    """

    blameless: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """No attempt can succeed; the delivery is dead."""

    reason: str
    status: int | None = None
    excerpt: str | None = None


@dataclass(frozen=True, slots=True)
class Deferred:
    """
    The sink has the event and acknowledges it later, by `Runner.ack()` or on the command line.

    Without an acknowledgement `within` this time the attempt has failed, and the retry policy decides.
    """

    within: timedelta


Outcome = Accepted | Failed | Rejected | Deferred

ACCEPTED = Accepted()
"""The one instance every sink returns, so that the common case allocates nothing."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """Settlement: delivered."""


@dataclass(frozen=True, slots=True)
class RetryIn:
    """Settlement: pending again, due `delay` from now on the database's clock."""

    delay: timedelta
    reason: str


@dataclass(frozen=True, slots=True)
class Dead:
    """Settlement: dead, kept with its reason until it is retried."""

    reason: str


@dataclass(frozen=True, slots=True)
class AwaitAck:
    """Settlement: deferred; it fails unless it is acknowledged `within` this time from now on."""

    within: timedelta


Settlement = Delivered | RetryIn | Dead | AwaitAck
