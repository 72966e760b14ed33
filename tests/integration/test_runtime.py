"""The runner as a whole: its life, its place in a deployment, and the invariants it rests on."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection
from structlog.testing import capture_logs

from runner import Delivery, Outcome, Runner, load
from runner.bus.bus import EventBus
from runner.errors import ConfigError, ForeignDeployment, RunnerError, SinkError, StorageError, StorageUnavailable
from runner.event import Event
from runner.policies.filter import FilterError
from runner.runtime import runner as runtime_module
from runner.storage import tables
from runner.storage.contract.claims import Claim
from runner.storage.contract.events import Publication, Receipt
from runner.storage.contract.settlements import Settled
from runner.storage.errors import mapped_errors
from runner.storage.expressions import Now
from runner.storage.tables import deliveries, dispatch
from runner.strategies.stack import compose
from tests.support.eventually import eventually
from tests.support.faulty import Faulty
from tests.support.postgres import PostgresServer

from .buses import Bus, BusTests, Gate, Handler, events, ids, running


class TestLife(BusTests):
    async def test_it_may_be_stopped_before_it_was_started_and_twice(self, bus: Bus) -> None:
        runner = bus.runner()
        await runner.stop()
        async with runner:
            pass
        await runner.stop()

    async def test_a_second_start_does_nothing_and_a_second_stop_waits_for_the_first(self, bus: Bus) -> None:
        runner, handler = bus.runner(), Handler()
        runner.subscribe("s", handler)
        await asyncio.gather(runner.start(), runner.start())
        async with runner:
            with pytest.raises(ValueError, match=r"subscribe\('late'\): it has started"):
                runner.subscribe("late", handler)
            await runner.publish_many(events(20))
            await eventually(lambda: bus.settled(delivered=20))
            with capture_logs() as lines:
                await asyncio.gather(runner.stop(), runner.stop())
        told = [line["event"] for line in lines]
        assert (told.count("stopping"), told.count("did not stop as it should")) == (1, 0)
        assert len(handler.seen) == 20

    async def test_an_instance_reports_and_signs_off(self, bus: Bus) -> None:
        async with bus.runner():
            assert len(await bus.database.rows(tables.instances)) == 1
        assert await bus.database.rows(tables.instances) == []

    async def test_the_connections_of_a_backlog_are_there_from_the_start(
        self, bus: Bus, postgres: PostgresServer, dsn: str
    ) -> None:
        if dsn.startswith("sqlite"):
            pytest.skip("one connection, opened by the first call")
        ours = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        before = int(postgres.psql(ours, dsn))
        async with bus.runner():
            assert int(postgres.psql(ours, dsn)) - before >= 5

    async def test_stop_is_quick_when_nothing_runs(self, bus: Bus) -> None:
        runner = bus.runner()
        await runner.start()
        began = monotonic()
        await runner.stop()
        assert monotonic() - began < 10

    async def test_the_tables_of_another_deployment_are_refused_and_nothing_is_left_open(self, bus: Bus) -> None:
        async with bus.runner():
            pass
        path = bus.write()
        path.write_text(path.read_text().replace("deployment_id: test", "deployment_id: other"))
        before = asyncio.all_tasks()
        with pytest.raises(ForeignDeployment, match="test"):
            async with load(path):
                pass
        await eventually(lambda: asyncio.all_tasks() == before)

    async def test_several_share_the_work_and_deliver_each_event_once(self, bus: Bus) -> None:
        runners, handler = [bus.runner(batch=20) for _ in range(3)], Handler()
        for runner in runners:
            runner.subscribe("s", handler)
            await runner.start()
        published = events(300)
        await asyncio.gather(*[runners[n % 3].publish(event) for n, event in enumerate(published)])
        await eventually(lambda: bus.settled(delivered=300))
        assert handler.ids == ids(published)

    async def test_a_function_that_is_unsubscribed_gets_nothing_more(self, bus: Bus) -> None:
        runner, handler = bus.runner(), Handler()
        runner.subscribe("s", handler)
        async with runner:
            await runner.publish(events(1)[0])
            await eventually(lambda: bus.settled(delivered=1))
            await runner.unsubscribe("s")
            await runner.publish(events(2)[1])
            await eventually(lambda: bus.settled(delivered=1))
        assert len(handler.seen) == 1

    async def test_a_strategy_that_fails_at_everything_costs_nothing_but_itself(self, bus: Bus) -> None:
        class Broken:
            async def start(self, wake: object) -> None:
                raise OSError("no start")

            async def notify(self, event_id: str) -> None:
                raise OSError("no notify")

            async def stop(self) -> None:
                raise OSError("no stop")

        runner, handler = bus.runner(strategy=Broken()), Handler()
        runner.subscribe("s", handler)
        async with runner:
            await runner.publish_many(events(3))
            await eventually(lambda: bus.settled(delivered=3))

    async def test_what_others_are_to_take_is_signalled_under_an_id_of_our_own(self, bus: Bus) -> None:
        """A push strategy takes a signal with the id it sent last for its own echo."""

        class Recorder:
            def __init__(self) -> None:
                self.signals: list[str] = []

            async def start(self, wake: object) -> None: ...

            async def stop(self) -> None: ...

            async def notify(self, event_id: str) -> None:
                self.signals.append(event_id)

        recorders = [Recorder(), Recorder()]
        runners = [bus.runner(strategy=recorder) for recorder in recorders]
        absent = bus.runner()
        absent.subscribe("absent", Handler())
        async with absent:
            pass
        for runner, recorder, event in zip(runners, recorders, events(2), strict=True):
            async with runner:
                await runner.publish(event)
                # That of the event may have become one with it.
                await eventually(lambda: set(recorder.signals) - set(ids(events(2))))  # noqa: B023  # awaited before it changes
        one, other = (set(recorder.signals) - set(ids(events(2))) for recorder in recorders)
        assert one
        assert other
        assert not one & other


class TestSubscribe(BusTests):
    async def test_a_single_pattern_may_be_given_as_text(self, bus: Bus) -> None:
        runner, orders = bus.runner(), Handler()
        runner.subscribe("orders", orders, types="order.*")
        async with runner:
            await runner.publish_many([*events(2), *events(3, "user.created")])
            await eventually(lambda: bus.settled(delivered=2))
        assert orders.ids == ids(events(2))

    @pytest.mark.parametrize("filter", [{"sql": "x"}, {"exact": "x"}, "subject = 1"], ids=repr)
    def test_a_filter_that_does_not_compile_is_refused_at_once(self, bus: Bus, filter: object) -> None:
        with pytest.raises(FilterError):
            bus.runner().subscribe("s", Handler(), filter=filter)

    def test_a_name_of_the_file_is_refused(self, bus: Bus) -> None:
        file = bus.write("sinks: {log: stdout}\nsubscriptions: [{name: crm, sink: log}]\n")
        with pytest.raises(ValueError, match="the file has a subscription 'crm'"):
            load(file).subscribe("crm", Handler())

    async def test_dead_letters_for_a_sink_that_nobody_has_are_refused(self, bus: Bus) -> None:
        runner = bus.runner()
        runner.subscribe("s", Handler(), dead_letter="lgo")
        with pytest.raises(ConfigError, match=r"'s': unknown sink 'lgo' for dead letters, expected one of: function:s"):
            await runner.start()


async def publish_on(runner: Runner, name: str, published: list[str]) -> None:
    """Publish one event after the other, until that is refused."""
    for n in itertools.count():
        receipt = await runner.publish(Event(type="order.created", source="/tests", id=f"{name}-{n}"))
        published.append(receipt.id)


class TestStop(BusTests):
    async def test_it_returns_although_others_go_on_publishing(self, bus: Bus) -> None:
        runner, handler, published = bus.runner(grace="500ms"), Handler(), list[str]()
        runner.subscribe("s", handler, types=["order.*"])
        await runner.start()
        publishers = [asyncio.create_task(publish_on(runner, str(n), published)) for n in range(4)]
        try:
            await eventually(lambda: len(published) > 50)
            async with asyncio.timeout(20):
                await runner.stop()
            async with asyncio.timeout(20):
                answers = await asyncio.gather(*publishers, return_exceptions=True)
        finally:
            for publisher in publishers:
                publisher.cancel()
        assert [type(answer) for answer in answers] == [RunnerError] * 4
        left = await bus.database.rows(dispatch)
        assert not [row for row in left if row["lease_token"] is not None]
        assert not [row for row in await bus.deliveries() if row["state"] == "leased"]
        assert len(handler.seen) + len(left) == len(published)

    async def test_a_handler_that_finishes_may_still_publish(self, bus: Bus) -> None:
        runner, opened = bus.runner(), asyncio.Event()
        order, invoice = events(1)[0], events(1, "invoice.created")[0]

        async def handle(event: Event) -> None:
            await opened.wait()
            await runner.publish(invoice)

        runner.subscribe("s", handle, types=["order.*"])
        async with runner:
            await runner.publish(order)
            await eventually(lambda: bus.settled(leased=1))
            stopping = asyncio.create_task(runner.stop())
            await eventually(lambda: runner.worker.dispatcher._stopping)
            opened.set()
            await stopping
        assert [row["state"] for row in await bus.deliveries()] == ["delivered"]
        assert [(row["attempts"], row["lease_token"]) for row in await bus.database.rows(dispatch)] == [(0, None)]

    async def test_a_pause_that_a_sink_asked_for_is_written_before_the_store_closes(
        self, bus: Bus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runner, order = bus.runner(), list[str]()
        registry, close = runner._storage.registry, runner._storage.close
        set_paused = registry.set_paused

        async def slow(*arguments: Any) -> bool:
            await asyncio.sleep(0.3)  # the fault itself: longer than the rest of the stop takes
            changed = await set_paused(*arguments)
            order.append("paused")
            return changed

        async def closing() -> None:
            order.append("closed")
            await close()

        monkeypatch.setattr(registry, "set_paused", slow)
        monkeypatch.setattr(runner._storage, "close", closing)
        runner.subscribe("s", Handler(), types=["order.*"])
        async with runner:
            runner.pause("s", "HTTP 410")
        assert order == ["paused", "closed"]


REFUSALS = [
    StorageError("the store refused: password authentication failed"),
    StorageUnavailable("away"),
    ValueError("x"),
    asyncio.CancelledError(),
]


class TestStopInSpiteOfErrors:
    @pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
    @pytest.mark.parametrize("method", ["leave", "settle", "settle_deliveries", "close"])
    async def test_whatever_the_store_says_the_stop_goes_on_to_its_end(
        self, tmp_path: Path, method: str, error: BaseException
    ) -> None:
        class Refusing(Faulty):
            refuses = False

        async def refuse(self: Refusing, *args: Any) -> Any:
            if Refusing.refuses:
                raise error
            owner = {"leave": self.store.registry, "close": self.store}.get(method, self.store.queue)
            return await getattr(owner, method)(*args)

        setattr(Refusing, method, refuse)
        async with running(tmp_path, f"sqlite:///{tmp_path / 'runner.db'}") as bus:
            runner, gate, sink = bus.runner(store=Refusing, grace="1s", patience=timedelta(0)), Gate(), Counting()
            runner._sinks["crm"] = sink
            runner.subscribe("s", gate)
            with capture_logs() as lines:
                async with runner:
                    await runner.publish(events(1)[0])
                    await eventually(lambda: gate.seen)
                    Refusing.refuses = True
                    gate.opened.set()
            assert sink.stopped == 1
            assert [line["event"] for line in lines][-1] == "stopped"
            Refusing.refuses = False
            async with bus.runner():  # nothing is left behind that would hinder it
                pass


class Counting:
    """A sink that counts its ends."""

    stopped = 0

    async def start(self) -> None: ...

    async def deliver(self, delivery: Delivery) -> Outcome:
        raise AssertionError("not reached")

    async def stop(self) -> None:
        self.stopped += 1


class TestOutage:
    async def test_the_log_says_once_that_the_database_is_lost_and_once_that_it_is_back(
        self, tmp_path: Path, make_postgres: Callable[..., PostgresServer]
    ) -> None:
        server = make_postgres(fsync=False)

        def said(event: str) -> list[Any]:
            return [line for line in lines if line["event"] == event]

        async with running(tmp_path, server.create_database()) as bus:
            runner, handler = bus.runner(), Handler()
            runner.subscribe("s", handler)
            async with runner:
                with capture_logs() as lines:
                    server.stop()
                    runner.worker.wake()
                    await eventually(lambda: said("database lost"))
                    await eventually(lambda: runner.worker.stalled > timedelta(seconds=2))
                    server.start()
                    await eventually(lambda: said("database back"))
                    await runner.publish(events(1)[0])
                    await eventually(lambda: bus.settled(delivered=1))
            assert len(said("database lost")) == len(said("database back")) == 1
            assert said("database back")[0]["after"] > 0
            assert [line for line in lines if line["event"] == "loop failed" and line["log_level"] != "debug"] == []


class BadSink:
    """A sink that raises where it is told to, or hangs when it is to stop."""

    def __init__(self, *, start: Exception | None = None, stop: Exception | None = None, hangs: bool = False) -> None:
        self._start, self._stop, self._hangs = start, stop, hangs

    async def start(self) -> None:
        if self._start:
            raise self._start

    async def deliver(self, delivery: Delivery) -> Outcome:
        raise AssertionError("not reached")

    async def stop(self) -> None:
        if self._stop:
            raise self._stop
        if self._hangs:
            await asyncio.get_running_loop().create_future()


class TestBadSinks:
    async def run(self, directory: Path, sink: BadSink) -> None:
        """Start and stop with `sink`; the store must be closed at the end."""
        closed = []

        class Closing(Faulty):
            async def close(self) -> None:
                closed.append(True)
                await self.store.close()

        async with running(directory, f"sqlite:///{directory / 'runner.db'}") as bus:
            runner = bus.runner(store=Closing)
            runner._sinks["crm"] = sink
            try:
                async with runner:
                    pass
            finally:
                assert closed == [True]

    @pytest.mark.parametrize("error", [ValueError("topsecret"), OSError(), KeyError("topsecret")], ids=repr)
    async def test_one_that_cannot_be_started_is_named_and_the_store_closed(
        self, tmp_path: Path, error: Exception
    ) -> None:
        with pytest.raises(SinkError, match=r"^sinks\.crm: ") as caught:
            await self.run(tmp_path, BadSink(start=error))
        assert type(error).__name__ in str(caught.value)
        assert "topsecret" not in str(caught.value)
        assert caught.value.__cause__ is error

    async def test_an_error_of_ours_is_left_as_it_is(self, tmp_path: Path) -> None:
        with pytest.raises(SinkError, match=r"^no such module$"):
            await self.run(tmp_path, BadSink(start=SinkError("no such module")))

    @pytest.mark.parametrize("sink", [BadSink(stop=ValueError("x")), BadSink(hangs=True)], ids=["raises", "hangs"])
    async def test_one_that_does_not_stop_keeps_nothing_from_closing(
        self, tmp_path: Path, sink: BadSink, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runtime_module, "STOP_TIMEOUT", 0.05)
        with capture_logs() as lines:
            await self.run(tmp_path, sink)
        assert {line["part"] for line in lines if line["event"] == "did not stop as it should"} == {"sink crm"}


class TestStart:
    async def test_a_store_that_never_comes_is_reported_after_the_start_timeout(self, tmp_path: Path) -> None:
        path = tmp_path / "runner.yaml"
        path.write_text(
            'deployment_id: test\nstorage: {dsn: "postgresql://me:topsecret@127.0.0.1:1/none", start_timeout: 300ms}'
        )
        began = monotonic()
        with pytest.raises(StorageUnavailable, match=r"127\.0\.0\.1") as caught:
            async with load(path):
                pass
        assert monotonic() - began < 15
        assert "topsecret" not in str(caught.value)

    async def test_a_start_that_failed_can_be_repeated(self, tmp_path: Path) -> None:
        path = tmp_path / "runner.yaml"
        path.write_text('deployment_id: test\nstorage: {dsn: "sqlite:///sub/runner.db", start_timeout: 300ms}')
        (tmp_path / "sub").mkdir()
        runner, handler = load(path), Handler()
        runner.subscribe("s", handler)
        (tmp_path / "sub").rename(tmp_path / "elsewhere")
        with pytest.raises(StorageUnavailable):
            await runner.start()
        (tmp_path / "elsewhere").rename(tmp_path / "sub")
        async with runner:
            await runner.publish(events(1)[0])
            await eventually(lambda: handler.seen)

    async def test_it_waits_for_a_store_that_comes_late(
        self, tmp_path: Path, make_postgres: Callable[..., PostgresServer]
    ) -> None:
        server = make_postgres(fsync=False)
        async with running(tmp_path, server.create_database()) as bus:
            server.stop()
            runner, handler = bus.runner(), Handler()
            runner.subscribe("s", handler)
            starting = asyncio.create_task(runner.start())
            await asyncio.wait({starting}, timeout=0.2)
            assert not starting.done()
            server.start()
            await starting
            await runner.publish(events(1)[0])
            await eventually(lambda: bus.settled(delivered=1))


# --- invariants ------------------------------------------------------------------------------------


async def check_publish_is_one_transaction(bus: Bus, store: Any) -> None:
    """Let publishing fail at the row of work: the event must not remain."""
    publisher = EventBus(store.events, compose())
    await bus.database.rename("dispatch", "elsewhere")
    with pytest.raises(StorageError):
        await publisher.publish(events(1)[0])
    await bus.database.rename("elsewhere", "dispatch")
    assert await bus.database.count(tables.events, dispatch) == [0, 0]


class EventFirst(Faulty):
    """Records the event, and its row of work in the next transaction."""

    async def append(self, publications: Sequence[Publication]) -> Sequence[Receipt]:
        async with self.store.engine.begin() as connection:
            for event in (each.event for each in publications):
                values = {"id": event.id, "source": event.source, "type": event.type, "created_at": Now()}
                await connection.execute(insert(tables.events).values(values))
        with mapped_errors():
            async with self.store.engine.begin() as connection:
                await connection.execute(insert(dispatch).from_select(["event_seq"], select(tables.events.c.seq)))
        return []


class TestInvariant1(BusTests):
    async def test_publish_is_one_transaction(self, bus: Bus) -> None:
        """Invariant 1: an event and its row of work are recorded together, or not at all."""
        async with bus.runner():
            await check_publish_is_one_transaction(bus, bus.database.open())

    async def test_two_transactions_are_seen(self, bus: Bus) -> None:
        async with bus.runner():
            with pytest.raises(AssertionError, match=r"\[1, 0\]"):
                await check_publish_is_one_transaction(bus, EventFirst(bus.database.open()))


async def open_transactions(bus: Bus) -> int:
    """Return how many transactions are open while nobody executes anything."""
    if bus.database.dsn.scheme == "sqlite":
        path = str(bus.database.dsn.path)
        with contextlib.closing(sqlite3.connect(path, timeout=0.2, isolation_level=None)) as other:
            try:
                other.execute("BEGIN IMMEDIATE")
                other.execute("ROLLBACK")
            except sqlite3.OperationalError:
                return 1
        return 0
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in tr%'"
    async with bus.database.engine.connect() as connection:
        return int(await connection.scalar(text(query)) or 0)


async def check_no_transaction_during_a_delivery(bus: Bus, store: Callable[[Any], Any] | None = None) -> None:
    """Look, from inside a delivery of an event and from inside one of a retry, for transactions that are open."""
    found: list[bool] = []

    async def none_open() -> bool:
        return await open_transactions(bus) == 0

    async def handle(event: object) -> None:
        try:
            found.append(await eventually(none_open, timeout=3))  # one that is held stays; others come and go
        except AssertionError:
            found.append(False)
        if len(found) == 1:
            raise ValueError("again")

    runner = bus.runner(store=store, patience=timedelta(seconds=30))
    runner.subscribe("s", handle)
    async with runner:
        await bus.publish(events(1))
        await eventually(lambda: bus.settled(delivered=1))
    assert found == [True, True]


class HoldsOn(Faulty):
    """Keeps what it claims locked in a transaction until it is settled."""

    held: AsyncConnection | None = None

    async def claim(self, limit: int, lease: timedelta, weight: int = 0) -> Claim:
        claim: Claim = await self.store.queue.claim(limit, lease)
        if claim.works:
            self.held = await self.store.engine.connect()
            await self.held.execute(select(dispatch).with_for_update())
        return claim

    async def settle(self, answer: Settled) -> int:
        if self.held is not None:
            await self.held.close()
        count: int = await self.store.queue.settle(answer)
        return count


class TestInvariant7(BusTests):
    async def test_no_transaction_is_held_across_a_delivery(self, bus: Bus) -> None:
        """Invariant 7."""
        await check_no_transaction_during_a_delivery(bus)

    async def test_a_transaction_that_is_held_is_seen(self, bus: Bus) -> None:
        with pytest.raises(AssertionError, match=r"\[False, True\]"):
            await check_no_transaction_during_a_delivery(bus, HoldsOn)


async def check_nobody_resets_anothers_work(bus: Bus, store: Callable[[Any], Any] | None = None) -> None:
    """Start and stop an instance while another delivers: it must not touch, nor deliver, what the other has."""
    busy, newcomer = bus.runner(), bus.runner(store=store)
    slow, taken = Gate(), Handler()
    busy.subscribe("s", slow)
    newcomer.subscribe("s", taken)
    async with busy:
        await busy.publish_many(events(3))
        await eventually(lambda: bus.settled(leased=3))
        before = await bus.deliveries()
        async with newcomer:
            newcomer.worker.wake()
            await newcomer.publish(events(4)[3])
            await eventually(lambda: len(slow.seen) + len(taken.seen) >= 4)
        slow.opened.set()
        await eventually(lambda: bus.settled(delivered=4))
        kept = (await bus.deliveries())[:3]
    assert sorted([*slow.ids, *taken.ids]) == ids(events(4))
    assert [row["attempts"] for row in kept] == [row["attempts"] for row in before]


class ResetsAtStart(Faulty):
    """Makes what is leased pending again when it starts, whoever has it."""

    async def beat(self, *said: object) -> object:
        async with self.store.engine.begin() as connection:
            leased = update(deliveries).where(deliveries.c.state == "leased")
            await connection.execute(leased.values(state="pending", due_at=Now(), lease_token=None))
        return await self.store.registry.beat(*said)


class TestInvariant8(BusTests):
    async def test_nobody_resets_anothers_work(self, bus: Bus) -> None:
        """Invariant 8: the end of a lease is the only way work changes hands."""
        await check_nobody_resets_anothers_work(bus)

    async def test_a_reset_at_the_start_is_seen(self, bus: Bus) -> None:
        with pytest.raises(AssertionError):
            await check_nobody_resets_anothers_work(bus, ResetsAtStart)


def test_a_runner_that_was_never_started_has_opened_nothing(tmp_path: Path) -> None:
    path = tmp_path / "runner.yaml"
    path.write_text('deployment_id: test\nstorage: {dsn: "sqlite:///runner.db"}')
    assert load(path).worker.busy == 0
    assert not (tmp_path / "runner.db").exists()
