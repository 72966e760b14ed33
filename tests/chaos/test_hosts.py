"""Wrong clocks, migrations that are cut off, loops that hang, input of every kind, and everything at random."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from time import monotonic

import asyncpg
import pytest

from runner import Event, RunnerError
from runner.builder import open_bus, open_storage
from runner.bus.bus import EventBus
from runner.config import load_config
from runner.event import MAX_DATA_BYTES
from runner.storage.contract import records as views
from tests.support.eventually import eventually
from tests.support.nats import NatsServer
from tests.support.postgres import PostgresServer
from tests.support.process import RunnerProcess, run_cli
from tests.support.proxy import Proxy

from .deployment import POLL, Subscriber, freeze, thaw
from .journals import Pen, Publishing, digest, now
from .publisher import SOURCE
from .trial import Trial

MakePostgres = Callable[..., PostgresServer]
MakeNats = Callable[..., NatsServer]
MakeTrial = Callable[..., Trial]

DELAY = 2.0  # seconds until an event is due
LATE = POLL + 2.0  # seconds; a clock that had a say would make it an hour
HOUR = 3600


@pytest.fixture(params=["postgresql", "sqlite"])
def either(
    request: pytest.FixtureRequest, make_trial: MakeTrial, durable_postgres: PostgresServer, tmp_path: Path
) -> Trial:
    """A trial on each store."""
    return make_trial(durable_postgres if request.param == "postgresql" else tmp_path / "runner.db")


async def wrong_clocks(trial: Trial) -> None:
    """One of three has a clock that is an hour ahead, then an hour behind, then ahead again."""
    clock = trial.directory / "clock"
    clock.write_text(str(HOUR))
    await trial.start(
        Subscriber("note", "note"),
        Subscriber("patient", "endure", prefix="slow."),
        Subscriber("shaky", "stumble", prefix="shaky."),
        runners=2,
    )
    trial.deployment.sabotage += ",wrong-clock"
    [wrong] = await trial.deployment.start()
    trial.publish(400, rate=50.0, delay=DELAY, types=["slow.load", "shaky.load", *["load"] * 18])
    for moment, offset in ((120, -HOUR), (240, HOUR)):
        await trial.reach(moment)
        clock.write_text(str(offset))
        trial.note(f"the clock of one is off by {offset} s")
    await trial.drain(20)
    trial.bite("steps of the clock", sum("clock is off by" in line for line in wrong.stdout))
    seen = trial.deployment.deliveries.read()
    accepted = [each for each in seen if each.step == "accepted"]
    trial.bite("deliveries by who has the wrong time", sum(each.pid == wrong.pid for each in accepted))
    invoked = {line.id: line.at for line in trial.deployment.published.read() if line.step == "invoke"}
    answered = {line.id: line.at for line in trial.deployment.published.read() if line.step == "ok"}
    first = [each for each in seen if each.step == "begun" and each.attempt == 1]
    early = [each.id for each in first if each.at < invoked[each.id] + DELAY]
    late = [each.id for each in first if each.at > answered[each.id] + DELAY + LATE]
    trial.require(not early, f"delivered before they were due: {early[:5]}")
    trial.require(not late, f"delivered late: {late[:5]}")
    await trial.verify()  # no duplicates: no lease has been taken away


async def migrated_by_three_of_which_one_dies(trial: Trial) -> None:
    deployment = trial.deploy(Subscriber("note", "note"), sabotage="die-in-migration")
    runners = [deployment.launch() for _ in range(3)]
    await eventually(lambda: len(trial.runners) == 2, timeout=60)
    trial.bite("killed in a migration")
    for runner in trial.runners:
        await asyncio.to_thread(runner.wait_for_line, "publish one", 60.0)
    migrated = ["tables brought up to date" in "".join(runner.stderr) for runner in runners]
    trial.require(sum(migrated) == 1, f"{sum(migrated)} processes say that they migrated")
    await deployment.audit()
    trial.publish(100)
    await trial.verify()


async def claims_that_hang(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its claims never come back, and it goes on to report."""
    monkeypatch.setattr(views, "_STUCK", timedelta(seconds=6))
    await trial.start(Subscriber("work"), runners=2)
    trial.deployment.sabotage += ",hang-in-claims"
    [hung] = await trial.deployment.start()
    trial.publish(300, rate=100.0)
    config = load_config(trial.directory / "bus.yaml")

    async def states() -> dict[int, str]:
        async with open_storage(config) as storage:
            return {view.instance.pid: view.state for view in await storage.records.instances()}

    async def told() -> bool:
        return (await states())[hung.pid] == "stuck"

    await trial.require_soon(told, "the one that hangs is said to be stuck", 20.0)
    said = await states()
    trial.bite("instances said to be stuck", sum(state == "stuck" for state in said.values()))
    working = [pid for pid, state in said.items() if state == "working"]
    trial.require(len(working) == 2, f"the others are said to be {said}")
    await trial.verify()


async def the_same_from_many(trial: Trial, count: int = 300, publishers: int = 4) -> None:
    """All publish the same events at the same time; then somebody publishes other content under one of the ids."""
    await trial.start(Subscriber("note", "note"))
    for _ in range(publishers):
        trial.publish(count, rate=1000.0, wave=50)
    await trial.reach(publishers * count)
    await trial.drain()
    duplicates = sum(line.duplicate for line in trial.deployment.published.read())
    trial.bite("publishes answered as duplicates", duplicates)
    trial.require(duplicates == (publishers - 1) * count, f"{duplicates} answers say duplicate")
    args = ("publish", "-c", "bus.yaml", "load", "--source", SOURCE, "--id", "event-000001", "--data", '"other"')
    done = await asyncio.to_thread(run_cli, *args, cwd=trial.directory)
    trial.bite("conflicts refused", int("already recorded" in done.stderr))
    trial.require(done.returncode == 1, f"the exit code of a conflict is {done.returncode}")
    await trial.verify()


_JSON: dict[str, bytes] = {
    "half an object": b'{"a": ',
    "no number": b'{"a": NaN, "b": Infinity}',
    "a key twice": b'{"a": 1, "a": 2}',
    "10,000 deep": b"[" * 10_000 + b"]" * 10_000,
    "lone surrogate": b'"\\ud800"',
    "escaped NUL": b'"\\u0000"',
    "NUL": b"\x00",
    "no UTF-8": b"\xff\xfe\xc3\x28",
    "byte order mark": b"\xef\xbb\xbf{}",
    "80,000 members": b"{" + b",".join(b'"k%d":1' % n for n in range(80_000)) + b"}",
    "more than 64 bits": b"123456789012345678901234567890",
    "nothing": b"",
    "64 KiB": b"x" * 2**16,
    "one byte less than a MiB": b"x" * (MAX_DATA_BYTES - 1),
    "a MiB": b"x" * MAX_DATA_BYTES,
}
_REFUSED: dict[str, dict[str, object]] = {
    "a byte more than a MiB": {"data": b"x" * (MAX_DATA_BYTES + 1)},
    "100 MB": {"data": b"x" * 100_000_000},
    "NUL in the subject": {"subject": "a\x00b"},
    "lone surrogate in the subject": {"subject": "a\ud800b"},
    "a line break in the type": {"type": "load\r\nx: y"},
    "no type": {"type": ""},
    "an extension beyond 32 bits": {"extensions": {"n": 2**63}},
    "an extension of 10 MB": {"extensions": {"n": "x" * 10_000_000}},
    "the name of an attribute as an extension": {"extensions": {"specversion": "2.0"}},
}


async def all_kinds_of_input(trial: Trial) -> None:
    """Data is delivered to the byte, whatever it claims to be; attributes that break the rules are refused."""
    deployment = await trial.start(Subscriber("note", "note"), Subscriber("hook", hook=0.0), runners=1)
    pen = Pen(deployment.published.path)

    async def offer(bus: EventBus, name: str, **fields: object) -> str:
        given = {"type": "load", "data": b"{}", "datacontenttype": "application/json", **fields}
        event = Event(source=SOURCE, id=name, **given)  # type: ignore[arg-type]  # wrong on purpose
        pen.write(Publishing(name, "load", "invoke", now(), digest(event.data)))
        step = "ok"
        try:
            await bus.publish(event)
        except RunnerError:
            step = "fail"
        pen.write(Publishing(name, "load", step, now()))  # type: ignore[arg-type]  # one of the four
        return step

    async with open_bus(load_config(trial.directory / "publisher.yaml")) as bus:
        taken = {name: await offer(bus, name, data=data) for name, data in _JSON.items()}
        refused = {name: await offer(bus, name, **fields) for name, fields in _REFUSED.items()}
    trial.bite("taken as it is", sum(step == "ok" for step in taken.values()))
    trial.bite("refused", sum(step == "fail" for step in refused.values()))
    trial.require(set(taken.values()) == {"ok"}, f"not taken: {[name for name, step in taken.items() if step != 'ok']}")
    trial.require(
        set(refused.values()) == {"fail"}, f"taken: {[name for name, step in refused.items() if step == 'ok']}"
    )
    await trial.verify()


class Storm:
    """Faults of every kind, drawn at random, one at a time; each heals what it hurt before the next one."""

    def __init__(self, trial: Trial, postgres: PostgresServer, nats: NatsServer, way: Proxy) -> None:
        self.trial = trial
        self.postgres = postgres
        self.nats = nats
        self.way = way
        self.forgotten = 0  # runners whose deliveries may come twice, each time
        self.publisher: RunnerProcess | None = None
        self._count = 0
        self.strikes: tuple[Callable[[], Awaitable[None]], ...] = (
            self.kill,
            self.kill_all,
            self.pause,
            self.replace,
            self.kill_the_publisher,
            self.end_sessions,
            self.restart_postgres,
            self.cut_off_postgres,
            self.kill_nats,
            self.freeze_nats,
        )

    async def strike(self) -> None:
        chosen = self.trial.random.choice(self.strikes)
        name = chosen.__name__.replace("_", " ")
        await chosen()
        self.trial.note(name)
        self.trial.bite(name)

    async def kill(self) -> None:
        self._victim().kill()
        self.forgotten += 1
        await self.trial.deployment.start()

    async def kill_all(self) -> None:
        for each in self.trial.runners:
            each.kill()
        self.forgotten += 3
        await self.trial.deployment.start(3)

    async def pause(self) -> None:
        victim = self._victim()
        await freeze(victim)
        await self._wait(5.0)  # longer than a lease, or shorter
        thaw(victim)
        self.forgotten += 1

    async def replace(self) -> None:
        victim = self._victim()
        victim.signal(signal.SIGTERM)
        await asyncio.to_thread(victim.wait)
        await self.trial.deployment.start()

    async def kill_the_publisher(self) -> None:
        assert self.publisher is not None
        self.publisher.kill()
        self.publish()

    async def end_sessions(self) -> None:
        admin = await asyncpg.connect(self.trial.dsn)
        others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        await admin.fetch(f"SELECT pg_terminate_backend(pid) {others}")
        await admin.close()

    async def restart_postgres(self) -> None:
        await asyncio.to_thread(self.postgres.stop, self.trial.random.choice(["fast", "immediate"]))
        await self._wait(1.0)
        await asyncio.to_thread(self.postgres.start)
        self.forgotten += 3  # a claim is not synced, and a lease may have ended meanwhile

    async def cut_off_postgres(self) -> None:
        await self.way.set_mode(self.trial.random.choice(["blackhole", "mute"]))
        await self._wait(4.0)
        await self.way.set_mode("reset")
        await self.way.set_mode("pass")
        self.forgotten += 3

    async def kill_nats(self) -> None:
        self.nats.kill()
        await self._wait(2.0)
        await asyncio.to_thread(self.nats.start)

    async def freeze_nats(self) -> None:
        self.nats.signal(signal.SIGSTOP)
        await self._wait(3.0)
        self.nats.signal(signal.SIGCONT)

    def publish(self, count: int = 0) -> None:
        """Start the publisher, or start it again where it was."""
        self._count = count or self._count
        self.publisher = self.trial.publish(self._count, rate=40.0, types=["slow.load", *["load"] * 9])

    def _victim(self) -> RunnerProcess:
        return self.trial.random.choice(self.trial.runners)

    async def _wait(self, longest: float) -> None:
        await asyncio.sleep(self.trial.random.uniform(0.1, longest))  # the length of the fault


async def storm(trial: Trial, postgres: PostgresServer, nats: NatsServer, seconds: float) -> None:
    async with Proxy(trial.dsn) as way:
        await trial.start(Subscriber("work"), Subscriber("toil", "toil", prefix="slow."), runner_dsn=way.url)
        weather = Storm(trial, postgres, nats, way)
        weather.publish(int(40 * seconds))
        ends = monotonic() + seconds
        while monotonic() < ends:
            await asyncio.sleep(trial.random.uniform(0.5, 2.0))  # the calm between two faults
            await weather.strike()
        trial.fault()
        await trial.drain(60)
        await trial.verify(duplicates=trial.held(weather.forgotten), recovery=15.0)


@pytest.mark.chaos("FI-36", "wall clock of one worker an hour ahead, an hour behind, ahead again")
async def test_fi_36(trial: Trial) -> None:
    await wrong_clocks(trial)


@pytest.mark.chaos("FI-43, FI-44", "input of every kind: sizes, broken JSON, forbidden characters")
async def test_fi_44(either: Trial) -> None:
    await all_kinds_of_input(either)


@pytest.mark.chaos("FI-45", "the same events from four publishers at once, then other content under one id")
async def test_fi_45(either: Trial) -> None:
    await the_same_from_many(either)


@pytest.mark.chaos_short
@pytest.mark.chaos("FI-49", "three that migrate at once, of which the first is killed half way")
async def test_fi_49(either: Trial) -> None:
    await migrated_by_three_of_which_one_dies(either)


@pytest.mark.chaos("FI-50", "worker whose claims hang: the others deliver, and it is said to be stuck")
async def test_fi_50(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    await claims_that_hang(trial, monkeypatch)


@pytest.mark.chaos("FI-51", "all of this at random, for a minute (CHAOS_MINUTES=10 for longer)")
@pytest.mark.timeout(900)
async def test_fi_51(make_trial: MakeTrial, make_postgres: MakePostgres, make_nats_server: MakeNats) -> None:
    postgres, nats = make_postgres(), make_nats_server()
    await storm(make_trial(postgres, nats=nats.url), postgres, nats, 60 * float(os.environ.get("CHAOS_MINUTES", "1")))
