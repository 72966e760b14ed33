"""Schedules: their ticks, what puts them off, their events, and what is stored of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.policies.schedule import CATCH_UP, OVERLAP, EventTemplate, Schedule, tick_text

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)
EVENT = EventTemplate(type="report.due")


def every(length: timedelta, **fields: Any) -> Schedule:
    return Schedule(name="pulse", event=EVENT, every=length, **fields)


def first(schedule: Schedule, count: int, after: datetime = NOON) -> list[datetime]:
    return list(islice(schedule.ticks(after), count))


class TestTicks:
    def test_every_is_counted_from_its_anchor_in_both_directions(self) -> None:
        for anchor in (NOON + 7 * MINUTE, NOON - 53 * MINUTE, NOON + 100 * HOUR + 7 * MINUTE):
            assert first(every(HOUR, anchor=anchor), 2) == [NOON + 7 * MINUTE, NOON + 67 * MINUTE]

    def test_without_an_anchor_it_is_counted_from_1970(self) -> None:
        assert first(every(15 * MINUTE), 2, NOON + SECOND) == [NOON + 15 * MINUTE, NOON + 30 * MINUTE]

    @given(st.integers(1, 10**7), st.integers(-(10**9), 10**9), st.integers(0, 10**9))
    def test_every_never_stays_and_never_skips(self, length: int, anchor: int, since: int) -> None:
        schedule = every(length * SECOND, anchor=NOON + anchor * SECOND)
        moment = datetime(2000, 1, 1, tzinfo=UTC) + since * SECOND
        tick, following = first(schedule, 2, moment)
        assert timedelta(0) < tick - moment <= length * SECOND
        assert following - tick == length * SECOND

    @pytest.mark.parametrize("times", [{"cron": "0 * * * *"}, {"every": HOUR}])
    def test_start_and_end_are_within(self, times: dict[str, Any]) -> None:
        schedule = Schedule(name="n", event=EVENT, start_at=NOON, end_at=NOON + 2 * HOUR, **times)
        assert first(schedule, 9, NOON - 100 * HOUR) == [NOON, NOON + HOUR, NOON + 2 * HOUR]
        later = replace(schedule, start_at=NOON + timedelta(microseconds=1), end_at=NOON + HOUR - SECOND)
        assert not first(later, 9, NOON - 100 * HOUR)

    @pytest.mark.parametrize(
        "times",
        [{}, {"cron": "0 * * * *", "every": HOUR}, {"every": timedelta(0)}, {"every": timedelta(milliseconds=1500)}],
    )
    def test_what_is_no_schedule_is_refused(self, times: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="schedule 'n'"):
            Schedule(name="n", event=EVENT, **times)


class TestJitter:
    @given(st.integers(1, 100_000), st.integers(0, 10_000))
    def test_it_is_a_function_of_name_and_tick(self, jitter: int, hours: int) -> None:
        schedule = every(HOUR, jitter=timedelta(milliseconds=jitter))
        tick = NOON + hours * HOUR
        offset = schedule.offset(tick)
        assert timedelta(0) <= offset < schedule.jitter
        same = replace(schedule, event=EventTemplate(type="other"), catch_up="all", every=2 * HOUR)
        assert same.offset(tick) == offset

    def test_ticks_and_schedules_are_spread(self) -> None:
        schedule = every(HOUR, jitter=HOUR)
        of_ticks = {schedule.offset(NOON + number * HOUR) for number in range(100)}
        of_names = {replace(schedule, name=f"s{number}").offset(NOON) for number in range(100)}
        assert min(len(of_ticks), len(of_names)) > 90
        assert max(of_names) - min(of_names) > HOUR / 2

    def test_without_it_a_tick_is_due_at_its_time(self) -> None:
        assert every(HOUR).due_at(NOON) == NOON


class TestEvent:
    def test_its_identity_is_name_and_nominal_time(self) -> None:
        event = every(HOUR).event_of(datetime(2026, 1, 31, 2, tzinfo=UTC))
        assert (event.id, event.source) == ("pulse/2026-01-31T02:00:00Z", "/schedules/pulse")
        assert event.time == datetime(2026, 1, 31, 2, tzinfo=UTC)
        event.validate()

    def test_the_same_tick_gives_the_same_event(self) -> None:
        template = EventTemplate(type="a", source="/s", subject="x", data='{"n":1}')
        schedule = replace(every(HOUR), event=template)
        assert schedule.event_of(NOON) == schedule.event_of(NOON)
        assert schedule.event_of(NOON).json() == {"n": 1}

    def test_a_tick_is_written_in_utc(self) -> None:
        assert tick_text(NOON.astimezone(None)) == "2026-06-01T12:00:00Z"


class TestStored:
    @given(
        st.builds(
            Schedule,
            name=st.just("n"),
            cron=st.just("0 2 * * *"),
            timezone=st.sampled_from(["UTC", "Europe/Paris"]),
            every=st.none(),
            anchor=st.just(NOON),
            start_at=st.none() | st.just(NOON),
            end_at=st.none() | st.just(NOON + HOUR),
            jitter=st.timedeltas(timedelta(0), HOUR),
            catch_up=st.sampled_from(CATCH_UP),
            window=st.timedeltas(SECOND, 100 * HOUR),
            overlap=st.sampled_from(OVERLAP),
            event=st.builds(EventTemplate, type=st.just("t"), data=st.none() | st.just("[1]")),
        )
    )
    def test_what_is_read_is_what_was_written(self, schedule: Schedule) -> None:
        assert Schedule.from_json("n", schedule.to_json()) == schedule

    def test_what_an_older_version_did_not_write_has_its_default(self) -> None:
        stored = {"every": 60.0, "event": {"type": "t"}}
        assert Schedule.from_json("n", stored) == Schedule(name="n", every=MINUTE, event=EventTemplate(type="t"))


class TestInPlaceOfAnother:
    OLD = every(HOUR)

    def test_with_the_same_times_it_goes_on_where_that_was(self) -> None:
        new = replace(self.OLD, catch_up="all", event=EventTemplate(type="other"), overlap="skip", window=HOUR)
        late = NOON - 5 * HOUR
        assert new.in_place_of(self.OLD, late, NOON, late - HOUR) == late

    def test_with_other_times_it_begins_now(self) -> None:
        new = every(10 * MINUTE)
        assert new.in_place_of(self.OLD, NOON + HOUR, NOON + MINUTE, NOON) == NOON + 10 * MINUTE

    def test_what_the_other_one_was_late_for_is_caught_up(self) -> None:
        new = every(10 * MINUTE)
        assert new.in_place_of(self.OLD, NOON, NOON + 25 * MINUTE, NOON - HOUR) == NOON

    def test_what_was_published_is_not_published_again(self) -> None:
        new = every(10 * MINUTE)
        set_back = NOON - 30 * MINUTE  # the clock, after noon was published
        assert new.in_place_of(self.OLD, NOON + HOUR, set_back, NOON) == NOON + 10 * MINUTE

    def test_a_clock_that_was_years_ahead_does_not_silence_it(self) -> None:
        new, later = every(10 * MINUTE), NOON + timedelta(days=10_000)
        assert new.in_place_of(self.OLD, later + HOUR, NOON, later) == NOON + 10 * MINUTE
