"""The scheduler beside a store in memory: when it looks, what it writes, and what it tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from runner.errors import StorageUnavailable
from runner.periodic import scheduler
from runner.periodic.scheduler import Missed, Scheduler
from runner.policies.schedule import EventTemplate, Schedule
from runner.policies.ticking import EXAMINED, Standing
from runner.service.tally import Tally
from runner.storage.contract.schedules import Due, DueSchedule, Fired, Firing, Schedules
from tests.support.eventually import eventually

SECOND = timedelta(seconds=1)
HOUR = 3600 * SECOND


class Book:
    """What a store knows of schedules, and what it was asked."""

    def __init__(self) -> None:
        self.began = monotonic()
        self.start = datetime(2026, 6, 1, 12, tzinfo=UTC)
        self.rows: dict[int, DueSchedule] = {}
        self.look_at: dict[int, datetime] = {}
        self.looks = 0
        self.fired: list[Firing] = []
        self.away = False
        self.others_first = 0  # times that somebody else is faster
        self.taken = 0  # events that were recorded before, by somebody else

    @property
    def now(self) -> datetime:
        return self.start + timedelta(seconds=monotonic() - self.began)

    def put(self, schedule: Schedule, tick: datetime | None = None) -> None:
        first = tick or schedule.after(self.now)
        assert first is not None
        id = len(self.rows) + 1
        self.rows[id] = DueSchedule(id, 0, schedule.name, schedule.to_json(), Standing(first))
        self.look_at[id] = schedule.due_at(first)

    async def due(self, limit: int) -> Due:
        self.looks += 1
        if self.away:
            raise StorageUnavailable("it is away")
        now = self.now
        due = sorted((at, id) for id, at in self.look_at.items() if at <= now)[:limit]
        waits = [at - now for at in self.look_at.values() if at > now]
        return Due([self.rows[id] for _, id in due], now, min(waits, default=None), len(due) == limit)

    async def fire(self, firings: Sequence[Firing]) -> Fired:
        if self.others_first:
            self.others_first -= 1
            return Fired(frozenset(), 0)
        for each in firings:
            id = each.seen.id
            del self.look_at[id]
            if each.look_at is not None and each.tick is not None:
                self.look_at[id] = each.look_at
                self.rows[id] = replace(each.seen, standing=Standing(each.tick, False, each.queued_until))
        self.fired += firings
        events = sum(len(each.occurrences) for each in firings) - self.taken
        return Fired(frozenset(each.seen.id for each in firings), events)

    def events(self) -> list[str]:
        return [each.event.id for firing in self.fired for each in firing.occurrences]


@pytest.fixture
def book() -> Book:
    return Book()


class Told:
    def __init__(self) -> None:
        self.announced = 0
        self.missed: list[Missed] = []

    def announce(self) -> None:
        self.announced += 1


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def running(book: Book, told: Told) -> Scheduler:
    return Scheduler(cast("Schedules", book), Tally(), announce=told.announce, on_missed=told.missed.append)


def every(length: timedelta, name: str = "pulse", **fields: Any) -> Schedule:
    return Schedule(name=name, event=EventTemplate(type="t"), every=length, **fields)


async def test_each_tick_is_published_when_it_is_due(book: Book, told: Told, running: Scheduler) -> None:
    book.put(every(SECOND))
    await running.start()
    await eventually(lambda: len(book.fired) >= 2)
    await running.stop()
    assert book.events()[:2] == ["pulse/2026-06-01T12:00:01Z", "pulse/2026-06-01T12:00:02Z"]
    assert told.announced == len(book.fired)
    assert book.looks <= 2 * len(book.fired) + 2, "it looks when something is due, and not in between"


async def test_without_schedules_it_sleeps_until_it_is_woken(book: Book, running: Scheduler) -> None:
    await running.start()
    await eventually(lambda: book.looks == 1)
    book.put(every(HOUR), book.start)
    running.wake()
    await eventually(lambda: book.events() == ["pulse/2026-06-01T12:00:00Z"])
    await running.stop()
    assert book.looks <= 3


async def test_a_store_that_is_away_is_tried_again(book: Book, running: Scheduler) -> None:
    book.put(every(HOUR), book.start)
    book.away = True
    await running.start()
    await eventually(lambda: book.looks >= 3)
    assert running.stalled > 0
    book.away = False
    await eventually(lambda: book.events())
    await eventually(lambda: running.stalled == 0)
    await running.stop()


async def test_where_another_instance_is_faster_it_looks_again(book: Book, running: Scheduler) -> None:
    book.put(every(HOUR), book.start)
    book.others_first = 3
    await running.start()
    await eventually(lambda: book.events())
    await running.stop()
    assert book.looks == 4


async def test_what_was_missed_is_told_once_it_is_on_record(book: Book, told: Told, running: Scheduler) -> None:
    book.put(every(HOUR), book.start - 5 * HOUR)
    book.others_first = 2
    with capture_logs() as logs:
        await running.start()
        await eventually(lambda: book.events())
        await running.stop()
    assert told.missed == [Missed("pulse", 5, book.start - 5 * HOUR, book.start - HOUR)]
    [line] = [line for line in logs if line["event"] == "ticks missed"]
    assert (line["schedule"], line["ticks"]) == ("pulse", 5)
    assert (line["first"], line["last"]) == ("2026-06-01T07:00:00Z", "2026-06-01T11:00:00Z")


async def test_what_is_skipped_is_said(book: Book, told: Told, running: Scheduler) -> None:
    book.put(every(HOUR, overlap="skip"), book.start)
    book.rows[1] = replace(book.rows[1], standing=replace(book.rows[1].standing, busy=True))
    with capture_logs() as logs:
        await running.start()
        await eventually(lambda: book.fired)
        await running.stop()
    assert [line["ticks"] for line in logs if "skipped" in line["event"]] == [1]
    assert (book.events(), told.announced, told.missed) == ([], 0, [])


async def test_a_tick_whose_event_somebody_has_recorded_before_is_said(book: Book, running: Scheduler) -> None:
    book.put(every(HOUR), book.start)
    book.taken = 1
    with capture_logs() as logs:
        await running.start()
        await eventually(lambda: book.fired)
        await running.stop()
    [line] = [line for line in logs if line["event"].startswith("ticks taken")]
    assert (line["log_level"], line["count"], line["schedules"]) == ("warning", 1, ["pulse"])


async def test_one_that_cannot_be_read_is_put_off_and_delays_nobody(book: Book, running: Scheduler) -> None:
    book.put(every(HOUR, "broken"), book.start)
    book.put(every(HOUR, "sound"), book.start)
    book.rows[1] = replace(book.rows[1], stored={"every": "x"})
    with capture_logs() as logs:
        await running.start()
        await eventually(lambda: book.events())
        await running.stop()
    assert book.events() == ["sound/2026-06-01T12:00:00Z"]
    assert [line["schedule"] for line in logs if line["event"] == "schedule cannot be read"] == ["broken"]
    [put_off] = [each for each in book.fired if not each.occurrences]
    assert put_off.tick == book.start
    assert put_off.look_at is not None
    assert put_off.look_at > book.start + 50 * SECOND


async def test_years_that_were_missed_are_written_bit_by_bit(book: Book, told: Told, running: Scheduler) -> None:
    book.put(every(SECOND), book.start - 7200 * SECOND)
    await running.start()
    await eventually(lambda: book.events())
    await running.stop()
    assert max(firing.missed for firing in book.fired) <= EXAMINED
    first = book.fired[0].seen.standing.tick
    last = datetime.fromisoformat(book.events()[0].removeprefix("pulse/"))
    assert sum(each.count for each in told.missed[: len(book.fired)]) >= 7200
    assert told.missed[0].first == first
    assert told.missed[-1].last < last or len(book.events()) > 1


async def test_a_write_has_bounds(book: Book, running: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    """In schedules, in ticks, and in bytes of data."""
    monkeypatch.setattr(scheduler, "_BATCH", 10)
    monkeypatch.setattr(scheduler, "_BYTES", 3000)
    for number in range(25):
        schedule = every(HOUR, f"s{number}", catch_up="all")
        book.put(replace(schedule, event=EventTemplate(type="t", data='"' + "x" * 998 + '"')), book.start - 4 * HOUR)
    sizes: list[int] = []
    fire = book.fire

    async def counted(firings: Sequence[Firing]) -> Fired:
        sizes.append(sum(len(each.occurrences) for each in firings))
        return await fire(firings)

    book.fire = counted  # type: ignore[method-assign]
    await running.start()
    await eventually(lambda: len(book.events()) == 125)
    await running.stop()
    assert max(sizes) <= 4
    assert len(set(book.events())) == 125
