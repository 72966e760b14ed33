from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.config.retry import Retry
from runner.config.written import Defaults
from runner.errors import EventError
from runner.event import Event
from runner.policies.breaker import BreakerPolicy
from runner.policies.filter import FilterError
from runner.policies.rate import Rate
from runner.policies.retry import RetryPolicy
from runner.runtime.plan import function_subscription
from runner.subscription import Matcher, Subscription, matches_pattern


def event(type: str = "order.created", source: str = "/shop", **attributes: Any) -> Event:
    return Event(type=type, source=source, **attributes)


def matcher(*subscriptions: Subscription) -> Matcher[str]:
    return Matcher((each, each.name) for each in subscriptions)


def subscription(name: str, *types: str, **options: Any) -> Subscription:
    return Subscription(name=name, sink="log", types=types, **options)


# --- patterns --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("order.created", "order.created", True),
        ("order.created", "order.created.v2", False),
        ("order.*", "order.created", True),
        ("order.*", "order.created.v2", True),
        ("order.*", "order.", True),
        ("order.*", "order", False),
        ("order.*", "orderXcreated", False),
        ("*", "anything\nat all", True),
        ("*.created", "order.created", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("a*b*c", "a-b-b-c", True),
        ("a**c", "ac", True),
        ("[ab]*", "a", False),
        ("[ab]*", "[ab]c", True),
    ],
)
def test_patterns(pattern: str, text: str, matches: bool) -> None:
    assert matches_pattern(pattern, text) is matches


@given(st.text("ab*.", max_size=8), st.text("ab.*", max_size=12))
def test_a_star_is_any_run_of_characters(pattern: str, text: str) -> None:
    expression = ".*".join(re.escape(part) for part in pattern.split("*"))
    assert matches_pattern(pattern, text) is bool(re.fullmatch(expression, text, re.DOTALL))


def test_no_pattern_takes_long() -> None:
    assert not matches_pattern("*a" * 30 + "b*", "a" * 2048)


# --- matching --------------------------------------------------------------------------------------


def test_matching_by_type() -> None:
    matching = matcher(
        subscription("exact", "order.created"),
        subscription("other", "order.deleted"),
        subscription("pattern", "order.*"),
        subscription("everything"),
        subscription("several", "user.*", "order.created", "*.created", "order.created"),
    )
    assert matching.match(event()) == ("exact", "pattern", "everything", "several")
    assert matching.match(event(type="user.deleted")) == ("everything", "several")


def test_matching_by_source_and_filter() -> None:
    matching = matcher(
        subscription("eu", source="/shop/eu*"),
        subscription("any source", source="*"),
        subscription("gold", filter={"exact": {"tier": "gold"}}),
        subscription("both", source="/shop/eu", filter={"exact": {"tier": "gold"}}),
    )
    assert matching.match(event(source="/shop/eu")) == ("eu", "any source")
    assert matching.match(event(source="/shop/eu", extensions={"tier": "gold"})) == ("eu", "any source", "gold", "both")
    assert matching.match(event(source="/shop/us")) == ("any source",)


def test_nobody_matches_in_an_empty_set() -> None:
    assert matcher().match(event()) == ()


def test_equal_results_are_the_same_object() -> None:
    matching = matcher(subscription("a", "order.*"), subscription("b"))
    assert matching.match(event()) is matching.match(event(source="/elsewhere"))


def test_what_is_remembered_stays_bounded() -> None:
    matching = matcher(subscription("a", "order.*"))
    for number in range(25_000):
        assert matching.match(event(type=f"order.{number}")) == ("a",)
    assert len(matching._kept) <= 10_000


def test_a_filter_that_does_not_compile_is_refused() -> None:
    with pytest.raises(FilterError):
        matcher(subscription("a", filter={"exat": {}}))


patterns = st.text("ab.*", min_size=1, max_size=6)
subscriptions = st.builds(
    Subscription,
    name=st.uuids().map(str),
    sink=st.just("log"),
    types=st.lists(patterns, max_size=3).map(tuple),
    source=st.none() | patterns,
    filter=st.none() | st.text("ab.", min_size=1, max_size=3).map(lambda value: {"prefix": {"type": value}}),
)


@given(st.lists(subscriptions, max_size=6), st.lists(st.tuples(st.text("ab.", min_size=1), st.text("ab.", min_size=1))))
def test_the_index_finds_what_asking_everyone_finds(
    subscribed: Sequence[Subscription], sent: list[tuple[str, str]]
) -> None:
    def wants(each: Subscription, published: Event) -> bool:
        by_type = not each.types or any(matches_pattern(pattern, published.type) for pattern in each.types)
        by_source = each.source is None or matches_pattern(each.source, published.source)
        by_filter = each.filter is None or published.type.startswith(each.filter["prefix"]["type"])
        return by_type and by_source and by_filter

    matching = matcher(*subscribed)
    for type, source in sent:
        published = event(type, source)
        assert matching.match(published) == tuple(each.name for each in subscribed if wants(each, published))


# --- storing ---------------------------------------------------------------------------------------


def test_the_defaults_come_back() -> None:
    stored = Subscription(name="a", sink="log")
    assert Subscription.from_json("a", json.loads(json.dumps(stored.to_json()))) == stored


def test_what_the_version_before_wrote_can_be_read() -> None:
    stored = Subscription(name="a", sink="log").to_json()
    del stored["retry"]["schedule"], stored["retry"]["max_age"]
    assert Subscription.from_json("a", stored) == Subscription(name="a", sink="log")


durations = st.timedeltas(timedelta(0), timedelta(days=365))


@given(
    st.builds(
        Subscription,
        name=st.just("a"),
        sink=st.text(),
        types=st.lists(st.text()).map(tuple),
        source=st.none() | st.text(),
        filter=st.none() | st.just({"not": {"exact": {"id": "é"}}}),
        concurrency=st.integers(1, 1000),
        batch=st.none() | st.integers(1, 1000),
        timeout=durations,
        retry=st.builds(
            RetryPolicy,
            max_attempts=st.integers(1, 100),
            delay=durations,
            max_delay=durations,
            jitter=st.floats(0, 1),
            schedule=st.lists(durations, max_size=3).map(tuple),
            max_age=st.none() | durations,
        ),
    )
)
def test_every_subscription_survives_being_stored(stored: Subscription) -> None:
    assert Subscription.from_json("a", json.loads(json.dumps(stored.to_json()))) == stored


def test_a_type_that_is_none_is_no_match_and_concerns_everybody() -> None:
    matcher = Matcher([(subscription("exact", "a"), 1), (subscription("all"), 2)])
    for type in ("", b"a", None, "a\n"):
        with pytest.raises(EventError, match="type"):
            matcher.match(Event(type=type, source="/s"))  # type: ignore[arg-type]  # as a store might hold it
        assert matcher.concerned(type) == (1, 2)
    assert matcher.concerned("a") == (1, 2)
    assert matcher.concerned("b") == (2,)


def test_options_of_a_function_are_written_as_in_the_file() -> None:
    made = function_subscription(
        "s",
        "function:s",
        {
            "types": "order.*",
            "rate": "20/s",
            "timeout": "5s",
            "retry": {"max_attempts": 3, "delay": "2s"},
            "breaker": "off",
        },
    )
    assert (made.types, made.rate, made.timeout) == (("order.*",), Rate.parse("20/s"), timedelta(seconds=5))
    assert made.retry == RetryPolicy(max_attempts=3, delay=timedelta(seconds=2))
    assert made.breaker is None


def test_options_of_a_function_may_be_values() -> None:
    options: dict[str, Any] = {
        "types": (),
        "rate": Rate.parse("20/s"),
        "timeout": timedelta(seconds=5),
        "retry": RetryPolicy(max_attempts=3),
        "breaker": BreakerPolicy(failures=2),
        "concurrency": 2,
    }
    assert function_subscription("s", "function:s", options) == Subscription(name="s", sink="function:s", **options)
    assert function_subscription("s", "function:s", {}) == Subscription(name="s", sink="function:s")


def test_what_options_of_a_function_leave_out_comes_from_the_file() -> None:
    defaults = Defaults(Retry(max_attempts=7, delay=timedelta(seconds=3)), None)
    made = function_subscription("s", "function:s", {"retry": {"max_attempts": 2}}, defaults)
    assert made.retry == RetryPolicy(max_attempts=2, delay=timedelta(seconds=3))
    assert made.breaker is None
    assert function_subscription("s", "function:s", {"breaker": {"failures": 3}}, defaults).breaker == BreakerPolicy(
        failures=3
    )
    own = function_subscription("s", "function:s", {"retry": RetryPolicy(), "breaker": BreakerPolicy()}, defaults)
    assert (own.retry, own.breaker) == (RetryPolicy(), BreakerPolicy())


def test_a_function_takes_no_other_sink() -> None:
    with pytest.raises(ValueError, match="sink: the function is the sink"):
        function_subscription("s", "function:s", {"sink": "crm"})


def test_options_of_a_function_that_are_wrong_are_all_named() -> None:
    with pytest.raises(ValueError, match="subscribe\\('s'\\)") as caught:
        function_subscription("s", "function:s", {"retry": {"max_atempts": 3}, "timeout": 5, "order": "subject"})
    text = str(caught.value)
    assert "retry.max_atempts: unknown key; did you mean 'max_attempts'?" in text
    assert "timeout: expected a duration such as 30s" in text
    assert "order: unknown key; did you mean 'order_by'?" in text
