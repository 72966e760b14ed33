from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.cli.options import DURATION, MOMENT, SINCE


@given(
    st.datetimes(
        datetime(1900, 1, 1),
        datetime(8999, 12, 31),
        timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]),
    )
)
def test_a_time_with_an_offset_is_the_same_moment_in_utc(time: datetime) -> None:
    moment = MOMENT.convert(time.isoformat(), None, None)
    assert moment == time
    assert moment.tzinfo is UTC


def test_an_age_counts_back_from_now() -> None:
    before = datetime.now(UTC)
    moment = SINCE.convert("1h30m", None, None)
    assert before <= moment + timedelta(minutes=90) <= datetime.now(UTC)


@pytest.mark.parametrize("text", ["", "now", "2026-01-31", "2026-01-31T12:00:00", "-1h", "1"])
def test_what_is_no_time_is_refused(text: str) -> None:
    for kind in (MOMENT, SINCE):
        with pytest.raises(click.BadParameter):
            kind.convert(text, None, None)


@pytest.mark.parametrize(
    "text", ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00", "9999-12-31T23:59:59Z"]
)
def test_the_ends_of_the_calendar_are_refused_with_what_is_expected(text: str) -> None:
    for kind in (MOMENT, SINCE):
        with pytest.raises(click.BadParameter, match="expected a year from 1900 to 8999"):
            kind.convert(text, None, None)


def test_an_age_is_no_future_time() -> None:
    with pytest.raises(click.BadParameter):
        MOMENT.convert("1h", None, None)


def test_a_duration_is_written_as_in_the_configuration() -> None:
    assert DURATION.convert("1m500ms", None, None) == timedelta(minutes=1, milliseconds=500)
    with pytest.raises(click.BadParameter, match="30s"):
        DURATION.convert("2 seconds", None, None)
