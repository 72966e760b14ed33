"""The contract of corrections by people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .audit import Action
    from .records import DeliveryQuery

__all__ = ["Corrections", "ReplayQuery", "Rescheduled", "nobody"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayQuery:
    """
    Selection of recorded events that a subscription gets again: it matches them, and all conditions hold.

    `type` and `source` are patterns (`*`), `since` and `until` bound the time of recording. With `missing` only those
    of which it has no delivery yet.
    """

    subscription: str
    type: str | None = None
    source: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    missing: bool = False


@dataclass(frozen=True, slots=True)
class Rescheduled:
    """
    The result of rescheduling an event.

    Attributes:
        due_at: when it is due now, on the clock of the store.
        whole: whether the event itself was moved, before its dispatch.
        deliveries: how many deliveries were moved instead.
        running: how many more run at this moment, and were left alone.
    """

    due_at: datetime
    whole: bool = False
    deliveries: int = 0
    running: int = 0


def nobody(_: int) -> None:
    """Ignore progress."""


class Corrections(Protocol):
    """Correct records, in bounded batches, each a transaction of its own. Not on the hot path."""

    async def retry(
        self,
        query: DeliveryQuery,
        *,
        every: timedelta | None = None,
        dry_run: bool = False,
        advance: Callable[[int], object] = nobody,
    ) -> int:
        """
        Make the matching dead or cancelled deliveries pending, with fresh attempts, oldest first; return how many.

        Args:
            every: makes them due one after the other, so far apart; otherwise all are due now.
            advance: is told after each batch how many it had.
        """

    async def cancel(
        self, query: DeliveryQuery, *, dry_run: bool = False, advance: Callable[[int], object] = nobody
    ) -> int:
        """
        Cancel the matching pending or leased deliveries; return how many.

        A leased one's token is taken away, so that a late answer cannot undo it.
        """

    async def cancel_event(self, seq: int) -> int | None:
        """
        Cancel the open deliveries of an event; return how many, None if there were none.

        Its row of work goes, and every subscription that matches gets a cancelled delivery on record; deliveries that
        wait or run are cancelled. What a running dispatch has handed to its sinks has arrived, but its answers are
        not recorded.
        """

    async def reschedule(
        self,
        seq: int,
        due: timedelta | datetime,
        *,
        subscription: str | None = None,
        before: datetime | None = None,
    ) -> Rescheduled:
        """
        Move the due time of an event, or of its waiting deliveries if it has been dispatched.

        What is leased is left alone.

        Args:
            due: from now on the clock of the store, or a time; one in the past is now.
            subscription: only the delivery to this one.
            before: raise `StateConflict` unless that is earlier.
        """

    async def replay(
        self,
        query: ReplayQuery,
        *,
        every: timedelta | None = None,
        dry_run: bool = False,
        advance: Callable[[int], object] = nobody,
    ) -> int:
        """
        Make recorded events pending for a subscription, with fresh attempts, oldest first; return how many.

        Also what was delivered or is dead. Left alone is what waits, runs or was cancelled, and what is still to be
        dispatched. For `every` and `advance` see `retry()`. Raise `NotFound` unless the subscription is active.
        """

    async def ack(
        self, reference: str, subscription: str, *, failure: str | None = None, action: Action | None = None
    ) -> bool:
        """
        Acknowledge the delivery of an event, given by its seq or its id; return whether that changed anything.

        It may come before the sink has returned, and stands whatever the sink says then. A delivered one stays
        delivered, which is no error.

        Args:
            failure: the reason why it failed instead; the retry policy decides what follows. Only for one that was
                deferred.
            action: for the audit log, in the same transaction; None for no entry.

        Raises:
            NotFound: there is no such event, subscription, or delivery.
            StateConflict: the delivery is dead or cancelled, or not deferred when it is to fail.
        """
