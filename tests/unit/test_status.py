from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.diagnosis.figures import latency, number, percent
from runner.diagnosis.shapes import report_json
from runner.diagnosis.status import Subscribed, Verdict, judge, snapshot, unreachable
from runner.event import Event
from runner.policies.breaker import Trip
from runner.service.histogram import Histogram
from runner.storage.contract.overview import MOST, SAMPLE, Load, Queue, Recent
from runner.storage.contract.records import InstanceView
from runner.storage.contract.registry import Configuration, Instance, Registered, StrategyHealth
from runner.storage.contract.throughput import BUS, Flow, Throughput
from runner.subscription import Subscription

from .cli.test_program import parse

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
EMPTY = Queue(now=NOW)


@pytest.fixture(autouse=True)
def configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the commands in the cures."""
    monkeypatch.setenv("RUNNER_CONFIG", "runner.yaml")


def ago(age: timedelta) -> datetime:
    return NOW - age


def instance(name: str = "i1", **fields: object) -> InstanceView:
    view = InstanceView(
        instance=Instance(name, "host", 7, "0.1"),
        started_at=ago(HOUR),
        heartbeat_at=ago(SECOND),
        alive=True,
        progress_at=ago(SECOND),
        running=0,
        sinks=["crm"],
        strategies=[StrategyHealth("polling", None, "every 30 s"), StrategyHealth("nats", True, "")],
    )
    return replace(view, **fields)  # type: ignore[arg-type]  # as the test says


def registered(id: int = 1, name: str = "crm", **fields: object) -> Registered:
    subscription = Subscription(name=name, sink="crm", types=("order.*",))
    return replace(Registered(id, subscription, False, "file"), **fields)  # type: ignore[arg-type]  # as the test says


def verdict(
    queue: Queue = EMPTY,
    events: Sequence[Event] = (),
    instances: Sequence[InstanceView] = (instance(),),
    known: Sequence[tuple[Registered, bool]] = ((registered(), True),),
    load: Load | None = None,
    recent: Recent | None = None,
) -> tuple[Verdict, list[str]]:
    loads, recents = {1: load or Load()}, {1: recent or Recent()}
    report = judge(snapshot(queue, events, instances, known, loads, recents))
    assert all(each.cause and each.cure for each in report.findings)
    assert report_json(report)["exit_code"] == report.verdict
    for each in report.findings:
        for command in re.findall(r"runner ([^;,]*)", each.cure):
            parse(shlex.split(command))
    return report.verdict, [each.kind for each in report.findings]


def orders(count: int, type: str = "order.created") -> list[Event]:
    return [Event.new(type, source="/s") for _ in range(count)]


def test_nothing_amiss_is_healthy() -> None:
    assert verdict() == (Verdict.HEALTHY, [])


class TestInstances:
    def test_none_alive_is_down_whether_anything_waits_or_not(self) -> None:
        assert verdict(instances=[]) == (Verdict.DOWN, ["no_live_instance"])
        assert verdict(instances=[instance(alive=False)]) == (Verdict.DOWN, ["no_live_instance"])

    def test_what_waits_is_counted(self) -> None:
        report = judge(snapshot(Queue(now=NOW, queued=1000), orders(1000), [], [(registered(), True)], {}, {}))
        assert "1,000 waiting" in report.findings[0].cause
        assert report.snapshot is not None
        assert [each.backlog for each in report.snapshot.subscriptions] == [1000]

    def test_stuck_ones(self) -> None:
        stuck = instance("i2", progress_at=ago(MINUTE))
        assert verdict(instances=[instance(), stuck]) == (Verdict.DEGRADED, ["stuck_instance"])
        assert verdict(instances=[stuck]) == (Verdict.DOWN, ["stuck_instance"])

    def test_a_silent_one_beside_others_is_a_note(self) -> None:
        assert verdict(instances=[instance(), instance("i2", alive=False)]) == (Verdict.HEALTHY, ["silent_instance"])

    def test_one_that_goes_on_with_the_file_it_had_is_a_note(self) -> None:
        kept = Configuration("abc", ago(HOUR), "failed", ago(MINUTE), ["runner.yaml:8:7: unknown key"])
        assert verdict(instances=[instance(configuration=kept)]) == (Verdict.HEALTHY, ["not_reloaded"])
        for fine in (None, Configuration("abc", ago(HOUR)), kept._replace(outcome="reloaded", faults=())):
            assert verdict(instances=[instance(configuration=fine)]) == (Verdict.HEALTHY, [])


class TestStrategies:
    DEAF = (StrategyHealth("polling", None, "every 2 s"), StrategyHealth("nats", False, "not connected"))

    def test_a_deaf_one_degrades(self) -> None:
        instances = [instance(), instance("i2", strategies=self.DEAF)]
        report = judge(snapshot(EMPTY, (), instances, (), {}, {}))
        [deaf] = report.findings
        assert (report.verdict, deaf.kind, deaf.subject) == (Verdict.DEGRADED, "deaf", "nats")
        assert "nats is deaf on 1 of 2 instances (host:7): not connected" in deaf.cause

    def test_the_polling_that_is_told_of_is_that_of_the_deaf_one(self) -> None:
        hearing = (StrategyHealth("polling", None, "every 30 s"), StrategyHealth("nats", True, ""))
        instances = [instance(strategies=hearing), instance("i2", strategies=self.DEAF)]
        [deaf] = judge(snapshot(EMPTY, (), instances, (), {}, {})).findings
        assert deaf.cause.endswith("events are found by polling there, every 2 s")

    def test_what_has_not_been_told_yet_is_no_fault(self) -> None:
        assert verdict(instances=[instance(strategies=None)]) == (Verdict.HEALTHY, [])


class TestSubscriptions:
    def test_nobody_serves_it(self) -> None:
        assert verdict(instances=[instance(sinks=[])]) == (Verdict.DEGRADED, ["nobody_serves"])
        assert verdict(instances=[instance(sinks=[]), instance("i2")]) == (Verdict.HEALTHY, [])
        assert verdict(instances=[instance(sinks=[]), instance("i2", sinks=None)]) == (Verdict.HEALTHY, [])
        dead = instance("i2", alive=False)
        assert verdict(instances=[instance(sinks=[]), dead])[0] == Verdict.DEGRADED

    def test_the_cure_of_one_of_a_function_names_the_verb(self) -> None:
        known = [(registered(origin="function:crm"), True)]
        [found] = judge(snapshot(EMPTY, (), [instance(sinks=[])], known, {}, {})).findings
        assert found.cure.endswith("runner subscriptions remove crm")

    @pytest.mark.parametrize("left", [MINUTE, -SECOND])
    def test_an_open_breaker_degrades(self, left: timedelta) -> None:
        known = [(registered(breaker=Trip(1, left)), True)]
        assert verdict(known=known) == (Verdict.DEGRADED, ["breaker_open"])

    def test_dead_deliveries_degrade(self) -> None:
        assert verdict(load=Load(dead=1)) == (Verdict.DEGRADED, ["dead_letters"])

    def test_no_retry_is_proposed_for_what_would_be_late_again(self) -> None:
        def cure(load: Load) -> str:
            [finding] = judge(snapshot(EMPTY, (), (instance(),), ((registered(), True),), {1: load}, {})).findings
            return f"{finding.cause}: {finding.cure}"

        assert "retry" not in cure(Load(dead=2, expired=2))
        assert "2 of them expired undelivered" in cure(Load(dead=2, expired=2))
        assert "publish what is still wanted anew" in cure(Load(dead=2, expired=2))
        assert "deliveries retry" in cure(Load(dead=3, expired=2))
        assert "anew" not in cure(Load(dead=3))

    def test_paused_or_inactive_is_a_note(self) -> None:
        assert verdict(known=[(registered(paused=True), True)]) == (Verdict.HEALTHY, ["paused"])
        assert verdict(known=[(registered(), False)], load=Load(pending=1)) == (Verdict.HEALTHY, ["inactive"])
        assert verdict(known=[(registered(), False)]) == (Verdict.HEALTHY, [])

    def test_who_paused_it_and_when_is_said(self) -> None:
        paused = registered(paused=True, paused_by="ops@bastion", paused_at=ago(MINUTE))
        [found] = judge(snapshot(EMPTY, (), [instance()], [(paused, True)], {}, {})).findings
        assert found.cause == "ops@bastion paused it 1m ago; 0 waiting"

    def test_failing_for_a_minute_degrades(self) -> None:
        failing = Load(pending=1, failing_from=ago(2 * MINUTE))
        assert verdict(load=failing, recent=Recent(last_failure=ago(SECOND))) == (Verdict.DEGRADED, ["failing"])
        assert verdict(load=Load(pending=1, failing_from=ago(SECOND))) == (Verdict.HEALTHY, [])
        since = Recent(last_failure=ago(MINUTE), last_success=ago(SECOND))
        assert verdict(load=failing, recent=since) == (Verdict.HEALTHY, [])

    def test_failing_since_the_first_failure_after_which_nothing_succeeded(self) -> None:
        load = Load(pending=1, failing_from=ago(HOUR))

        def since(**recent: Any) -> datetime | None:
            each = Subscribed(registered=registered(), active=True, load=load, recent=Recent(**recent))
            return each.failing_since

        assert since() == since(last_success=ago(2 * HOUR)) == ago(HOUR)
        assert since(last_success=ago(MINUTE), last_failure=ago(SECOND)) == ago(SECOND)
        assert since(last_success=ago(SECOND), last_failure=ago(MINUTE)) is None


class TestBacklog:
    def seen(self, queue: Queue, events: Sequence[Event], load: Load | None = None) -> Subscribed:
        known = [(registered(), True)]
        [each] = snapshot(queue, events, [instance()], known, {1: load or Load()}, {}).subscriptions
        return each

    def test_events_that_are_not_dispatched_count_where_they_match(self) -> None:
        events = [*orders(2), *orders(3, "refund.made")]
        each = self.seen(Queue(now=NOW, queued=5, oldest_at=ago(HOUR)), events, Load(pending=4, leased=1))
        assert (each.backlog, each.exact, each.oldest_at) == (7, True, ago(HOUR))

    def test_more_than_were_read_are_taken_to_be_alike(self) -> None:
        each = self.seen(Queue(now=NOW, queued=9000), [*orders(100), *orders(900, "refund.made")])
        assert (each.backlog, each.exact) == (900, False)

    @pytest.mark.parametrize(
        ("fields", "sinks", "drains"),
        [
            ({}, None, True),
            ({"paused": True}, None, False),
            ({"breaker": Trip(1, MINUTE)}, None, False),
            ({}, [], False),
        ],
    )
    def test_what_is_held_drains_never(self, fields: dict[str, Any], sinks: list[str] | None, drains: bool) -> None:
        there = instance() if sinks is None else instance(sinks=sinks)
        recent = {1: Recent(delivered=60)}
        seen = snapshot(EMPTY, (), [there], [(registered(**fields), True)], {1: Load(pending=60)}, recent)
        assert seen.drain(seen.subscriptions[0]) == (MINUTE if drains else None)

    def test_an_event_that_cannot_be_read_is_left_out(self) -> None:
        unreadable = orders(1)[0].replace(type="")
        assert self.seen(Queue(now=NOW, queued=2), [*orders(1), unreadable]).backlog == 1

    def test_late_in_the_queue(self) -> None:
        late = Queue(now=NOW, queued=1, oldest_at=ago(2 * MINUTE))
        assert verdict(late) == (Verdict.DEGRADED, ["late_queue"])
        assert verdict(replace(late, oldest_at=ago(SECOND))) == (Verdict.HEALTHY, [])

    def test_the_time_to_drain_is_at_the_rate_of_the_last_minute(self) -> None:
        each = replace(self.seen(EMPTY, (), Load(pending=600)), recent=Recent(delivered=120))
        seen = snapshot(EMPTY, (), [instance()], (), {}, {})
        assert (each.rate(NOW), seen.drain(each)) == (2.0, 5 * MINUTE)
        short = replace(each, recent=Recent(delivered=120, since=ago(10 * SECOND)))
        assert short.rate(NOW) == 12.0
        assert seen.drain(replace(each, recent=Recent())) is None
        assert replace(seen, instances=[]).drain(each) is None

    def test_the_rate_of_more_than_was_looked_at(self) -> None:
        busy = Queue(now=NOW, recorded=SAMPLE, recorded_since=ago(5 * SECOND))
        assert snapshot(busy, (), (), (), {}, {}).rate_in == SAMPLE / 5
        assert snapshot(replace(busy, recorded=60), (), (), (), {}, {}).rate_in == 1.0

    def test_beside_a_busy_subscription_the_rate_is_what_the_instances_have_counted(self) -> None:
        known = [(registered(), True), (registered(2, "slow"), True)]
        counted = Throughput(seconds=300.0, flows={2: Flow(delivered=60), BUS: Flow(published=900)})
        for age, rates in ((10 * SECOND, [500.0, 0.2]), (2 * MINUTE, [83.333, 0.0])):
            recent = {1: Recent(delivered=5000, since=ago(age))}
            status = report_json(judge(snapshot(EMPTY, (), [instance()], known, {}, recent, counted)))
            assert [each["rate_out"] for each in status["subscriptions"]] == rates
            assert status["queue"]["rate_published"] == 3.0

    def test_success_and_latencies_are_told_where_there_are_any(self) -> None:
        flow = Flow(delivered=6, failed=3, dead=1, latency=Histogram({0: 2, 10: 3, 80: 1}))
        counted = Throughput(seconds=60.0, flows={1: flow})
        known = [(registered(), True), (registered(2, "other"), True)]
        told, other = report_json(judge(snapshot(EMPTY, (), (), known, {}, {}, counted)))["subscriptions"]
        names = ("latency_p50", "latency_p95", "latency_p99")
        assert told["success_ratio"] == 0.6
        assert [told[name] for name in names] == [round(flow.latency.quantile(s) or 0, 6) for s in (0.5, 0.95, 0.99)]
        assert [other[name] for name in ("success_ratio", *names)] == [None] * 4

    def test_the_rate_in_of_a_subscription_is_the_share_of_the_last_events_that_it_matches(self) -> None:
        known = [(registered(), True), (registered(2, "gone"), False)]
        queue = Queue(now=NOW, recorded=600, recorded_since=ago(MINUTE))
        recorded = [*orders(1), *orders(3, "refund.made")]
        crm, gone = snapshot(queue, (), (), known, {}, {}, recorded=recorded).subscriptions
        assert (crm.rate_in, gone.rate_in) == (2.5, 0.0)
        [crm, _] = snapshot(EMPTY, (), (), known, {}, {}, recorded=[]).subscriptions
        assert crm.rate_in == 0.0
        told = report_json(judge(snapshot(EMPTY, (), (), known, {}, {})))["subscriptions"]
        assert told[0]["rate_in"] is None

    def test_shares_and_latencies_are_short(self) -> None:
        assert [percent(each) for each in (None, 0.0, 0.5, 0.99996, 1.0)] == ["", "0.0%", "50.0%", "99.9%", "100.0%"]
        seconds = (None, 0.0031, 0.025, 3.21, 99.0, 125.0, 7200.0)
        assert [latency(each) for each in seconds] == ["", "3.1ms", "25ms", "3.2s", "99.0s", "2m5s", "2h"]

    def test_what_is_counted_no_further_says_so(self) -> None:
        assert [number(each) for each in (0, 1000, MOST, MOST + 1)] == ["0", "1,000", "10,000", "10,000+"]
        assert number(12_345, exact=False) == "~12,345"


def test_a_store_that_is_away_is_down() -> None:
    report = unreachable("db:5432: connection refused", "start it")
    assert (report.verdict, report.snapshot) == (Verdict.DOWN, None)
    found = report_json(report)
    assert (found["verdict"], found["exit_code"]) == ("down", 2)
    assert found["findings"][0]["kind"] == "store_away"
    assert (found["store"], found["tables"]) == (False, None)


def test_whether_the_store_is_reached_and_its_tables_are_up_to_date_is_told_as_readyz_tells_it() -> None:
    old = report_json(unreachable("at revision 0001", "runner migrate -c FILE", kind="tables"))
    assert (old["store"], old["tables"]) == (True, False)
    well = report_json(judge(snapshot(EMPTY, (), [instance()], (), {}, {})))
    assert (well["store"], well["tables"]) == (True, True)


MOMENTS = st.none() | st.integers(0, 10_000).map(lambda seconds: ago(timedelta(seconds=seconds)))
COUNTS = st.integers(0, MOST + 1)


@given(
    queue=st.builds(Queue, now=st.just(NOW), queued=COUNTS, oldest_at=MOMENTS, recorded=COUNTS, recorded_since=MOMENTS),
    load=st.builds(Load, pending=COUNTS, leased=COUNTS, dead=COUNTS, oldest_at=MOMENTS, failing_from=MOMENTS),
    recent=st.builds(Recent, delivered=COUNTS, since=MOMENTS, last_success=MOMENTS, last_failure=MOMENTS),
    alive=st.lists(st.booleans(), max_size=3),
    paused=st.booleans(),
    active=st.booleans(),
    read=st.integers(0, 3),
)
def test_whatever_is_seen_there_is_one_verdict_and_it_is_that_of_the_worst_finding(
    queue: Queue, load: Load, recent: Recent, alive: list[bool], paused: bool, active: bool, read: int
) -> None:
    instances = [instance(str(number), alive=each) for number, each in enumerate(alive)]
    known = [(registered(paused=paused), active)]
    report = judge(snapshot(queue, orders(min(read, queue.queued)), instances, known, {1: load}, {1: recent}))
    verdicts = [each.verdict for each in report.findings]
    assert verdicts == sorted(verdicts, reverse=True)
    assert report.verdict == max(verdicts, default=Verdict.HEALTHY)
    assert (report.verdict is Verdict.DOWN) == (not any(alive))
    if load.dead:
        assert report.verdict >= Verdict.DEGRADED
    found = report_json(report)
    assert found["subscriptions"][0]["backlog"] >= load.open
