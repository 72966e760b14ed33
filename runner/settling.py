"""From an outcome to what is written: pure, and the same for an event's first delivery and for a later one."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_never

from .delivery import (
    Accepted,
    AwaitAck,
    Dead,
    Deferred,
    Delivered,
    DeliveryState,
    Failed,
    Outcome,
    Rejected,
    RetryIn,
    Settlement,
)
from .retry import RetryPolicy
from .storage.base import AttemptRecord, ClaimedDelivery, DeliveryRecord, Unanswered

__all__ = ["crashed", "given_back", "overdue", "settle", "unacknowledged", "unreadable"]

_MAX_ERROR = 2000  # characters kept of a reason, and of an excerpt


def settle(
    policy: RetryPolicy,
    seq: int,
    subscription_id: int,
    attempt: int,
    token: int,
    outcome: Outcome,
    seconds: float,
    age: timedelta = timedelta(0),
) -> tuple[DeliveryRecord, AttemptRecord | None]:
    """
    Return the delivery and the attempt to be written.

    An attempt is recorded when it failed, and when it ended a delivery that had failed before; the
    common case, a success at once, is told by the delivery alone.

    Args:
        seconds: how long the attempt took.
        age: how long before the attempt the first one began.
    """
    settlement = policy.settle(outcome, attempt, age=age + timedelta(seconds=seconds))
    record = _record(seq, subscription_id, attempt, token, settlement)
    if isinstance(outcome, Deferred) or (record.state is DeliveryState.DELIVERED and attempt == 1):
        return record, None
    return record, _attempt(seq, subscription_id, attempt, outcome, seconds)


def unacknowledged(
    policy: RetryPolicy, claimed: ClaimedDelivery, unanswered: Unanswered, token: int
) -> tuple[DeliveryRecord, AttemptRecord | None]:
    """Return what is written of a delivery that was deferred, and claimed because no acknowledgement has come."""
    waited = unanswered.waited
    outcome = Failed(unanswered.refusal or f"not acknowledged within {round(waited.total_seconds(), 3):g} s")
    attempt = claimed.attempt - 1  # its claim counted one that nobody is going to make
    began = max(claimed.age - waited, timedelta(0))
    seq, id = claimed.seq, claimed.subscription_id
    return settle(policy, seq, id, attempt, token, outcome, waited.total_seconds(), began)


def crashed(seq: int, subscription_id: int, attempt: int, token: int) -> tuple[DeliveryRecord, AttemptRecord]:
    """Return what is written of a delivery whose attempts were all used up, the last ones without an answer."""
    used = attempt - 1
    error = f"attempt {used} of {used} ended without an answer: its process died, or lost its lease"
    record = DeliveryRecord(seq, subscription_id, DeliveryState.DEAD, used, token, error=error)
    return record, AttemptRecord(seq, subscription_id, used, timedelta(0), error=error)


def overdue(policy: RetryPolicy, seq: int, subscription_id: int, attempt: int, token: int) -> DeliveryRecord:
    """Return what is written of a delivery that was claimed when its policy allowed no further attempt."""
    used = attempt - 1
    return DeliveryRecord(seq, subscription_id, DeliveryState.DEAD, used, token, error=policy.overdue(used))


def given_back(seq: int, subscription_id: int, attempt: int, token: int, *, started: bool) -> DeliveryRecord:
    """Return what is written of a delivery that was claimed and is not going to be finished here."""
    used = attempt if started else attempt - 1
    return DeliveryRecord(seq, subscription_id, DeliveryState.PENDING, used, token)


def unreadable(seq: int, subscription_id: int, attempt: int, token: int, reason: str) -> DeliveryRecord:
    """Return what is written of a delivery whose event cannot be read: it is dead, without another attempt."""
    error = f"the event cannot be read: {reason}"[:_MAX_ERROR]
    return DeliveryRecord(seq, subscription_id, DeliveryState.DEAD, attempt - 1, token, error=error)


def _record(seq: int, subscription_id: int, attempt: int, token: int, settlement: Settlement) -> DeliveryRecord:
    match settlement:
        case Delivered():
            return DeliveryRecord(seq, subscription_id, DeliveryState.DELIVERED, attempt, token)
        case RetryIn(delay, reason):
            pending = DeliveryState.PENDING
            return DeliveryRecord(seq, subscription_id, pending, attempt, token, delay, reason[:_MAX_ERROR])
        case AwaitAck(within):
            leased = DeliveryState.LEASED
            return DeliveryRecord(seq, subscription_id, leased, attempt, token, within, deferred=True)
        case Dead(reason):
            return DeliveryRecord(seq, subscription_id, DeliveryState.DEAD, attempt, token, error=reason[:_MAX_ERROR])
        case _:
            assert_never(settlement)


def _attempt(
    seq: int, subscription_id: int, number: int, outcome: Accepted | Failed | Rejected, seconds: float
) -> AttemptRecord:
    duration = timedelta(seconds=seconds)
    match outcome:
        case Accepted():
            return AttemptRecord(seq, subscription_id, number, duration)
        case Failed(reason, _, status, excerpt) | Rejected(reason, status, excerpt):
            return AttemptRecord(
                seq, subscription_id, number, duration, reason[:_MAX_ERROR], status, excerpt and excerpt[:_MAX_ERROR]
            )
        case _:
            assert_never(outcome)
