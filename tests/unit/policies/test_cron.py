"""Cron expressions against an independent model that looks at every minute of the clock on the wall."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from time import process_time
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runner.policies.cron import Cron, CronError, NeverFires

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)

# Where the clock is changed, and about when: by half an hour, at midnight, for Ramadan, for good, by a day.
CHANGES = {
    "Europe/Paris": ("2026-03-28", "2026-10-24"),
    "America/Sao_Paulo": ("2018-11-03", "2018-02-16", "2019-02-15", "2026-06-01"),
    "Australia/Lord_Howe": ("2026-04-03", "2026-10-02"),
    "Africa/Casablanca": ("2026-02-13", "2026-03-20"),
    "America/New_York": ("2026-03-07", "2026-10-31"),
    "Asia/Tehran": ("2022-03-20", "2022-09-20"),
    "Africa/Cairo": ("2026-04-23", "2026-10-28"),
    "America/Scoresbysund": ("2024-03-30",),
    "Pacific/Apia": ("2011-12-29",),
    "Asia/Kolkata": ("2026-12-30",),
    "UTC": ("2024-02-27", "2026-12-30"),
}


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def wall(instant: datetime, zone: str) -> datetime:
    return instant.astimezone(ZoneInfo(zone)).replace(tzinfo=None)


def between(expression: str, zone: str, start: datetime, end: datetime) -> list[datetime]:
    """Return the instants after `start` and before `end`."""
    cron, found, tick = Cron(expression, zone), [], start
    while (following := cron.after(tick)) is not None and following < end:
        tick = following
        found.append(tick)
    return found


class Model:
    """Cron as Debian's goes round: once a minute, with all that the clock has passed since."""

    def __init__(self, expression: str) -> None:
        fields = expression.split()
        ranges = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
        self.sets = [self.values(field, *bounds) for field, bounds in zip(fields, ranges, strict=True)]
        self.both = fields[2].startswith("*") or fields[4].startswith("*")
        self.wildcard = fields[0].startswith("*") or fields[1].startswith("*")

    def values(self, field: str, low: int, high: int) -> set[int]:
        found: set[int] = set()
        for part in field.split(","):
            span, _, step = part.partition("/")
            first, _, last = span.partition("-")
            begin = low if first == "*" else int(first)
            end = int(last) if last else high if first == "*" or step else begin
            found |= set(range(begin, end + 1, int(step or 1)))
        return found

    def matches(self, at: datetime) -> bool:
        minutes, hours, days, months, weekdays = self.sets
        day, weekday = at.day in days, bool({at.isoweekday() % 7, at.isoweekday()} & weekdays)
        on_day = (day and weekday) if self.both else (day or weekday)
        return at.minute in minutes and at.hour in hours and at.month in months and on_day

    def ticks(self, zone: str, start: datetime, end: datetime) -> Iterator[datetime]:
        passed = wall(start, zone)
        instant = start + MINUTE
        while instant < end:
            now = wall(instant, zone)
            if self.wildcard:
                fires = self.matches(now)
            else:
                fires = False
                while passed < now:
                    passed += MINUTE
                    fires = fires or self.matches(passed)
            if fires:
                yield instant
            instant += MINUTE


def field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    span = st.tuples(number, number).map(lambda pair: f"{min(pair)}-{max(pair)}")
    step = st.integers(1, 30)
    one = st.one_of(
        number.map(str),
        span,
        st.just("*"),
        st.tuples(st.one_of(st.just("*"), span), step).map(lambda pair: f"{pair[0]}/{pair[1]}"),
    )
    return st.lists(one, min_size=1, max_size=2).map(",".join)


EXPRESSIONS = st.tuples(
    field(0, 59),
    st.one_of(field(0, 23), st.sampled_from(["1,2", "0-3", "2", "1", "23,0"])),
    st.one_of(st.just("*"), field(1, 31)),
    st.one_of(st.just("*"), field(1, 12)),
    st.one_of(st.just("*"), field(0, 6)),
).map(" ".join)
PLACES = st.sampled_from([(zone, day) for zone, days in CHANGES.items() for day in days])


@settings(max_examples=150)
@given(EXPRESSIONS, PLACES)
@example("30 * * * *", ("Australia/Lord_Howe", "2026-04-03"))
@example("*/15 1-2 * * *", ("Australia/Lord_Howe", "2026-04-03"))
@example("30 2 * * *", ("Europe/Paris", "2026-03-28"))
@example("15,45 2 * * *", ("Europe/Paris", "2026-03-28"))
@example("30 2 * * *", ("Europe/Paris", "2026-10-24"))
@example("* 2 * * *", ("Europe/Paris", "2026-10-24"))
@example("0 0 * * *", ("America/Sao_Paulo", "2018-11-03"))
@example("*/30 0 * * *", ("America/Sao_Paulo", "2018-11-03"))
@example("30 23 * * *", ("America/Sao_Paulo", "2018-02-16"))
@example("0 0 29 2 *", ("UTC", "2024-02-27"))
@example("59 23 31 12 *", ("UTC", "2026-12-30"))
def test_it_names_what_a_look_at_every_minute_finds(expression: str, place: tuple[str, str]) -> None:
    zone, day = place
    start, end = moment(day), moment(day) + 3 * DAY
    try:
        found = between(expression, zone, start, end)
    except NeverFires:
        found = []
    assert found == list(Model(expression).ticks(zone, start, end))


@given(EXPRESSIONS, PLACES, st.integers(0, 4 * 24 * 3600))
@settings(max_examples=200)
def test_what_follows_depends_on_the_moment_alone(expression: str, place: tuple[str, str], seconds: int) -> None:
    """From wherever one asks, the next one is the first of all that comes after it."""
    zone, day = place
    start = moment(day)
    asked = start + timedelta(seconds=seconds)
    try:
        ticks = between(expression, zone, start - DAY, start + 6 * DAY)
        following = Cron(expression, zone).after(asked)
    except NeverFires:
        return
    assert ticks == sorted(set(ticks))
    expected = next((tick for tick in ticks if tick > asked), None)
    assert following == expected or (expected is None and (following is None or following >= start + 6 * DAY))


def test_an_expression_may_be_asked_from_two_places_at_once() -> None:
    cron = Cron("0 2 * * *", "Europe/Paris")
    one, other = moment("2026-01-01"), moment("2027-01-01")
    alone = Cron("0 2 * * *", "Europe/Paris").after(one)
    cron.after(other)
    assert cron.after(one) == alone


TABLE = [
    # zone, expression, from (UTC), the next ones (UTC)
    (
        "Europe/Paris",
        "30 2 * * *",
        "2026-03-28T01:30",
        ["2026-03-29T01:00", "2026-03-30T00:30"],
    ),  # skipped: right after
    (
        "Europe/Paris",
        "15,45 2 * * *",
        "2026-03-28T12:00",
        ["2026-03-29T01:00", "2026-03-30T00:15"],
    ),  # both are one tick
    ("Europe/Paris", "0 2,3 * * *", "2026-03-28T12:00", ["2026-03-29T01:00", "2026-03-30T00:00"]),
    (
        "Europe/Paris",
        "30 2 * * *",
        "2026-10-24T12:00",
        ["2026-10-25T00:30", "2026-10-26T01:30"],
    ),  # twice: the first time
    ("Europe/Paris", "30 2 * * *", "2026-10-25T00:45", ["2026-10-26T01:30"]),  # asked between the two
    ("Europe/Paris", "30 * * * *", "2026-10-25T00:00", ["2026-10-25T00:30", "2026-10-25T01:30", "2026-10-25T02:30"]),
    ("Europe/Paris", "30 * * * *", "2026-03-29T00:00", ["2026-03-29T00:30", "2026-03-29T01:30"]),
    ("Europe/Paris", "*/30 2 * * *", "2026-03-28T12:00", ["2026-03-30T00:00", "2026-03-30T00:30"]),  # nothing is shown
    ("Europe/Paris", "0 30 2 * * *", "2026-03-28T12:00", ["2026-03-30T00:30"]),  # six fields follow the wall
    ("Europe/Paris", "0 30 2 * * *", "2026-10-25T00:00", ["2026-10-25T00:30", "2026-10-25T01:30", "2026-10-26T01:30"]),
    ("America/Sao_Paulo", "0 0 * * *", "2018-11-03T12:00", ["2018-11-04T03:00", "2018-11-05T02:00"]),
    ("America/Sao_Paulo", "30 0 4 11 *", "2018-11-03T12:00", ["2018-11-04T03:00"]),
    ("America/Sao_Paulo", "30 23 * * *", "2018-02-17T12:00", ["2018-02-18T01:30", "2018-02-19T02:30"]),
    ("America/Sao_Paulo", "0 0 * * *", "2018-02-17T12:00", ["2018-02-18T03:00", "2018-02-19T03:00"]),
    ("America/Sao_Paulo", "0 2 * * *", "2026-11-01T12:00", ["2026-11-02T05:00"]),  # no change any more
    ("Australia/Lord_Howe", "45 1 * * *", "2026-04-03T20:00", ["2026-04-04T14:45", "2026-04-05T15:15"]),
    (
        "Australia/Lord_Howe",
        "30 * * * *",
        "2026-04-04T14:00",
        ["2026-04-04T14:30", "2026-04-04T15:00", "2026-04-04T16:00"],
    ),
    ("Australia/Lord_Howe", "15 2 * * *", "2026-10-02T20:00", ["2026-10-03T15:30", "2026-10-04T15:15"]),
    ("Africa/Casablanca", "30 2 * * *", "2026-02-14T12:00", ["2026-02-15T01:30", "2026-02-16T02:30"]),
    ("Africa/Casablanca", "30 2 * * *", "2026-03-21T12:00", ["2026-03-22T02:00", "2026-03-23T01:30"]),
    ("UTC", "0 12 29 2 *", "2026-01-01T00:00", ["2028-02-29T12:00", "2032-02-29T12:00"]),
    ("UTC", "0 0 29 2 *", "2096-03-01T00:00", ["2104-02-29T00:00"]),  # 2100 has none
    ("Asia/Tokyo", "59 23 31 12 *", "2026-12-31T00:00", ["2026-12-31T14:59", "2027-12-31T14:59"]),
    ("Europe/Paris", "0 0 1 1 *", "2026-12-31T00:00", ["2026-12-31T23:00", "2027-12-31T23:00"]),
    ("UTC", "0 0 L * *", "2026-01-31T12:00", ["2026-02-28T00:00", "2026-03-31T00:00"]),
    ("UTC", "0 9 * * MON#1", "2026-01-01T00:00", ["2026-01-05T09:00", "2026-02-02T09:00"]),
    ("UTC", "0 0 13 * FRI", "2026-01-01T00:00", ["2026-01-02T00:00", "2026-01-09T00:00", "2026-01-13T00:00"]),  # either
    ("UTC", "*/20 * * * * *", "2026-01-01T00:00", ["2026-01-01T00:00:20", "2026-01-01T00:00:40", "2026-01-01T00:01"]),
    ("UTC", "@hourly", "2026-01-01T00:00", ["2026-01-01T01:00"]),
    ("UTC", "@daily", "2026-01-01T00:00", ["2026-01-02T00:00"]),
    ("UTC", "@midnight", "2026-01-01T00:00", ["2026-01-02T00:00"]),
    ("UTC", "@Weekly", "2026-01-01T00:00", ["2026-01-04T00:00"]),
    ("UTC", "@monthly", "2026-01-31T00:00", ["2026-02-01T00:00"]),
    ("UTC", "@yearly", "2026-01-31T00:00", ["2027-01-01T00:00"]),
    ("UTC", "@annually", "2026-01-31T00:00", ["2027-01-01T00:00"]),
]


@pytest.mark.parametrize(("zone", "expression", "since", "expected"), TABLE)
def test_the_calendar(zone: str, expression: str, since: str, expected: list[str]) -> None:
    cron, tick, found = Cron(expression, zone), moment(since), []
    for _ in expected:
        following = cron.after(tick)
        assert following is not None
        tick = following
        found.append(tick)
    assert found == [moment(each) for each in expected]


@pytest.mark.parametrize(
    ("zone", "expression", "since", "expected"), [row for row in TABLE if len(row[1].split()) == 5]
)
def test_the_model_agrees_with_the_calendar(zone: str, expression: str, since: str, expected: list[str]) -> None:
    if any(char in expression for char in "L#") or any(char.isalpha() for char in expression):
        pytest.skip("the model knows numbers only")
    if moment(expected[0]) - moment(since) > 400 * DAY:
        pytest.skip("that many minutes take too long")
    last = min(moment(expected[-1]), moment(since) + 400 * DAY)
    model = list(islice(Model(expression).ticks(zone, moment(since), last + MINUTE), len(expected)))
    assert model == [moment(each) for each in expected if moment(each) <= last]


def test_a_moment_between_two_seconds_counts_as_the_earlier_one() -> None:
    cron = Cron("* * * * * *")
    assert cron.after(moment("2026-01-01T00:00:00.999999")) == moment("2026-01-01T00:00:01")


@pytest.mark.parametrize(
    "expression",
    ["0 0 30 2 *", "0 0 31 2,4,6,9,11 *", "0 0 0 30 2 *", "* * * 31 4 *"],
)
def test_what_never_comes_is_said_soon(expression: str) -> None:
    began = process_time()
    with pytest.raises(CronError):
        Cron(expression, "Europe/Paris")
    assert process_time() - began < 5


def test_what_never_comes_is_another_error_than_what_cannot_be_read() -> None:
    with pytest.raises(NeverFires, match="no date that ever comes"):
        Cron("0 0 30 2 *")
    with pytest.raises(CronError) as failure:
        Cron("0 0 32 1 *")
    assert not isinstance(failure.value, NeverFires)


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("", "expected five fields"),
        ("* * * *", "expected five fields"),
        ("* * * * * * *", "expected five fields"),
        ("60 * * * *", "minute"),
        ("* 24 * * *", "hour"),
        ("* * * 13 *", "month"),
        ("* * * * FOO", "day-of-week"),
        ("*/0 * * * *", "minute"),
        ("5-1 * * * *", "minute"),
        ("@reboot", "@daily"),
        ("@never", "@daily"),
        ("* " * 2000, "1000 characters"),
    ],
)
def test_what_cannot_be_read_is_said(expression: str, reason: str) -> None:
    with pytest.raises(CronError, match=reason):
        Cron(expression)


def test_a_zone_that_is_none_is_said() -> None:
    with pytest.raises(ValueError, match="no time zone 'Europe/Pariss'"):
        Cron("* * * * *", "Europe/Pariss")
