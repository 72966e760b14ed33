from __future__ import annotations

import re
import shlex
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.delivery import DeliveryState
from runner.diagnosis.matching import Clause, mismatch
from runner.diagnosis.shapes import answer_json
from runner.diagnosis.why import Answer, Reason, why
from runner.event import Event
from runner.policies.breaker import Trip
from runner.policies.filter import COMPARISONS
from runner.policies.rate import Rate
from runner.storage.contract.overview import Hold, Turned
from runner.storage.contract.records import EventView, InstanceView
from runner.storage.contract.registry import Instance, Registered
from runner.subscription import Matcher, Subscription

from .cli.test_program import parse

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
CRM = Subscription(name="crm", sink="crm", types=("order.*",))
ORDER = Event.new("order.created", source="/shop", id="e1", subject="eu/1")
HOLDER = 77
TOKEN = HOLDER << 32 | 5


@pytest.fixture(autouse=True)
def configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the commands in the cures."""
    monkeypatch.setenv("RUNNER_CONFIG", "runner.yaml")


def event(**fields: Any) -> EventView:
    view = EventView(seq=12, event=ORDER, created_at=NOW - HOUR, state="queued")
    return replace(view, **fields)


def hold(subscription: Subscription = CRM, **fields: Any) -> Hold:
    registered = Registered(1, subscription, fields.pop("paused", False), "file", fields.pop("breaker", None))
    old = NOW - 2 * HOUR
    known = Hold(now=NOW, version=4, registered=registered, active=True, created_at=old, updated_at=old)
    return replace(known, **fields)


def instance(**fields: Any) -> InstanceView:
    view = InstanceView(Instance("i1", "app1", 7, "0.1"), NOW - HOUR, NOW, True, sinks=["crm"], holder=HOLDER)
    return replace(view, **fields)


def answer(held: Hold, *instances: InstanceView, of: EventView | None = None) -> Answer:
    found = why(of or event(), held, instances or (instance(),))
    assert answer_json(of or event(), "crm", found)["reasons"]
    for each in found.reasons:
        for command in re.findall(r"runner (.*)", each.cure):
            parse(shlex.split(command))
    return found


def kinds(held: Hold, *instances: InstanceView, of: EventView | None = None) -> list[str]:
    return [each.kind for each in answer(held, *instances, of=of).reasons]


def reason(held: Hold, *instances: InstanceView) -> Reason:
    [found] = answer(held, *instances).reasons
    return found


class TestMatching:
    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            (
                {"types": ("refund", "invoice.*")},
                "types: expected 'refund' or 'invoice.*', the event has 'order.created'",
            ),
            ({"source": "/web/*"}, "source: expected '/web/*', the event has '/shop'"),
            (
                {"filter": {"prefix": {"subject": "us/"}}},
                "filter.prefix.subject: expected to begin with 'us/', the event has 'eu/1'",
            ),
            (
                {"filter": {"all": [{"exact": {"source": "/shop"}}, {"suffix": {"tenant": "x"}}]}},
                "filter.all[1].suffix.tenant: expected to end with 'x', the event has none",
            ),
            (
                {"filter": {"any": [{"exact": {"subject": "a"}}, {"exact": {"subject": "b"}}]}},
                "filter.any: expected one of its 2 filters to hold, the event has subject 'eu/1'",
            ),
            (
                {"filter": {"not": {"prefix": {"subject": "eu/"}}}},
                "filter.not: expected its filter not to hold, the event has subject 'eu/1'",
            ),
        ],
    )
    def test_the_clause_and_the_value_are_named(self, fields: dict[str, Any], said: str) -> None:
        assert str(mismatch(Subscription(name="s", sink="s", **fields), ORDER)) == said

    @pytest.mark.parametrize("dialect", COMPARISONS)
    def test_every_comparison_is_explained(self, dialect: str) -> None:
        found = mismatch(Subscription(name="s", sink="s", filter={dialect: {"subject": "never"}}), ORDER)
        assert found == Clause(f"filter.{dialect}.subject", COMPARISONS[dialect].expected.format("never"), "'eu/1'")

    def test_one_for_dead_letters_matches_no_event(self) -> None:
        found = mismatch(Subscription(name="s.dead-letter", sink="s", dead_letter_of="s"), ORDER)
        assert found is not None
        assert found.clause == "dead_letter"


TEXTS = st.sampled_from(["eu/1", "eu/", "/shop", "1", "order.created", "x"])
LEAVES = st.dictionaries(
    st.sampled_from(sorted(COMPARISONS)),
    st.dictionaries(st.sampled_from(["subject", "source", "type", "tenant"]), TEXTS, min_size=1, max_size=2),
    min_size=1,
    max_size=2,
)
FILTERS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"all": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"any": parts}),
        inner.map(lambda part: {"not": part}),
    ),
    max_leaves=5,
)


@given(
    types=st.lists(st.sampled_from(["*", "order.*", "order.created", "refund", "*.created"]), max_size=2),
    source=st.none() | st.sampled_from(["*", "/shop", "/s*", "/web"]),
    filter=st.none() | FILTERS,
)
def test_a_clause_fails_exactly_where_the_event_does_not_match(
    types: list[str], source: str | None, filter: dict[str, Any] | None
) -> None:
    subscription = Subscription(name="s", sink="s", types=tuple(types), source=source, filter=filter)
    matches = bool(Matcher([(subscription, 1)]).match(ORDER))
    assert (mismatch(subscription, ORDER) is None) == matches


class TestWithoutDelivery:
    def test_it_does_not_match(self) -> None:
        other = replace(CRM, types=("refund",))
        found = answer(hold(other, queued=True))
        assert found.failing is not None
        assert [each.kind for each in found.reasons] == ["not_matched"]
        assert (found.version, found.written_at) == (4, NOW - 2 * HOUR)

    def test_scheduled_queued_or_being_dispatched(self) -> None:
        assert reason(hold(scheduled_at=NOW + HOUR)).until == NOW + HOUR
        assert kinds(hold(queued=True)) == ["queued"]
        ended = hold(queued=True, dispatch_token=TOKEN, dispatch_until=NOW - SECOND)
        assert kinds(ended) == ["queued"]
        found = reason(replace(ended, dispatch_until=NOW + SECOND))
        assert (found.kind, found.until) == ("dispatching", NOW + SECOND)
        assert "instance i1 (app1:7)" in found.cause

    def test_what_holds_all_of_the_subscription_is_said_with_it(self) -> None:
        assert kinds(hold(queued=True, paused=True), instance(alive=False)) == ["queued", "paused", "no_live_instance"]

    def test_it_was_dispatched_before_the_subscription_was_there(self) -> None:
        settled = event(state="settled")
        assert kinds(hold(created_at=NOW), of=settled) == ["newer"]
        assert kinds(hold(updated_at=NOW), of=settled) == ["changed"]
        assert kinds(hold(active=False), of=settled) == ["inactive"]
        assert kinds(hold(), of=settled) == ["unrecorded"]
        assert kinds(hold(), of=event(state="cancelled")) == ["cancelled"]


class TestDelivery:
    PENDING = hold(state=DeliveryState.PENDING, due_at=NOW - SECOND, attempts=1)
    LEASED = hold(state=DeliveryState.LEASED, due_at=NOW + SECOND, attempts=1, token=TOKEN)

    def test_what_is_over(self) -> None:
        assert kinds(hold(state=DeliveryState.DELIVERED)) == ["delivered"]
        dead = reason(hold(state=DeliveryState.DEAD, attempts=3, last_error="refused"))
        assert (dead.cause, dead.cure) == ("given up after 3 attempts: refused", "runner deliveries retry 12 crm")

    @pytest.mark.parametrize(("expiry", "cure"), [(NOW, "publish it anew"), (NOW + SECOND, "runner deliveries retry")])
    def test_a_dead_one_that_has_expired_is_not_retried(self, expiry: datetime, cure: str) -> None:
        old = event(event=ORDER.replace(extensions={"expirytime": expiry.isoformat()}))
        held = hold(state=DeliveryState.DEAD, attempts=0, last_error="expired")
        [found] = answer(held, of=old).reasons
        assert found.cure.startswith(cure)
        assert kinds(hold(state=DeliveryState.CANCELLED)) == ["cancelled"]

    def test_nothing_holds_it(self) -> None:
        assert kinds(self.PENDING) == ["due"]

    def test_it_waits_to_be_retried(self) -> None:
        found = reason(replace(self.PENDING, due_at=NOW + MINUTE, last_error="refused"))
        assert (found.kind, found.until) == ("retry", NOW + MINUTE)

    def test_it_runs_and_where(self) -> None:
        assert "instance i1 (app1:7) holds its lease" in reason(self.LEASED).cause
        assert "an instance that does not report" in reason(self.LEASED, instance(holder=HOLDER + 1)).cause
        assert kinds(replace(self.LEASED, due_at=NOW - SECOND)) == ["lease_ended"]

    def test_it_was_deferred(self) -> None:
        found = reason(replace(self.LEASED, token=None))
        assert (found.kind, found.until, found.cure) == ("deferred", NOW + SECOND, "runner deliveries ack 12 crm")

    def test_the_breaker(self) -> None:
        tripped = Registered(1, CRM, False, "file", Trip(1, MINUTE))
        found = reason(replace(self.PENDING, registered=tripped))
        assert (found.kind, found.until) == ("breaker", NOW + MINUTE)
        failed = reason(replace(self.PENDING, registered=tripped, last_error="HTTP 500"))
        assert failed.cause == "its breaker is open; its last error: HTTP 500"

    def test_nobody_serves_it_or_none_is_alive(self) -> None:
        assert kinds(self.PENDING, instance(sinks=["log"])) == ["nobody_serves"]
        assert kinds(self.PENDING, instance(sinks=["log"]), instance()) == ["due"]
        assert kinds(self.PENDING, instance(sinks=None)) == ["due"]
        assert kinds(self.PENDING, instance(alive=False)) == ["no_live_instance"]

    def test_its_line(self) -> None:
        ordered = hold(replace(CRM, order_by="subject"), state=DeliveryState.PENDING, due_at=NOW)
        behind = reason(replace(ordered, turn=Turned("eu/1", 9, None)))
        assert (behind.kind, behind.cure) == ("order", "runner why 9 crm")
        assert "event 9 of the same subject 'eu/1' goes first" in behind.cause
        assert "event 8 was published earlier" in reason(replace(ordered, turn=Turned("eu/1", 12, 8))).cause
        assert kinds(replace(ordered, turn=Turned("eu/1", 12, None))) == ["due"]

    def test_its_rate(self) -> None:
        paced = hold(replace(CRM, rate=Rate.parse("1/m")), state=DeliveryState.PENDING, due_at=NOW)
        found = reason(replace(paced, paced_until=NOW + 30 * SECOND))
        assert (found.kind, found.until) == ("rate", NOW + 30 * SECOND)
        assert kinds(replace(paced, paced_until=NOW - SECOND)) == ["due"]

    def test_all_that_hold_it_are_named(self) -> None:
        held = hold(
            paused=True,
            breaker=Trip(1, MINUTE),
            state=DeliveryState.PENDING,
            due_at=NOW + HOUR,
            last_error="refused",
        )
        assert kinds(held, instance(sinks=[])) == ["paused", "breaker", "nobody_serves", "retry"]


@given(
    state=st.none() | st.sampled_from(DeliveryState),
    queued=st.booleans(),
    due=st.none() | st.integers(-5, 5).map(lambda seconds: NOW + seconds * SECOND),
    token=st.none() | st.just(TOKEN),
    paused=st.booleans(),
    active=st.booleans(),
    alive=st.booleans(),
    matching=st.booleans(),
)
def test_there_is_always_a_reason_and_what_ends_by_itself_ends_later(
    state: DeliveryState | None,
    queued: bool,
    due: datetime | None,
    token: int | None,
    paused: bool,
    active: bool,
    alive: bool,
    matching: bool,
) -> None:
    subscription = CRM if matching else replace(CRM, types=("refund",))
    held = hold(subscription, state=state, queued=queued, due_at=due, token=token, paused=paused, active=active)
    found = answer(held, instance(alive=alive))
    assert found.reasons
    assert (found.failing is None) == matching
    assert all(each.until is None or each.until > NOW or each.kind == "deferred" for each in found.reasons)
