"""From an outcome to what is written: pure, and the same for an event's first delivery and for a later one."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_never

from .delivery import Accepted, Dead, Delivered, DeliveryState, Failed, Outcome, Rejected, RetryIn
from .retry import RetryPolicy
from .storage.base import AttemptRecord, DeliveryRecord

__all__ = ["crashed", "given_back", "settle"]

_MAX_ERROR = 2000  # characters kept of a reason, and of an excerpt


def settle(
    policy: RetryPolicy, seq: int, subscription_id: int, attempt: int, token: int, outcome: Outcome, seconds: float
) -> tuple[DeliveryRecord, AttemptRecord | None]:
    """
    Return the delivery and the attempt to be written.

    An attempt is recorded when it failed, and when it ended a delivery that had failed before; the
    common case, a success at once, is told by the delivery alone.
    """
    settlement = policy.settle(outcome, attempt)
    due_in, error = timedelta(0), None
    match settlement:
        case Delivered():
            state = DeliveryState.DELIVERED
        case RetryIn(due_in, error):
            state = DeliveryState.PENDING
        case Dead(error):
            state = DeliveryState.DEAD
        case _:
            assert_never(settlement)
    error = error[:_MAX_ERROR] if error else None
    record = DeliveryRecord(seq, subscription_id, state, attempt, token, due_in, error)
    if state is DeliveryState.DELIVERED and attempt == 1:
        return record, None
    return record, _attempt(seq, subscription_id, attempt, outcome, seconds)


def crashed(seq: int, subscription_id: int, attempt: int, token: int) -> tuple[DeliveryRecord, AttemptRecord]:
    """Return what is written of a delivery whose attempts were all used up, the last ones without an answer."""
    used = attempt - 1
    error = f"attempt {used} of {used} ended without an answer: its process died, or lost its lease"
    record = DeliveryRecord(seq, subscription_id, DeliveryState.DEAD, used, token, error=error)
    return record, AttemptRecord(seq, subscription_id, used, timedelta(0), error=error)


def given_back(seq: int, subscription_id: int, attempt: int, token: int, *, started: bool) -> DeliveryRecord:
    """Return what is written of a delivery that was claimed and is not going to be finished here."""
    used = attempt if started else attempt - 1
    return DeliveryRecord(seq, subscription_id, DeliveryState.PENDING, used, token)


def _attempt(seq: int, subscription_id: int, number: int, outcome: Outcome, seconds: float) -> AttemptRecord:
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
