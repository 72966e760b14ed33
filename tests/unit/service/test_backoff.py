from __future__ import annotations

from itertools import islice

import pytest
import structlog

from runner.errors import StorageUnavailable
from runner.service.backoff import Backoff, doubling


def test_waits_double_up_to_the_longest() -> None:
    assert list(islice(doubling(0.5, 3.0), 5)) == [0.5, 1.0, 2.0, 3.0, 3.0]


class TestBackoff:
    def test_the_log_hears_of_the_first_failures_and_then_less_and_less(self) -> None:
        backoff = Backoff(0.1, 2.0)
        with structlog.testing.capture_logs() as logs:
            waits = [backoff.failed("loop failed", ValueError("x"), loop="test") for _ in range(20)]
        assert waits[:6] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
        assert [entry["failures"] for entry in logs] == [1, 2, 3, 4, 8, 16]
        assert {entry["log_level"] for entry in logs} == {"warning"}

    def test_a_success_begins_anew(self) -> None:
        backoff = Backoff(0.1, 2.0)
        backoff.failed("loop failed", ValueError())
        backoff.reset()
        assert backoff.failed("loop failed", ValueError()) == 0.1

    @pytest.mark.parametrize("logged", [True, False])
    def test_of_a_store_that_is_away_it_hears_what_it_does_not_know(self, logged: bool) -> None:
        backoff, error = Backoff(0.1, 2.0), StorageUnavailable("away")
        error.logged = logged
        with structlog.testing.capture_logs() as logs:
            for _ in range(20):
                backoff.failed("loop failed", error)
        warned = [entry["failures"] for entry in logs if entry["log_level"] == "warning"]
        assert warned == ([] if logged else [4, 8, 16])
