"""Whatever a receiver says of itself, a post has an outcome."""

from __future__ import annotations

from datetime import timedelta

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runner.delivery import Failed, Outcome
from runner.sinks.http.answer import Answer
from runner.sinks.http.outcomes import Meaning

JSON = {"content-type": "application/json"}
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)


def told(body: object, count: int = 1) -> list[Outcome]:
    return Meaning().outcomes(Answer(200, JSON, orjson.dumps(body, default=str), complete=True), count)


@given(st.fixed_dictionaries({"status": VALUES, "retry_after": VALUES, "reason": VALUES}))
@example({"status": 503, "retry_after": 1e308, "reason": 1})
@example({"status": 503, "retry_after": -1, "reason": None})
def test_an_outcome_of_a_batch_may_be_anything(given_: dict[str, object]) -> None:
    try:
        found = told({"outcomes": [given_]})
    except orjson.JSONEncodeError:
        return
    assert len(found) == 1


@pytest.mark.parametrize("member", ["retry_after", "reason"])
def test_an_outcome_that_is_nested_too_deeply_to_be_written_is_malformed(member: str) -> None:
    """The text of a list in a list in a list, a thousand times over, is a RecursionError."""
    body = b'{"outcomes": [{"status": 503, "%b": %b%b}]}' % (member.encode(), b"[" * 1000, b"]" * 1000)
    [found] = Meaning().outcomes(Answer(200, JSON, body, complete=True), 1)
    assert isinstance(found, Failed)


@given(st.text(max_size=60))
@example("Mon, 01 Jan , 00:00:00 +0000")
@example("Mon, 01 Jan 2026 00:00:00 +99999999")
@example("Mon, 01 Jan 99999999999 00:00:00 +0000")
@example("01-01-")
@example("-" * 40)
def test_any_retry_after_is_a_wait_or_none(value: str) -> None:
    for headers in ({"retry-after": value}, {"retry-after": "Mon, 01 Jan 2035 00:00:00 GMT", "date": value}):
        outcome = Meaning().outcome(503, headers, b"")
        assert isinstance(outcome, Failed)
        assert outcome.retry_after is None or outcome.retry_after >= timedelta(0)
