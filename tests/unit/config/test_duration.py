from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from runner.config.duration import format_duration, parse_duration
from runner.config.rate import RateField
from runner.policies.rate import Rate


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("25ms", 0.025),
        ("1h30m", 5400),
        ("7d", 604_800),
        ("2w", 1_209_600),
        ("0.5s", 0.5),
        ("0s", 0),
        ("10us", 0.00001),
        ("1h1m1s1ms", 3661.001),
    ],
)
def test_parse(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "wrong",
    [
        30,
        1.5,
        None,
        True,
        "",
        "30",
        "s",
        "-30s",
        "30 s",
        "30S",
        "1h, 30m",
        "5mm",
        "1y",
        "nan",
        "infs",
        "1..5s",
        "٣s",
        [],
        {},
    ],
)
def test_what_is_no_duration(wrong: object) -> None:
    with pytest.raises(ValueError, match="expected a duration such as 30s, 25ms, 1h30m or 7d, got "):
        parse_duration(wrong)


def test_ten_years_are_the_most() -> None:
    with pytest.raises(ValueError, match="expected at most 3653d, got '999999999999w'"):
        parse_duration("999999999999w")


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(), "0s"),
        (timedelta(seconds=90), "1m30s"),
        (timedelta(hours=168), "7d"),
        (timedelta(milliseconds=1500), "1s500ms"),
        (timedelta(seconds=-5), "-5s"),
    ],
)
def test_format(duration: timedelta, text: str) -> None:
    assert format_duration(duration) == text


@settings(deadline=None)
@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=3653)))
def test_what_is_written_is_read_as_the_same(duration: timedelta) -> None:
    assert parse_duration(format_duration(duration)) == duration


@settings(deadline=None)
@given(st.text(alphabet="0123456789.hmsdwu -+é", max_size=12))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        duration = parse_duration(text)
    except ValueError:
        return
    assert timedelta(0) <= duration <= timedelta(days=3653)


RATE: TypeAdapter[Rate] = TypeAdapter(RateField)


def test_rates() -> None:
    assert RATE.validate_python("100/m") == RATE.validate_python(Rate(100, "m")) == Rate(100, "m")
    assert RATE.dump_json(Rate(20, "s")) == b'"20/s"'


@pytest.mark.parametrize("wrong", ["0/s", "20", "20/d", "-1/s", "1.5/s", "20 / s", 20, None, "٣/s"])
def test_what_is_no_rate(wrong: object) -> None:
    with pytest.raises(ValueError, match="expected a rate such as 20/s"):
        RATE.validate_python(wrong)
