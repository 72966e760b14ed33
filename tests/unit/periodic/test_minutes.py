"""Minutes: every count of the tally is written in one minute, once, whatever becomes of a beat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.periodic.minutes import Minutes
from runner.service.tally import Tally
from runner.storage.contract.throughput import BUS, Counted

START = datetime(2026, 1, 1, 12, 0, 55, tzinfo=UTC)


class Bench:
    """A store of counters with its clock, and the monotonic clock of the process, which goes at the same speed."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.minutes = Minutes(self.tally)
        self.now = START
        self.monotonic = 100.0
        self.rows: dict[tuple[datetime, int, int], Counted] = {}

    def go_on(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.monotonic += seconds

    def beat(self, *, taken: bool = True, answered: bool = True) -> Sequence[Counted]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("runner.periodic.minutes.monotonic", lambda: self.monotonic)
            counted = self.minutes.unwritten()
            if taken:
                self.rows |= {(each.minute, each.subscription_id, each.holder): each for each in counted}
            if taken and answered:
                self.minutes.written(counted, self.now)
        return counted

    def deliver(self, id: int, times: int, seconds: float = 0.01) -> None:
        outcomes = self.tally.outcomes_of(id)
        outcomes.delivered += times
        outcomes.latency.add(seconds, times)

    def sums(self) -> Counter[int]:
        sums = Counter[int]()
        for (_, id, _), each in self.rows.items():
            sums[id] += each.published if id == BUS else each.delivered
        return sums


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.integers(0, 5),
            st.floats(0, 90),
            st.sampled_from([(True, True), (True, False), (False, False)]),
        )
    )
)
def test_every_count_is_written_once_whatever_beats_are_lost(
    steps: list[tuple[int, int, float, tuple[bool, bool]]],
) -> None:
    bench, expected = Bench(), Counter[int]()
    bench.beat()
    for id, times, seconds, (taken, answered) in steps:
        if id == BUS:
            bench.tally.add_published(["/s"] * times, 0.001)
        else:
            bench.deliver(id, times)
        expected[id] += times
        bench.go_on(seconds)
        bench.beat(taken=taken, answered=answered)
    bench.beat()
    assert bench.sums() == +expected
    ends = expected.total() - expected[BUS]
    for whole in (True, False):  # the bus has all that its subscriptions have together
        rows = [each for (_, id, _), each in bench.rows.items() if (id == BUS) == whole]
        assert sum(each.delivered for each in rows) == sum(sum(each.latency.values()) for each in rows) == ends
    assert bench.beat() == []


def test_a_minute_grows_until_the_next_one_begins() -> None:
    bench = Bench()
    bench.deliver(1, 1)
    assert bench.beat() == []  # nobody has said what time it is
    bench.beat()
    bench.deliver(1, 2)
    bench.go_on(10)
    bench.beat()
    bench.go_on(10)
    assert bench.beat() == []
    bench.deliver(1, 4)
    bench.beat()
    told = {minute.minute: each.delivered for (minute, _, _), each in bench.rows.items()}
    assert told == {0: 1, 1: 6}


def test_when_the_clock_is_set_back_what_was_written_stays() -> None:
    bench = Bench()
    bench.beat()
    for _ in range(2):
        bench.deliver(1, 5)
        bench.go_on(10)
        bench.beat()
    bench.now -= timedelta(hours=1)
    bench.beat()
    for _ in range(400):
        bench.go_on(10)
        bench.deliver(1, 1)
        bench.beat()
    assert bench.sums()[1] == 10 + 400
    assert len({holder for _, _, holder in bench.rows}) == 2
    assert len(bench.minutes._counted) == 2  # its own, and that of the bus


def test_the_most_that_waited_in_a_minute_is_kept() -> None:
    bench = Bench()
    bench.minutes.note_backlog(9)  # nobody has said what time it is
    bench.beat()
    for seconds, waiting in ((2, 3), (2, 7), (2, 5), (60, 1)):
        bench.go_on(seconds)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("runner.periodic.minutes.monotonic", lambda: bench.monotonic)
            bench.minutes.note_backlog(waiting)
        bench.beat()
    assert {minute.minute: each.backlog for (minute, _, _), each in bench.rows.items()} == {0: 7, 1: 5, 2: 1}
