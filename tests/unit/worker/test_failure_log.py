from __future__ import annotations

from collections.abc import MutableMapping
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from runner.delivery import DeliveryState
from runner.storage.contract.settlements import DeliveryRecord
from runner.worker import failure_log as failure_log_module
from runner.worker.failure_log import FailureLog

Lines = list[MutableMapping[str, Any]]


class Clock:
    """Time in the test's hands."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(failure_log_module, "monotonic", clock)
    return clock


def record(seq: int = 1, state: DeliveryState = DeliveryState.PENDING, error: str | None = "no") -> DeliveryRecord:
    return DeliveryRecord(seq, 7, state, 3, 1, timedelta(seconds=2), error)


def test_one_line_for_each_subscription_and_second_with_the_number_of_those_left_out(clock: Clock) -> None:
    complaints = FailureLog()
    with capture_logs() as lines:
        for seq in range(100):
            complaints.note("one", record(seq))
        complaints.note("two", record(100))
        clock.now += 0.9
        complaints.note("one", record(101))
        clock.now += 0.2
        complaints.note("one", record(102))
        complaints.note("two", record(103))
        clock.now += 1.1
        complaints.note("one", record(104))
    assert [(line["subscription"], line["seq"], line.get("and_more")) for line in lines] == [
        ("one", 0, None),
        ("two", 100, None),
        ("one", 102, 100),
        ("two", 103, None),
        ("one", 104, None),
    ]


def test_a_retry_is_told_with_its_reason_and_when(clock: Clock) -> None:
    with capture_logs() as lines:
        FailureLog().note("one", record(5))
    assert lines == [
        {
            "event": "delivery failed",
            "log_level": "info",
            "subscription": "one",
            "seq": 5,
            "attempt": 3,
            "reason": "no",
            "retry_in": 2.0,
        }
    ]


def test_a_death_is_a_warning_and_not_hidden_by_failures(clock: Clock) -> None:
    complaints = FailureLog()
    with capture_logs() as lines:
        complaints.note("one", record(1))
        complaints.note("one", record(2, DeliveryState.DEAD))
        complaints.note("one", record(3, DeliveryState.DEAD))
        clock.now += 1.1
        complaints.note("one", record(4, DeliveryState.DEAD))
    assert [(line["event"], line["log_level"], line.get("and_more")) for line in lines] == [
        ("delivery failed", "info", None),
        ("delivery dead", "warning", None),
        ("delivery dead", "warning", 1),
    ]


def test_what_has_no_error_is_no_complaint(clock: Clock) -> None:
    with capture_logs() as lines:
        FailureLog().note("one", record(error=None))
    assert lines == []
