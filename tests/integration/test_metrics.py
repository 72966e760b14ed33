"""Every figure of `/metrics`, against what the tables say after a known load."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import func, select

from runner import Event, Failed, Rejected, Runner, load
from runner.storage.tables import attempts, deliveries, delivery_states, dispatch, events, scheduled, subscriptions
from tests.support.eventually import eventually
from tests.support.http import ask

from .buses import Bus, running

API = "api: {listen: '127.0.0.1:0'}\n"

NAMES = """
    runner_events_published_total runner_publish_seconds runner_deliveries_total runner_delivery_seconds
    runner_latency_seconds runner_attempts_total runner_backlog runner_oldest_due_seconds runner_queue_events
    runner_oldest_queued_seconds runner_breaker_open runner_wakes_total runner_strategy_hears runner_claims_total
    runner_leases_lost_total runner_loop_lag_seconds runner_loop_stalled_seconds runner_store_up
    runner_schedule_missed_total runner_build_info
"""
OF_THE_PROCESS = "process_resident_memory_bytes process_cpu_seconds_total process_open_fds process_start_time_seconds"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(params=["sqlite", "postgres"])
def dsn(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("tables_file" if request.param == "sqlite" else "tables_dsn"))


@pytest.fixture
async def bus(dsn: str, tmp_path: Path) -> AsyncIterator[Bus]:
    async with running(tmp_path, dsn) as bus:
        yield bus


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.api.depths._FRESH", 0.0)


async def scrape(runner: Runner) -> Samples:
    answer = await asyncio.to_thread(ask, runner.addresses[0], "/metrics")
    assert answer.status == 200
    families = text_string_to_metric_families(answer.body.decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def at(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"runner_{name}", tuple(sorted(labels.items()))]


async def test_every_figure_is_what_the_tables_say(bus: Bus) -> None:
    tried: Counter[int] = Counter()

    def good(event: Event) -> None:
        return

    async def flaky(event: Event) -> object:
        """Fails at first, then at last; a third of them is refused."""
        number = event.json()["n"]
        tried[number] += 1
        if number % 3 == 0:
            return Rejected("never")
        return Failed("not yet") if tried[number] == 1 else None

    runner = load(bus.write(API))
    runner.subscribe("good", good)
    runner.subscribe("flaky", flaky, types=["odd"], retry={"delay": "1s", "jitter": 0})
    async with runner:
        made = [Event.new("odd" if n % 2 else "even", {"n": n}, source=f"/s/{n % 2}", id=str(n)) for n in range(60)]
        await runner.publish_many(made)
        await asyncio.gather(*[runner.publish(each) for each in made[:10]])  # duplicates
        await runner.publish(Event.new("odd", {"n": 99}, source="/s/1"), delay=timedelta(hours=1))
        ended = select(func.count()).where(delivery_states.c.state.in_(["delivered", "dead"]))

        async def done() -> bool:
            async with bus.database.engine.begin() as connection:
                return await connection.scalar(ended) == 90

        await eventually(done)
        await eventually(lambda: _counted(runner, 90))
        samples = await scrape(runner)

    rows = await bus.database.rows(deliveries)
    names = {row["id"]: row["name"] for row in await bus.database.rows(subscriptions)}
    states = Counter((names[row["subscription_id"]], row["state"]) for row in rows)
    assert set(names.values()) == {"good", "flaky"}
    for name in names.values():
        for outcome in ("delivered", "dead"):
            assert at(samples, "deliveries_total", subscription=name, outcome=outcome) == states[name, outcome]
        assert at(samples, "latency_seconds_count", subscription=name) == states[name, "delivered"]
        assert at(samples, "breaker_open", subscription=name) == 0.0
        assert at(samples, "oldest_due_seconds", subscription=name) == 0.0
        for state in ("pending", "leased", "dead"):
            assert at(samples, "backlog", subscription=name, state=state) == states[name, state]

    on_record = await bus.database.rows(attempts)
    failed = sum(row["error"] is not None for row in on_record)
    assert at(samples, "attempts_total", subscription="good", result="accepted") == 60
    results = {
        result: at(samples, "attempts_total", subscription="flaky", result=result)
        for result in ("accepted", "failed", "rejected")
    }
    assert results == {"accepted": 20, "failed": 20, "rejected": 10}
    assert results["failed"] + results["rejected"] == failed
    assert at(samples, "delivery_seconds_count", subscription="flaky") == sum(results.values())
    assert at(samples, "delivery_seconds_count", subscription="good") == 60

    recorded = Counter(row["source"] for row in await bus.database.rows(events))
    for source, count in recorded.items():
        assert at(samples, "events_published_total", source=source) == count
    assert at(samples, "publish_seconds_count") == 12
    assert at(samples, "publish_seconds_bucket", le="+Inf") == 12
    assert at(samples, "queue_events") == len(await bus.database.rows(dispatch)) == 0
    assert at(samples, "scheduled_events") == len(await bus.database.rows(scheduled)) == 1
    assert at(samples, "oldest_queued_seconds") == 0.0
    assert at(samples, "store_up") == 1.0
    assert at(samples, "leases_lost_total") == 0
    assert at(samples, "claims_total") >= 1
    assert at(samples, "loop_stalled_seconds", loop="claim") < 5
    assert at(samples, "loop_lag_seconds") >= 0
    sums = {name: at(samples, "latency_seconds_sum", subscription=name) for name in names.values()}
    assert all(0 < total < 60 * 30 for total in sums.values())
    assert sums["flaky"] / 20 > sums["good"] / 60  # it was tried twice, with a pause in between


async def _counted(runner: Runner, count: int) -> bool:
    samples = await scrape(runner)
    return sum(value for (name, _), value in samples.items() if name == "runner_deliveries_total") == count


async def test_all_names_are_there_and_their_labels_are_bounded(bus: Bus) -> None:
    async with load(bus.write(API)) as runner:
        await runner.publish_many([Event.new("a", source=f"/{n}/{'s' * 60_000}", id=str(n)) for n in range(3)])
        await runner.publish_many([Event.new("a", source=f"/s/{n}", id=str(n)) for n in range(150)])
        answer = await asyncio.to_thread(ask, runner.addresses[0], "/metrics")
        text = answer.body.decode()
        for name in [*NAMES.split(), *(OF_THE_PROCESS.split() if sys.platform == "linux" else ())]:
            assert f"# TYPE {name} " in text or f"# TYPE {name.removesuffix('_total')} " in text, name
        published = {key: value for key, value in (await scrape(runner)).items() if "published" in key[0]}
        assert len([key for key in published if key[0] == "runner_events_published_total"]) == 101
        assert (
            published["runner_events_published_total", (("source", "other"),)] == 53
        )  # those that are too long, and those that are too many
        openmetrics = await asyncio.to_thread(
            lambda: ask(
                runner.addresses[0], "/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"}
            )
        )
        assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
        assert openmetrics.body.rstrip().endswith(b"# EOF")


async def test_what_is_known_by_name_is_counted_from_zero(bus: Bus) -> None:
    """Prometheus sees no increase from nothing to one: no alert on the first dead letter or missed tick would come."""
    runner = load(bus.write(API + "schedules: [{name: yearly, cron: '@yearly', event: {type: tick}}]\n"))
    runner.subscribe("mail", lambda _event: None)
    async with runner:
        await eventually(lambda: _known(runner, "mail"))
        samples = await scrape(runner)
        assert at(samples, "schedule_missed_total", schedule="yearly") == 0
        assert {
            at(samples, "deliveries_total", subscription="mail", outcome=each) for each in ("delivered", "dead")
        } == {0}
        results = ("accepted", "failed", "rejected", "deferred", "lost")
        assert {at(samples, "attempts_total", subscription="mail", result=each) for each in results} == {0}
        assert at(samples, "wakes_total", strategy="polling") >= 0


async def _known(runner: Runner, subscription: str) -> bool:
    return ("runner_breaker_open", (("subscription", subscription),)) in await scrape(runner)


async def test_the_events_of_schedules_are_counted_as_published(bus: Bus) -> None:
    runner = load(bus.write(API + "schedules: [{name: pulse, every: 1s, event: {type: tick}}]\n"))
    async with runner:
        await eventually(lambda: _ticked(runner))
        samples = await scrape(runner)
        recorded = [row for row in await bus.database.rows(events) if row["source"] == "/schedules/pulse"]
        assert 1 <= at(samples, "events_published_total", source="/schedules/pulse") <= len(recorded)
        assert at(samples, "publish_seconds_count") == 0  # nobody waited


async def _ticked(runner: Runner) -> bool:
    key = "runner_events_published_total", (("source", "/schedules/pulse"),)
    return key in await scrape(runner)


async def test_what_waits_is_counted_and_how_long(bus: Bus) -> None:
    runner = load(bus.write(API))
    never = asyncio.Event()

    async def stuck(event: Event) -> None:
        await never.wait()

    runner.subscribe("stuck", stuck, concurrency=1)
    async with runner:
        await runner.publish_many([Event.new("a", source="/s", id=str(n)) for n in range(5)])

        async def waiting() -> Samples:
            samples = await scrape(runner)
            assert at(samples, "backlog", subscription="stuck", state="pending") == 4
            assert at(samples, "backlog", subscription="stuck", state="leased") == 1
            assert at(samples, "oldest_due_seconds", subscription="stuck") > 0
            return samples

        await eventually(waiting)
        never.set()


async def test_a_store_that_is_away_is_told(tmp_path: Path) -> None:
    runner = load(Bus(tmp_path, "postgresql://nobody@127.0.0.1:1/none").write(API))
    starting = asyncio.create_task(runner.start())
    await eventually(lambda: bool(runner.addresses))
    samples = await scrape(runner)
    assert at(samples, "store_up") == 0.0
    assert ("runner_queue_events", ()) not in samples
    starting.cancel()
    await asyncio.wait({starting})
    await runner.stop()


@pytest.mark.parametrize(("more", "status"), [("metrics: false", 404), ("metrics: true", 200)])
async def test_it_can_be_switched_off(tables_file: str, tmp_path: Path, more: str, status: int) -> None:
    path = Bus(tmp_path, tables_file).write(f"api: {{listen: '127.0.0.1:0', {more}}}\n")
    async with load(path) as runner:
        assert (await asyncio.to_thread(ask, runner.addresses[0], "/metrics")).status == status


async def test_a_subscription_that_is_made_again_is_one_series(bus: Bus) -> None:
    runner = load(bus.write(API + "sinks: {log: stdout}\n"))
    async with runner:
        for count in range(2):
            await runner.subscriptions.put("again", {"types": ["again"], "sink": "log"})

            async def settled(count: int = count) -> bool:
                await runner.publish(Event.new("again", source="/s"))
                series = 'runner_deliveries_total{outcome="delivered",subscription="again"}'
                return max((await _lines(runner)).get(series, ["0.0"])) > "0.0"

            await eventually(settled)
            lines = await _lines(runner)
            assert [each for each, values in lines.items() if len(values) > 1] == []
            await runner.subscriptions.remove("again")

            async def gone() -> bool:
                return not any('subscription="again"' in each for each in await _lines(runner))

            await eventually(gone)


async def _lines(runner: Runner) -> dict[str, list[str]]:
    """Return the values of each series as they stand in the answer."""
    answer = await asyncio.to_thread(ask, runner.addresses[0], "/metrics")
    found: dict[str, list[str]] = {}
    for line in answer.body.decode().splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found.setdefault(name, []).append(value)
    return found
