"""Settlements: the records that a worker writes about claimed work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain, repeat
from typing import TYPE_CHECKING

from msgspec import Struct

from ...delivery import DeliveryState

if TYPE_CHECKING:
    from .claims import UnreadableWork, Work

__all__ = ["AttemptRecord", "Death", "DeliveryRecord", "Run", "Settled", "Turn"]


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """
    One delivery as it is to be written.

    `token` is the lease it is held under from now on when `state` is leased, and otherwise the lease
    that must still hold for the write to take effect. `due_in` counts from the database's now.
    `dead_letter` is the subscription to which the same event becomes pending by the same write, with
    fresh attempts whatever became of it before. A `deferred` one is leased without a holder, and may be claimed
    if no acknowledgement has come by then.
    """

    seq: int
    subscription_id: int
    state: DeliveryState
    attempts: int
    token: int
    due_in: timedelta = timedelta(0)
    error: str | None = None
    dead_letter: int | None = None
    deferred: bool = False


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt that failed, or that ended a delivery after failures."""

    seq: int
    subscription_id: int
    number: int
    duration: timedelta
    error: str | None = None
    status: int | None = None
    excerpt: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """The place of a delivery in the line of its key: `position` is that of its event in the queue."""

    seq: int
    subscription_id: int
    key: str
    position: int


class Run(Struct, frozen=True):
    """Works that stand next to each other, `length` of them, and the subscriptions whose first attempt succeeded."""

    subscription_ids: tuple[int, ...]
    length: int


class Settled(Struct, frozen=True):
    """
    The end of one claim: its rows of work go, every delivery they led to is recorded.

    Attributes:
        token: the claim's.
        works: the claimed events this is about.
        runs: where they were delivered; their lengths add up to the number of `works`.
        records: every other delivery, row by row.
        attempts: their failed attempts.
        turns: of those `records` that wait in a line.
        recorded: when the first and the last of the events were recorded, on the monotonic clock; None if unknown.
    """

    token: int
    works: Sequence[Work | UnreadableWork]
    runs: Sequence[Run]
    records: Sequence[DeliveryRecord] = ()
    attempts: Sequence[AttemptRecord] = ()
    turns: Sequence[Turn] = ()
    recorded: tuple[float, float] | None = None

    def each(self) -> Iterator[tuple[Work | UnreadableWork, tuple[int, ...]]]:
        """Yield every work with the ids of the subscriptions it was delivered to."""
        return zip(
            self.works, chain.from_iterable(repeat(run.subscription_ids, run.length) for run in self.runs), strict=True
        )


@dataclass(frozen=True, slots=True)
class Death:
    """Death of a delivery: its reason, number of attempts and time."""

    reason: str
    attempts: int
    at: datetime
