"""Turn outcomes into records. Pure; the same for first deliveries and retries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from math import inf
from typing import assert_never

from ..delivery import (
    Accepted,
    AwaitAck,
    Dead,
    Deferred,
    Delivered,
    DeliveryState,
    Failed,
    Lease,
    Outcome,
    Rejected,
    RetryIn,
    Settlement,
    Withheld,
)
from ..log.redaction import redacted
from ..policies.retry import MAX_RETRY_AFTER, RetryPolicy
from ..storage.contract.claims import ExpiredDeferral
from ..storage.contract.settlements import AttemptRecord, DeliveryRecord, Run, Settled
from .endings import Expired

__all__ = [
    "apart",
    "crashed",
    "dead_untried",
    "given_back",
    "milder",
    "overdue",
    "part",
    "settle",
    "unacknowledged",
    "unreadable",
    "withheld",
]

_MEANWHILE = timedelta(seconds=30)  # lease of a delivery that has ended and is about to be recorded
_MAX_ERROR = 2000  # characters kept of a reason, and of an excerpt


def settle(
    policy: RetryPolicy,
    lease: Lease,
    outcome: Outcome,
    seconds: float,
    age: timedelta = timedelta(0),
    *,
    left: float = inf,
) -> tuple[DeliveryRecord, AttemptRecord | None]:
    """
    Return the delivery and the attempt to be written.

    An attempt is recorded when it failed, and when it ended a delivery that had failed before; the
    common case, a success at once, is told by the delivery alone.

    Args:
        seconds: how long the attempt took.
        age: how long before the attempt the first one began.
        left: seconds until the event expires.
    """
    if isinstance(outcome, Expired):
        return dead_untried(lease, outcome.reason), None
    if isinstance(outcome, Withheld):
        return withheld(lease, outcome), None
    late = None if left == inf else timedelta(seconds=left)
    settlement = policy.settle(outcome, lease.attempt, age=age + timedelta(seconds=seconds), left=late)
    record = _record(lease, settlement)
    if isinstance(outcome, Deferred) or (record.state is DeliveryState.DELIVERED and lease.attempt == 1):
        return record, None
    return record, _attempt(lease, outcome, seconds)


def unacknowledged(
    policy: RetryPolicy, lease: Lease, expired: ExpiredDeferral, age: timedelta, *, left: float = inf
) -> tuple[DeliveryRecord, AttemptRecord | None]:
    """Return the record of a delivery that was deferred, and claimed because no acknowledgement has come."""
    waited = expired.waited
    outcome = Failed(expired.refusal or f"not acknowledged within {round(waited.total_seconds(), 3):g} s")
    attempt = lease.attempt - 1  # its claim counted an attempt that will not be made
    deferred = Lease(lease.seq, lease.subscription_id, attempt, lease.token)
    return settle(policy, deferred, outcome, waited.total_seconds(), max(age - waited, timedelta(0)), left=left)


def dead_untried(lease: Lease, error: str) -> DeliveryRecord:
    """Return the record of a claimed delivery that is dead without this attempt."""
    used = lease.attempt - 1
    return DeliveryRecord(lease.seq, lease.subscription_id, DeliveryState.DEAD, used, lease.token, error=error)


def crashed(lease: Lease) -> tuple[DeliveryRecord, AttemptRecord]:
    """Return the record of a delivery whose attempts were all used up, the last ones without an answer."""
    used = lease.attempt - 1
    error = f"attempt {used} of {used} ended without an answer: its process died, or lost its lease"
    return dead_untried(lease, error), AttemptRecord(lease.seq, lease.subscription_id, used, timedelta(0), error=error)


def overdue(policy: RetryPolicy, lease: Lease) -> DeliveryRecord:
    """Return the record of a delivery that was claimed when its policy allowed no further attempt."""
    return dead_untried(lease, policy.overdue(lease.attempt - 1))


def given_back(lease: Lease, *, started: bool) -> DeliveryRecord:
    """Return the record of a claimed delivery that is given back unfinished."""
    used = lease.attempt if started else lease.attempt - 1
    return DeliveryRecord(lease.seq, lease.subscription_id, DeliveryState.PENDING, used, lease.token)


def withheld(lease: Lease, outcome: Withheld) -> DeliveryRecord:
    """Return the record of a delivery that its sink did not attempt: its attempt does not count."""
    wait = min(max(outcome.retry_after or timedelta(0), timedelta(0)), MAX_RETRY_AFTER)
    used, pending = lease.attempt - 1, DeliveryState.PENDING
    return DeliveryRecord(lease.seq, lease.subscription_id, pending, used, lease.token, wait, _kept(outcome.reason))


def unreadable(lease: Lease, reason: str) -> DeliveryRecord:
    """Return the record of a delivery whose event cannot be read: it is dead, without another attempt."""
    return dead_untried(lease, _kept(f"the event cannot be read: {reason}"))


def part(settled: Settled, indexes: Sequence[int]) -> Settled:
    """Return the part of `settled` for the works at `indexes`."""
    works = [settled.works[index] for index in indexes]
    ids = [each for _, each in settled.each()]
    seqs = {work.seq for work in works}
    return Settled(
        settled.token,
        works,
        [Run(ids[index], 1) for index in indexes],
        [each for each in settled.records if each.seq in seqs],
        [each for each in settled.attempts if each.seq in seqs],
        [each for each in settled.turns if each.seq in seqs],
    )


def apart(settled: Settled) -> tuple[Settled, Sequence[DeliveryRecord]]:
    """
    Return the settlement of one event with all of its deliveries leased, and their records to be written apart.

    Deliveries that run or wait untried are kept as they are: they have no text that could be refused.
    """
    [(work, delivered)] = settled.each()
    ended = [DeliveryRecord(work.seq, id, DeliveryState.DELIVERED, work.attempt, settled.token) for id in delivered]
    plain: list[DeliveryRecord] = []
    for record in settled.records:
        open_ = record.state in (DeliveryState.LEASED, DeliveryState.PENDING) and record.error is None
        (plain if open_ and not record.deferred else ended).append(record)
    leased = [
        DeliveryRecord(each.seq, each.subscription_id, DeliveryState.LEASED, each.attempts, settled.token, _MEANWHILE)
        for each in ended
    ]
    return Settled(settled.token, settled.works, [Run((), 1)], [*plain, *leased], (), settled.turns), ended


def milder(
    record: DeliveryRecord, attempts: Sequence[AttemptRecord], refusal: str
) -> Iterator[tuple[DeliveryRecord, Sequence[AttemptRecord]]]:
    """
    Yield milder forms of a settlement that the store refused, to be tried until one is accepted.

    First the same in plain ASCII, then without its attempt, at last that it is dead and why.
    """
    plain = replace(record, error=_ascii(record.error), dead_letter=None)
    yield plain, [replace(each, error=_ascii(each.error), excerpt=_ascii(each.excerpt)) for each in attempts]
    if attempts:
        yield plain, ()
    error = _kept(f"it was to be recorded as {record.state}, and the store refuses that: {_ascii(refusal)}")
    yield replace(plain, state=DeliveryState.DEAD, due_in=timedelta(0), error=error, deferred=False), ()


def _ascii(text: str | None) -> str | None:
    """Return the text in printable ASCII, anything else as Python writes it."""
    return text if text is None else ascii(text)[1:-1][:_MAX_ERROR]


def _record(lease: Lease, settlement: Settlement) -> DeliveryRecord:
    seq, id, attempt, token = lease.seq, lease.subscription_id, lease.attempt, lease.token
    match settlement:
        case Delivered():
            return DeliveryRecord(seq, id, DeliveryState.DELIVERED, attempt, token)
        case RetryIn(delay, reason):
            return DeliveryRecord(seq, id, DeliveryState.PENDING, attempt, token, delay, _kept(reason))
        case AwaitAck(within):
            return DeliveryRecord(seq, id, DeliveryState.LEASED, attempt, token, within, deferred=True)
        case Dead(reason):
            return DeliveryRecord(seq, id, DeliveryState.DEAD, attempt, token, error=_kept(reason))
        case _:
            assert_never(settlement)


def _attempt(lease: Lease, outcome: Accepted | Failed | Rejected, seconds: float) -> AttemptRecord:
    seq, id, number = lease.seq, lease.subscription_id, lease.attempt
    duration = timedelta(seconds=seconds)
    match outcome:
        case Accepted():
            return AttemptRecord(seq, id, number, duration)
        case Failed(reason, _, status, excerpt) | Rejected(reason, status, excerpt):
            kept = excerpt and _kept(excerpt, cut=True)
            return AttemptRecord(seq, id, number, duration, _kept(reason), status, kept)
        case _:
            assert_never(outcome)


def _kept(text: str, *, cut: bool = False) -> str:
    """Return a text of the receiver in its stored form: shortened, and with secrets redacted."""
    return redacted(text, cut=cut)[:_MAX_ERROR]
