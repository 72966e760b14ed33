from __future__ import annotations

from collections import deque
from datetime import timedelta
from typing import Any

import pytest

from runner.delivery import Failed, Outcome, Withheld
from runner.policies.breaker import Breaker, BreakerPolicy
from runner.worker.feedback import Feedback
from runner.worker.flight import Flight
from runner.worker.lane import LOST


@pytest.mark.parametrize(
    ("outcome", "opens"),
    [
        (Failed("HTTP 503"), True),
        (Withheld("no consent"), True),
        (Withheld("6 a minute", timedelta(seconds=10), blameless=True), False),
        (LOST, False),
    ],
)
def test_what_opens_the_breaker(outcome: Outcome, opens: bool) -> None:
    changed: list[bool] = []
    breaker = Breaker(BreakerPolicy(failures=2))
    feedback = Feedback(breaker, deque[Flight[Any]](), lambda: changed.append(True))
    for _ in range(3):
        feedback.outcome(outcome, 100.0)
    assert breaker.closed is not opens
    assert bool(changed) is opens
