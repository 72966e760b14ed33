from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.delivery import ACCEPTED, Accepted, Deferred, DeliveryState, Failed, Lease, Outcome, Rejected, Withheld
from runner.log import redaction
from runner.policies.retry import RetryPolicy
from runner.storage.contract.claims import ExpiredDeferral
from runner.storage.contract.settlements import AttemptRecord, DeliveryRecord
from runner.worker.settlement import crashed, given_back, overdue, settle, unacknowledged

POLICY = RetryPolicy(max_attempts=3, delay=timedelta(seconds=1), jitter=0)
DURATION = timedelta(milliseconds=250)


def test_a_success_at_once_is_told_by_the_delivery_alone() -> None:
    record, attempt = settle(POLICY, Lease(7, 2, 1, 99), ACCEPTED, 0.25)
    assert record == DeliveryRecord(7, 2, DeliveryState.DELIVERED, 1, 99)
    assert attempt is None


def test_a_success_after_failures_is_an_attempt_too() -> None:
    record, attempt = settle(POLICY, Lease(7, 2, 2, 99), Accepted(), 0.25)
    assert record == DeliveryRecord(7, 2, DeliveryState.DELIVERED, 2, 99)
    assert attempt == AttemptRecord(7, 2, 2, DURATION)


def test_a_failure_waits_for_its_retry() -> None:
    record, attempt = settle(POLICY, Lease(7, 2, 2, 99), Failed("503", status=503, excerpt="busy"), 0.25)
    assert record == DeliveryRecord(7, 2, DeliveryState.PENDING, 2, 99, timedelta(seconds=2), "503")
    assert attempt == AttemptRecord(7, 2, 2, DURATION, "503", 503, "busy")


def test_a_failure_waits_as_long_as_the_other_side_asked_for() -> None:
    record, _ = settle(POLICY, Lease(7, 2, 1, 99), Failed("429", retry_after=timedelta(seconds=40)), 0)
    assert record.due_in == timedelta(seconds=40)


@pytest.mark.parametrize(("asked", "due"), [(None, 0), (-1, 0), (40, 40), (10**6, 86_400)])
def test_what_was_not_sent_is_no_attempt(asked: int | None, due: int) -> None:
    outcome = Withheld("no consent", None if asked is None else timedelta(seconds=asked))
    record, attempt = settle(POLICY, Lease(7, 2, 3, 99), outcome, 0.25)
    assert record == DeliveryRecord(7, 2, DeliveryState.PENDING, 2, 99, timedelta(seconds=due), "no consent")
    assert attempt is None


@pytest.mark.parametrize(
    ("outcome", "attempts"),
    [(Failed("no", None, 500, "x"), 3), (Rejected("no", 500, "x"), 1)],
    ids=["last", "rejected"],
)
def test_the_end_is_dead_with_a_reason(outcome: Outcome, attempts: int) -> None:
    record, attempt = settle(POLICY, Lease(7, 2, attempts, 99), outcome, 0.25)
    assert (record.state, record.attempts, record.token) == (DeliveryState.DEAD, attempts, 99)
    assert record.error is not None
    assert record.error.startswith("no")
    assert attempt == AttemptRecord(7, 2, attempts, DURATION, "no", 500, "x")


@given(
    outcome=st.one_of(
        st.just(ACCEPTED),
        st.builds(Rejected, st.text(), st.none() | st.integers(0, 999), st.none() | st.text()),
        st.builds(
            Failed,
            st.text() | st.just("x" * 10_000),
            st.none() | st.timedeltas(),
            st.none() | st.integers(0, 999),
            st.none() | st.text() | st.just("x" * 10_000),
        ),
    ),
    attempt=st.integers(1, 50),
    max_attempts=st.integers(1, 20),
)
def test_every_outcome_has_one_record_that_the_store_can_take(
    outcome: Outcome, attempt: int, max_attempts: int
) -> None:
    policy = RetryPolicy(max_attempts=max_attempts)
    record, tried = settle(policy, Lease(7, 2, attempt, 99), outcome, 0.1)
    assert (record.seq, record.subscription_id, record.attempts, record.token) == (7, 2, attempt, 99)
    assert record.state in (DeliveryState.DELIVERED, DeliveryState.PENDING, DeliveryState.DEAD)
    assert (record.state is DeliveryState.DELIVERED) == isinstance(outcome, Accepted)
    assert timedelta(0) <= record.due_in <= timedelta(hours=24)
    assert len(record.error or "") <= 2000
    if record.state is DeliveryState.PENDING:
        assert attempt < max_attempts
    else:
        assert record.due_in == timedelta(0)
    if record.state is not DeliveryState.DELIVERED:
        assert tried is not None
    if tried is not None:
        assert (tried.seq, tried.subscription_id, tried.number) == (7, 2, attempt)
        assert len(tried.excerpt or "") <= 2000


def test_a_delivery_whose_holders_vanished_is_dead_with_the_attempts_it_had() -> None:
    record, attempt = crashed(Lease(7, 2, 4, 99))
    assert (record.state, record.attempts, record.token) == (DeliveryState.DEAD, 3, 99)
    assert record.error is not None
    assert "attempt 3 of 3" in record.error
    assert attempt == AttemptRecord(7, 2, 3, timedelta(0), record.error)


def test_a_deferred_answer_is_held_by_nobody_and_no_attempt_yet() -> None:
    record, attempt = settle(POLICY, Lease(7, 2, 2, 99), Deferred(timedelta(minutes=1)), 0.25)
    assert record == DeliveryRecord(7, 2, DeliveryState.LEASED, 2, 99, timedelta(minutes=1), deferred=True)
    assert attempt is None


@pytest.mark.parametrize(
    ("refusal", "reason"), [(None, "not acknowledged within 30 s"), ("no such customer", "no such customer")]
)
def test_without_an_acknowledgement_the_attempt_that_was_deferred_has_failed(refusal: str | None, reason: str) -> None:
    waited = timedelta(seconds=29.9999)
    lease, expired = Lease(7, 2, 3, 99), ExpiredDeferral(waited, refusal)
    record, attempt = unacknowledged(POLICY, lease, expired, timedelta(0))
    assert record == DeliveryRecord(7, 2, DeliveryState.PENDING, 2, 99, timedelta(seconds=2), reason)
    assert attempt == AttemptRecord(7, 2, 2, waited, reason)
    last, _ = unacknowledged(RetryPolicy(max_attempts=2), lease, expired, timedelta(0))
    assert (last.state, last.error) == (DeliveryState.DEAD, f"{reason} (attempt 2 of 2)")


def test_the_age_of_an_unacknowledged_one_includes_its_wait_once() -> None:
    policy = RetryPolicy(max_age=timedelta(seconds=60), delay=timedelta(seconds=1), jitter=0)
    waited = timedelta(seconds=30)
    for age, state in ((0, "pending"), (58, "pending"), (59.5, "dead")):
        record, _ = unacknowledged(policy, Lease(7, 2, 2, 99), ExpiredDeferral(waited, None), timedelta(seconds=age))
        assert record.state == state


def test_the_age_counts_from_the_first_attempt_to_the_end_of_this_one() -> None:
    policy = RetryPolicy(max_age=timedelta(seconds=10), delay=timedelta(seconds=1), jitter=0)
    for age, seconds, state in ((7, 1, "pending"), (7, 2, "dead"), (8, 1, "dead"), (0, 9.5, "dead")):
        record, attempt = settle(policy, Lease(7, 2, 2, 99), Failed("no"), seconds, timedelta(seconds=age))
        if state == "dead":
            assert record.state is DeliveryState.DEAD
            assert "max_age" in (record.error or "")
        else:
            assert record.due_in == timedelta(seconds=2)
        assert attempt is not None


def test_a_retry_that_comes_too_late_is_dead_with_the_attempts_it_had() -> None:
    record = overdue(RetryPolicy(max_age=timedelta(minutes=1)), Lease(7, 2, 4, 99))
    assert (record.state, record.attempts, record.token) == (DeliveryState.DEAD, 3, 99)
    assert (
        record.error
        == "not tried again after attempt 3: it was due too late for max_age, 60 s from the first attempt on"
    )


@pytest.mark.parametrize(("started", "attempts"), [(True, 2), (False, 1)])
def test_giving_back_takes_no_attempt_from_what_never_started(started: bool, attempts: int) -> None:
    assert given_back(Lease(7, 2, 2, 99), started=started) == DeliveryRecord(7, 2, DeliveryState.PENDING, attempts, 99)


def test_what_is_kept_of_an_answer_holds_no_secret() -> None:
    redaction.know("cAn4ry9X7kQ2mZ81wP")
    answer = "you sent Bearer cAn4ry9X7kQ2mZ81wP, that is cAn4ry9X7kQ2"  # cut where the excerpt ends
    for outcome in (Failed(answer, status=500, excerpt=answer), Rejected(answer, 400, answer)):
        record, attempt = settle(POLICY, Lease(7, 2, 1, 99), outcome, 0)
        assert attempt is not None
        assert attempt.excerpt == "you sent Bearer ***, that is ***"
        for kept in (attempt.error, record.error):
            assert kept is not None
            assert kept.startswith("you sent Bearer ***, that is ")
