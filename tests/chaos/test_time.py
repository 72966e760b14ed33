"""Schedules while instances die, servers are away and clocks are set: each tick once, and none of them early."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from time import monotonic

import pytest

from tests.support.eventually import eventually
from tests.support.nats import NatsServer
from tests.support.postgres import PostgresServer

from .deployment import Subscriber
from .look import look, sqlite_path
from .trial import Trial

MakeTrial = Callable[..., Trial]
MakePostgres = Callable[..., PostgresServer]
MakeNats = Callable[..., NatsServer]

SECOND = timedelta(seconds=1)
EACH = "{name: pulse, every: 1s, catch_up: all, event: {type: tick}}"
BETWEEN = 10.0  # seconds between two rounds of kills
WHILE = float(os.environ.get("CHAOS_TICKS", "120"))  # seconds of kills
AWAY = float(os.environ.get("CHAOS_AWAY", "10"))  # seconds that a server is away meanwhile
ABSENT = float(os.environ.get("CHAOS_ABSENT", "30"))  # seconds for which nobody, or no server, is there
HOUR = 3600
POLICIES = ("all", "one", "none")


@dataclass(frozen=True, slots=True)
class Tick:
    """An event of a schedule: its nominal time, and when it was recorded."""

    id: str
    time: datetime
    recorded: datetime

    @property
    def late(self) -> timedelta:
        """How long after its time it was recorded."""
        return self.recorded - self.time


async def ticks(trial: Trial, name: str = "pulse") -> list[Tick]:
    """Return what was recorded of a schedule, by its time."""
    query = f"SELECT id, time, created_at FROM events WHERE source = '/schedules/{name}' ORDER BY time, seq"
    with contextlib.suppress(OSError):
        async with look(trial.dsn) as rows:
            return [Tick(row[0], _moment(row[1]), _moment(row[2])) for row in await rows(query)]
    return []


async def counted(trial: Trial, name: str) -> int:
    """Return how many ticks are counted as missed."""
    async with look(trial.dsn) as rows:
        [(number,)] = await rows(f"SELECT missed FROM schedules WHERE name = '{name}'")
    return int(number)


def _moment(value: datetime | int) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromtimestamp(0, UTC) + timedelta(microseconds=value)


def missing(seen: Sequence[Tick], step: timedelta = SECOND) -> list[datetime]:
    """Return the times that are left out between the first and the last one."""
    gaps = []
    for earlier, later in pairwise(seen):
        gaps += [earlier.time + number * step for number in range(1, (later.time - earlier.time) // step)]
    return gaps


async def judge(trial: Trial, seen: Sequence[Tick], step: timedelta = SECOND) -> None:
    """Report every tick that came twice, was left out, came early, or was not delivered."""
    times = Counter(each.time for each in seen)
    trial.require(not (twice := [time for time, number in times.items() if number > 1]), f"twice: {twice[:5]}")
    trial.require(not (gaps := missing(seen, step)), f"left out: {gaps[:5]}")
    early = [each.id for each in seen if each.late < timedelta(0)]
    trial.require(not early, f"recorded before their time: {early[:5]}")

    def undelivered() -> list[str]:
        accepted = {each.id for each in trial.deployment.deliveries.read() if each.step == "accepted"}
        return [each.id for each in seen if each.id not in accepted]

    with contextlib.suppress(AssertionError):
        await eventually(lambda: not undelivered(), trial.bound(20))  # what the dead ones held is delivered by others
    lost = undelivered()
    trial.require(not lost, f"not delivered: {lost[:5]}")
    trial.outcome.published, trial.outcome.delivered, trial.outcome.lost = len(seen), len(seen) - len(lost), len(lost)
    trial.outcome.duplicated = sum(times.values()) - len(times)


async def killed_while_it_ticks(
    trial: Trial,
    postgres: PostgresServer | None = None,
    nats: NatsServer | None = None,
    seconds: float = WHILE,
    runners: int = 5,
    kills: int = 2,
) -> None:
    """Five instances of which two die every ten seconds; between the kills the servers go away, one after the other."""
    await trial.start(Subscriber("note", "note"), runners=runners, schedules=f"[{EACH}]")
    await eventually(lambda: _recorded(trial, 2), 60)
    began, outages = monotonic(), [each for each in (nats, postgres) if each is not None]
    while monotonic() < began + seconds:
        before = monotonic()
        victims = trial.random.sample(list(trial.runners), kills)
        for victim in victims:
            victim.kill()
        trial.note(f"kill -9 of {len(victims)} of {runners}")
        trial.bite("instances killed", len(victims))
        await trial.deployment.start(kills)
        if outages:
            server = outages.pop(0)
            name = type(server).__name__.removesuffix("Server")
            server.kill() if isinstance(server, NatsServer) else server.stop("immediate")
            trial.note(f"{name} is away for {AWAY:g} s")
            await asyncio.sleep(AWAY)  # the fault itself
            await asyncio.to_thread(server.start)
            trial.bite(f"outages of {name}")
        await asyncio.sleep(max(0.0, before + BETWEEN - monotonic()))  # the pace of the kills
    end = datetime.now(UTC)
    await trial.require_soon(lambda: _passed(trial, end), "ticks go on after the last kill", 30)
    seen = [each for each in await ticks(trial) if each.time <= end]
    trial.bite("ticks", len(seen))
    await judge(trial, seen)
    trial.require(await counted(trial, "pulse") == 0, "ticks are counted as missed")
    trial.conclude()


async def absent(trial: Trial, seconds: float = ABSENT) -> None:
    """Nobody is there for a while: each policy does what it says, and what is not published is counted, exactly."""
    await _start_each_policy(trial)
    for runner in trial.runners:
        runner.kill()
    gone = datetime.now(UTC)
    trial.note(f"nobody for {seconds:g} s")
    await asyncio.sleep(seconds)  # the fault itself
    back = datetime.now(UTC)
    await trial.deployment.start(2)
    await judge_policies(trial, gone, back)


async def store_away(trial: Trial, postgres: PostgresServer, nats: NatsServer, seconds: float = ABSENT) -> None:
    """NATS, then the database is away for a while below running instances: as if nobody had been there, once."""
    await _start_each_policy(trial)
    before = {policy: await counted(trial, policy) for policy in POLICIES}
    for length in (AWAY, seconds):
        nats.kill()
        trial.note(f"NATS is away for {length:g} s")
        await asyncio.sleep(length)  # the fault itself
        await asyncio.to_thread(nats.start)
        trial.bite("outages of NATS")
    after = {policy: await counted(trial, policy) for policy in POLICIES}
    trial.require(after == before, f"missed while NATS was away: {after}, {before} before")
    await asyncio.to_thread(postgres.stop, "immediate")
    gone = datetime.now(UTC)
    trial.note(f"PostgreSQL is away for {seconds:g} s")
    await asyncio.sleep(seconds)  # the fault itself
    await asyncio.to_thread(postgres.start)
    trial.bite("outages of PostgreSQL")
    await judge_policies(trial, gone, datetime.now(UTC))


async def _start_each_policy(trial: Trial) -> None:
    entries = [f"{{name: {policy}, every: 2s, catch_up: {policy}, event: {{type: tick}}}}" for policy in POLICIES]
    await trial.start(Subscriber("note", "note"), runners=2, schedules=f"[{', '.join(entries)}]")
    await eventually(lambda: _recorded(trial, 2, "none"), 60)


async def judge_policies(trial: Trial, gone: datetime, back: datetime) -> None:
    """Report what a policy did otherwise than it says about the ticks between two moments, and what it counted."""
    working = datetime.now(UTC)
    await eventually(lambda: _passed(trial, working + 5 * SECOND, "none"), 60)
    for policy in POLICIES:
        seen = await ticks(trial, policy)
        gaps = missing(seen, 2 * SECOND)
        late = [each for each in seen if gone < each.time < back and each.late > 2 * SECOND]
        trial.bite(f"ticks that passed, {policy}", len(gaps) + len(late))
        number = await counted(trial, policy)
        trial.require(number == len(gaps), f"{policy}: {number} counted as missed, {len(gaps)} are left out")
        expected = {"all": len(late) + len(gaps), "one": min(len(late), 1), "none": 0}[policy]
        trial.require(len(late) == expected, f"{policy}: {len(late)} published late, {len(gaps)} left out")
        trial.require(len({each.time for each in seen}) == len(seen), f"{policy}: a tick came twice")
    said = Counter[str]()
    for entry in trial.deployment.logged("ticks missed"):
        said[entry["schedule"]] += entry["ticks"]
    trial.require(said.keys() == {"one", "none"}, f"the log tells of {said}")
    told = {policy: await counted(trial, policy) for policy in said}
    trial.require(dict(said) == told, f"the log tells of {said}, counted are {told}")
    trial.conclude()


async def wrong_clocks(trial: Trial, seconds: float = 12.0) -> None:
    """Two of three have clocks that are an hour ahead, then an hour behind: nothing comes early, nothing twice."""
    clock = trial.directory / "clock"
    clock.write_text(str(HOUR))
    await trial.start(Subscriber("note", "note"), runners=1, schedules=f"[{EACH}]")
    trial.deployment.sabotage += ",wrong-clock"
    await trial.deployment.start(2)
    await eventually(lambda: _recorded(trial, 4), 60)
    trial.runners[0].kill()  # those that are left have the wrong time
    trial.note("only those with the wrong time are left")
    for offset in (-HOUR, HOUR):
        moment = datetime.now(UTC) + timedelta(seconds=seconds / 3)
        await eventually(lambda moment=moment: _passed(trial, moment), 60)  # type: ignore[misc]  # of this round
        clock.write_text(str(offset))
        trial.note(f"their clocks are off by {offset} s")
    moment = datetime.now(UTC) + timedelta(seconds=seconds / 3)
    await eventually(lambda: _passed(trial, moment), 60)
    trial.bite("steps of a clock", sum("clock is off" in line for each in trial.runners for line in each.stdout))
    await judge(trial, await ticks(trial))
    trial.conclude()


async def host_clock_set(trial: Trial) -> None:
    """The host of a SQLite file is an hour ahead for some seconds, and then right again."""
    step = 4
    entry = f"{{name: pulse, every: {step}s, catch_up: all, event: {{type: tick}}}}"
    _set_clock(trial, 0)
    await trial.start(Subscriber("note", "note"), runners=2, sabotage="store-clock", schedules=f"[{entry}]")
    await eventually(lambda: _recorded(trial, 2), 60)
    before = await ticks(trial)
    _set_clock(trial, HOUR)
    _wake(trial)
    trial.note("an hour ahead")
    await eventually(lambda: _recorded(trial, HOUR // step + 2), 90)
    ahead = await ticks(trial)
    trial.bite("ticks of the hour", len(ahead) - len(before))
    _set_clock(trial, 0)
    trial.note("right again")
    _wake(trial)
    await asyncio.sleep(2 * step)  # a second event of a tick would have come by now
    seen = await ticks(trial)
    trial.require(len(seen) <= len(ahead) + 2, f"{len(seen) - len(ahead)} more after the clock was set back")
    await judge(trial, seen, step * SECOND)
    trial.conclude()


async def daylight_saving(trial: Trial) -> None:
    """A host that lives through both changes of its zone, a leap day and the end of a year; each in some seconds."""
    zones = {"paris": "Europe/Paris", "paulo": "America/Sao_Paulo"}
    night = {name: f"{{name: {name}, cron: '30 2 * * *', timezone: {zone}" for name, zone in zones.items()}
    entries = [f"{text}, catch_up: none, event: {{type: tick}}}}" for text in night.values()]
    entries += [
        "{name: midnight, cron: '0 0 * * *', timezone: America/Sao_Paulo, catch_up: none, event: {type: tick}}",
        "{name: leap, cron: '0 12 29 2 *', catch_up: none, event: {type: tick}}",
        "{name: year, cron: '59 23 31 12 *', timezone: Europe/Paris, catch_up: none, event: {type: tick}}",
    ]
    moments = [
        ("midnight", "2018-11-04T02:59:57", "2018-11-04T03:00:00Z"),  # there is no midnight on this day
        ("midnight", "2019-02-17T01:59:57", None),  # it is 23:00 once more
        ("midnight", "2019-02-17T02:59:57", "2019-02-17T03:00:00Z"),
        ("leap", "2024-02-29T11:59:57", "2024-02-29T12:00:00Z"),
        ("paris", "2026-03-29T00:59:57", "2026-03-29T01:00:00Z"),  # 02:30 is skipped
        ("paulo", "2026-03-29T05:29:57", "2026-03-29T05:30:00Z"),
        ("paris", "2026-10-25T00:29:57", "2026-10-25T00:30:00Z"),  # 02:30 comes twice
        ("paris", "2026-10-25T01:29:57", None),
        ("year", "2026-12-31T22:58:57", "2026-12-31T22:59:00Z"),
    ]
    _set_clock_to(trial, "2018-11-01T00:00:00")
    await trial.start(
        Subscriber("note", "note"), runners=1, sabotage="store-clock", schedules=f"[{', '.join(entries)}]"
    )
    expected: list[str] = []
    for name, start, tick in moments:
        _set_clock_to(trial, start)
        trial.note(f"it is {start}")
        _wake(trial)
        if tick is not None:
            expected.append(f"{name}/{tick}")
        await trial.require_soon(lambda: _clock_passed(trial), f"the clock passes {start}", 30)
        await eventually(lambda: _accepted(trial) >= len(expected), 30)
    found = sorted(each.id for each in trial.deployment.deliveries.read() if each.step == "accepted")
    trial.bite("changes of a clock", len(moments))
    trial.require(found == sorted(expected), f"delivered {found}, expected {sorted(expected)}")
    trial.conclude()


async def _recorded(trial: Trial, count: int, name: str = "pulse") -> bool:
    return len(await ticks(trial, name)) >= count


async def _passed(trial: Trial, moment: datetime, name: str = "pulse") -> bool:
    return any(each.time > moment for each in await ticks(trial, name))


def _accepted(trial: Trial) -> int:
    return sum(each.step == "accepted" for each in trial.deployment.deliveries.read())


def _set_clock(trial: Trial, seconds: float) -> None:
    """Let the clock of the store differ from the right one by so much, for all processes at once."""
    written = trial.directory / "clock.new"
    written.write_text(str(seconds))
    written.rename(trial.directory / "clock")


def _set_clock_to(trial: Trial, moment: str) -> None:
    _set_clock(trial, (datetime.fromisoformat(moment).replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds())


async def _clock_passed(trial: Trial) -> bool:
    offset = float((trial.directory / "clock").read_text())
    now = datetime.now(UTC) + timedelta(seconds=offset)
    return now.second >= 4 and now.second < 57


def _wake(trial: Trial) -> None:
    """Have the runner look: it sleeps for half a minute while nothing is due, and would find out by itself."""
    with contextlib.closing(sqlite3.connect(sqlite_path(trial.dsn) or "", timeout=15)) as connection, connection:
        connection.execute("UPDATE bus SET subscriptions_version = subscriptions_version + 1")


@pytest.fixture
def sqlite(make_trial: MakeTrial, tmp_path: Path) -> Trial:
    trial = make_trial(tmp_path / "runner.db")
    assert sqlite_path(trial.dsn)
    return trial


@pytest.mark.chaos_postgres
@pytest.mark.timeout(600)
@pytest.mark.chaos(
    "FI-37",
    f"a schedule every second, for {WHILE:g} s; two of five instances killed every ten seconds, NATS and PostgreSQL "
    f"away for {AWAY:g} s each",
)
async def test_fi_37(make_trial: MakeTrial, make_postgres: MakePostgres, make_nats_server: MakeNats) -> None:
    postgres, nats = make_postgres(), make_nats_server()
    await killed_while_it_ticks(make_trial(postgres, nats=nats.url), postgres, nats)


@pytest.mark.chaos("FI-37", f"nobody there for {ABSENT:g} s, with each way to catch up")
async def test_fi_37_absent(trial: Trial) -> None:
    await absent(trial)


@pytest.mark.chaos_postgres
@pytest.mark.timeout(600)
@pytest.mark.chaos(
    "FI-37", f"NATS away for {AWAY:g} s and {ABSENT:g} s, then PostgreSQL for {ABSENT:g} s, with each way to catch up"
)
async def test_fi_37_away(make_trial: MakeTrial, make_postgres: MakePostgres, make_nats_server: MakeNats) -> None:
    postgres, nats = make_postgres(), make_nats_server()
    await store_away(make_trial(postgres, nats=nats.url), postgres, nats)


@pytest.mark.chaos("FI-37", "the clocks of two of three instances an hour ahead and an hour behind")
async def test_fi_37_clocks(trial: Trial) -> None:
    await wrong_clocks(trial)


@pytest.mark.chaos("FI-37", "the clock of the host an hour ahead for some seconds")
async def test_fi_37_host(sqlite: Trial) -> None:
    await host_clock_set(sqlite)


@pytest.mark.chaos("FI-38", "both changes of the clock in Europe/Paris and America/Sao_Paulo, 29 February, year end")
async def test_fi_38(sqlite: Trial) -> None:
    await daylight_saving(sqlite)
