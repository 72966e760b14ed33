"""What is broken on purpose, in a process of the product, from outside of it.

`python -m tests.chaos.sabotage start -c FILE` is `runner start` with what `CHAOS_SABOTAGE` names (separated by
commas) applied first. A *mutant* takes a guarantee away: the case named in `MUTANTS` must then fail. A *fault point*
does one thing at one place, once in the life of a deployment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

__all__ = ["FAULT_POINTS", "MUTANTS", "SLOW", "apply"]

SLOW = 2.0  # seconds

# As it stands in settle_deliveries.sql.
_FENCE = "AND d.lease_token = r.token AND d.state NOT IN ('pending', 'delivered', 'dead', 'cancelled')"
# As it stands in these; and the view `delivery_states` the other way round.
_WITH_RUNS = ("settle_runs", "settle")
_CUT = "run.seqs * held.seqs AS seqs"
_RUN_WINS = """
CREATE OR REPLACE VIEW public.delivery_states AS
SELECT d.event_seq, d.subscription_id, d.state, d.attempts, d.due_at, d.lease_token, d.last_error, d.updated_at
FROM public.deliveries d
WHERE NOT EXISTS (SELECT FROM public.runs r WHERE r.first BETWEEN (d.event_seq & -256) AND d.event_seq
                  AND r.seqs @> d.event_seq AND d.subscription_id = ANY (r.subscriptions))
UNION ALL
SELECT e.seq, s.id, 'delivered'::varchar(9), 1, NULL::timestamptz, NULL::bigint, NULL::text, r.settled_at
FROM public.events e
JOIN public.runs r ON r.first BETWEEN (e.seq & -256) AND e.seq AND r.seqs @> e.seq
CROSS JOIN LATERAL unnest(r.subscriptions) AS s (id)
"""
_changes: dict[str, list[tuple[str, str]]] = {}  # of statements, by name


def apply(names: str) -> None:
    """Break what is named; an unknown name, or a statement that has no such text, ends the process."""
    for name in filter(None, names.split(",")):
        (MUTANTS | FAULT_POINTS)[name]()


def acknowledge_early() -> None:
    """Answer a publisher before the commit."""
    from runner.storage.contract.events import Publication, Receipt
    from runner.storage.postgres.events import PostgresEvents

    append = PostgresEvents.append
    behind: set[asyncio.Task[Any]] = set()

    async def early(self: PostgresEvents, publications: Sequence[Publication]) -> Sequence[Receipt]:
        async def later() -> None:
            await asyncio.sleep(0.1)
            await append(self, publications)

        behind.add(asyncio.create_task(later()))
        return [Receipt(each.event.source, each.event.id, 0, False) for each in publications]

    PostgresEvents.append = early  # type: ignore[method-assign]


def acknowledge_unknown() -> None:
    """Answer a publisher although the store did not."""
    from runner.errors import StorageUnavailable
    from runner.storage.contract.events import Publication, Receipt
    from runner.storage.postgres.events import PostgresEvents

    append = PostgresEvents.append

    async def hopeful(self: PostgresEvents, publications: Sequence[Publication]) -> Sequence[Receipt]:
        try:
            return await append(self, publications)
        except StorageUnavailable:
            return [Receipt(each.event.source, each.event.id, 0, False) for each in publications]

    PostgresEvents.append = hopeful  # type: ignore[method-assign]


def believe_duplicates() -> None:
    """Answer a publisher from what is there already, without writing it again (DO NOTHING)."""
    from runner.storage.contract.events import Publication, Receipt
    from runner.storage.postgres.events import PostgresEvents

    append = PostgresEvents.append

    async def believing(self: PostgresEvents, publications: Sequence[Publication]) -> Sequence[Receipt]:
        known = []
        async with self._connections.take() as connection:
            for each in publications:
                identity = each.event.source, each.event.id
                recorded = "SELECT seq FROM public.events WHERE source = $1 AND id = $2"
                seq = await connection.fetchval(recorded, *identity)
                if seq is not None:
                    known.append(Receipt(*identity, seq, True))
        return known if len(known) == len(publications) else await append(self, publications)

    PostgresEvents.append = believing  # type: ignore[method-assign]


def claim_by_subquery() -> None:
    """Let a claim take its rows from a subquery with a limit, which a plan may compute for every row."""
    _change(
        "claim",
        "d.ctid = ANY (ARRAY(SELECT ctid FROM sized WHERE position <= (SELECT last FROM facts)))",
        "$4::bigint > 0 AND d.position IN (SELECT w.position FROM public.dispatch w"
        " WHERE w.lease_until IS NULL OR w.lease_until <= now() ORDER BY w.position LIMIT 16 FOR UPDATE SKIP LOCKED)",
    )


def forget_at_claim() -> None:
    """Give work up when it is claimed (at most once)."""
    from runner.storage.contract.claims import CLAIM, Claim
    from runner.storage.postgres.queue import PostgresQueue

    claim = PostgresQueue.claim

    async def forgetful(self: PostgresQueue, limit: int, lease: timedelta, weight: int = CLAIM) -> Claim:
        claimed = await claim(self, limit, lease, weight)
        async with self._connections.take() as connection:
            await connection.execute("DELETE FROM public.dispatch WHERE lease_token = $1", claimed.token)
        return claimed

    PostgresQueue.claim = forgetful  # type: ignore[method-assign]


def claim_without_bounds() -> None:
    """Claim as many events as there are, whatever they weigh, and fetch them all."""
    from runner.worker.budget import Budget
    from runner.worker.intake import Intake

    _replace(Intake, "_ask", lambda self: 1 << 40)
    _replace(Budget, "full", property(lambda self: False))


def little_memory() -> None:
    """Have the system give this process 512 MiB and no more."""
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (512 << 20, 512 << 20))


def unfenced() -> None:
    """Settle whatever the token says."""
    for name in ("settle_few", "settle_runs", "settle"):
        _change(name, " AND d.lease_token = $1", " AND $1::bigint IS NOT NULL")
    _change("settle_deliveries", _FENCE, "")


def run_unfenced() -> None:
    """Record in runs what is no longer held, too."""
    for name in _WITH_RUNS:
        _change(name, _CUT, "run.seqs AS seqs")


def run_of_all_between() -> None:
    """Record in a run every event that stands between its first and its last one, whoever it was delivered to."""
    for name in _WITH_RUNS:
        _change(name, _CUT, "multirange(range_merge(run.seqs)) * held.seqs AS seqs")


def run_wins() -> None:
    """Have the view of deliveries say what a run records where a row says something newer."""
    from runner.storage import migrate

    upgrade = migrate._upgrade

    def perverse(connection: Any, schema: str | None) -> list[str]:
        applied = upgrade(connection, schema)
        if applied:
            connection.exec_driver_sql(_RUN_WINS)
        return applied

    _replace(migrate, "_upgrade", perverse)


def infer_success() -> None:
    """Take for delivered what has started, does not run, and was not heard of."""
    from runner.worker.flight import Flight
    from runner.worker.lane import Lane

    outcome_of = Lane.outcome_of

    def let_go(self: Lane, error: BaseException) -> Any:
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            self.ending = True
        return outcome_of(self, error)

    def clean(self: Flight[Any]) -> bool:
        return self.running == 0 and self.next == len(self.works) and not self.troubles

    _replace(Lane, "outcome_of", let_go)
    _replace(Flight, "clean", property(clean))


def settle_together() -> None:
    """Write settlements together or not at all, whatever is wrong with one of them."""
    from runner.worker import settlement_writer

    async def together(items: Sequence[Any], write: Callable[[Sequence[Any]], Any]) -> Any:
        return list(await write(items)), []

    _replace(settlement_writer, "in_halves", together)


def never_renew() -> None:
    """Let leases run out while deliveries run."""
    from runner.worker.leases import Leases

    async def idle(self: Leases) -> None:
        return None

    Leases.renew = idle  # type: ignore[method-assign]


def count_failures() -> None:
    """Count an attempt when it has failed, and not when it is claimed."""
    _change("claim", "attempts = d.attempts + 1", "attempts = d.attempts")


def no_polling() -> None:
    """Never look without a signal, not even when a lease ends."""
    from runner.strategies.polling import Polling
    from runner.worker import backlog, dispatcher

    async def asleep(self: Polling) -> None:
        await asyncio.sleep(3600)

    async def wait_for(event: asyncio.Event, longest: timedelta | None) -> None:
        await event.wait()

    Polling._step = asleep  # type: ignore[method-assign]
    for module in (backlog, dispatcher):
        _replace(module, "wait_for", wait_for)


def trust_the_connection() -> None:
    """Take a server for one that answers, whatever waits for it: its pings, and what it is asked to let us hear."""
    from runner.nats.client import GuardedClient

    connect = GuardedClient.connect

    async def rtt(self: GuardedClient, timeout: float) -> float:
        return 0.0

    async def connect_trustingly(self: GuardedClient, *servers: Any, **options: Any) -> None:
        # nats-py's own guards: its pings, and how long it waits where the buffers of the kernel are full
        await connect(self, *servers, **{**options, "ping_interval": 3600, "flush_timeout": 3600})

    _replace(GuardedClient, "rtt", rtt)
    _replace(GuardedClient, "connect", connect_trustingly)


def never_deaf() -> None:
    """Take it for granted that signals are heard."""
    from runner.strategies.nats import Nats

    async def echo(self: Nats) -> bool:
        self._heard_at = asyncio.get_running_loop().time()
        return True

    _replace(Nats, "_echo", echo)


def take_a_pong_for_a_yes() -> None:
    """Take it that NATS has what came before a PONG, whatever it complained about."""
    from runner.nats.client import GuardedClient

    async def unheard(self: GuardedClient, complaint: str) -> None:
        return None

    _replace(GuardedClient, "_process_err", unheard)


def read_without_limits() -> None:
    """Read of an answer a thousand times what is allowed."""
    from runner.sinks.http import answer

    for name in ("OVERHEAD", "MAX_INTERIM"):
        _replace(answer, name, 1000 * getattr(answer, name))


def keep_what_is_unasked() -> None:
    """Take what came on an idle connection for the beginning of the next answer."""
    from runner.sinks.http.connection import Connection

    exchange, received = Connection.exchange, Connection.data_received
    kept: dict[Connection, bytes] = {}

    def keep(self: Connection, data: bytes) -> None:
        if self._reader is None:
            kept[self] = kept.get(self, b"") + data
        else:
            received(self, data)

    async def hopeful(self: Connection, *args: Any) -> Any:
        if self in kept:
            asyncio.get_running_loop().call_soon(received, self, kept.pop(self))
        return await exchange(self, *args)

    _replace(Connection, "data_received", keep)
    _replace(Connection, "exchange", hopeful)
    _replace(Connection, "silent", True)


def claim_at_every_signal() -> None:
    """Go to the store for every signal, whether or not the last ones brought anything."""
    from runner.worker import dispatcher

    _replace(dispatcher, "_IDLE_WAKES", 10**9)


def ignore_lame_ducks() -> None:
    """Stay with a server until it cuts."""
    from runner.nats.link import Link

    async def deaf(self: Link) -> None:
        return None

    _replace(Link, "_on_lame_duck", deaf)


def trust_what_was_said() -> None:
    """Wait for what the clock of the store said before it was set back."""
    from sqlalchemy import select

    from runner.storage import registry
    from runner.storage.contract.registry import Beat
    from runner.storage.expressions import Now

    async def going_on(connection: Any, _: str) -> Beat:
        return Beat(timedelta(0), (await connection.execute(select(Now()))).scalar_one())

    _replace(registry, "set_back", going_on)


def trust_own_clock() -> None:
    """Let the clock of the process say what is due."""
    from runner.service.clock import utcnow
    from runner.storage.contract.claims import CLAIM, Claim
    from runner.storage.postgres.queue import PostgresQueue

    claim = PostgresQueue.claim
    due = "UPDATE public.scheduled SET due_at = clock_timestamp() WHERE due_at <= $1"

    async def trusting(self: PostgresQueue, limit: int, lease: timedelta, weight: int = CLAIM) -> Claim:
        async with self._connections.take() as connection:
            await connection.execute(due, utcnow())
        return await claim(self, limit, lease, weight)

    _replace(PostgresQueue, "claim", trusting)


def tick_unfenced() -> None:
    """Let every instance that sees a tick publish it: neither the store nor the id of the event tells them apart."""
    from runner.policies.schedule import Schedule

    event_id = Schedule.event_id
    seen = " AND s.revision = i.revision AND s.tick = i.seen AND s.next_at <= clock_timestamp()\n"
    _change("fire_schedules", f"{seen}        FOR UPDATE SKIP LOCKED", "")
    _change("fire_schedules", "WHERE NOT EXISTS (SELECT FROM", "WHERE true OR NOT EXISTS (SELECT FROM")
    _replace(Schedule, "event_id", lambda self, tick: f"{event_id(self, tick)}/{os.getpid()}")


def tick_by_own_clock() -> None:
    """Let the clock of the process say which ticks are due."""
    from runner.periodic.scheduler import Scheduler
    from runner.service.clock import utcnow

    firings = Scheduler._firings
    _replace(Scheduler, "_firings", lambda self, due: firings(self, due._replace(now=utcnow())))


def tick_from_now() -> None:
    """Compute the next tick from the clock, and not from the schedule."""
    from runner.periodic import scheduler
    from runner.policies.ticking import decide

    def forgetful(schedule: Any, standing: Any, now: Any, most: int = 1000) -> Any:
        from dataclasses import replace

        decision = decide(schedule, standing, now, most)
        tick = schedule.after(now)
        return replace(decision, fire=decision.fire[:1], tick=tick, look_at=tick)

    _replace(scheduler, "decide", forgetful)


def commit_bit_by_bit() -> None:
    """Commit each statement by itself in SQLite."""
    from runner.storage.sqlite import claims, events, queue, regulated

    def apart(db: Any, function: Callable[..., Any], *args: Any) -> Any:
        return function(db, *args)

    for module in (claims, events, queue, regulated):
        _replace(module, "transaction", apart)


def die_before_settle() -> None:
    """Kill this process once deliveries have been accepted, before any of it is written."""
    _before("settle", signal.SIGKILL)


def stop_before_settle() -> None:
    """Stop this process once deliveries have been accepted, before any of it is written."""
    _before("settle", signal.SIGSTOP)


def record_rows() -> None:
    """Record each delivery in a row of its own, as versions before the table `runs` do."""
    from runner.storage import runs

    _replace(runs, "_FEW", 1 << 62)


def stop_in_settle() -> None:
    """Stop this process in the middle of a settlement's transaction."""
    _before("_record_attempts", signal.SIGSTOP)


def slow_settle() -> None:
    """Let the first settlement in SQLite take `SLOW` seconds inside its transaction."""
    from runner.storage.sqlite import queue
    from runner.storage.sqlite.rows import transaction
    from runner.storage.sqlite.settlements import settle

    def slow(db: Any, function: Callable[..., Any], *args: Any) -> Any:
        if function is settle and _first():

            def slowly(db: Any, *args: Any) -> Any:
                time.sleep(SLOW)
                return settle(db, *args)

            return transaction(db, slowly, *args)
        return transaction(db, function, *args)

    _replace(queue, "transaction", slow)


def die_in_migration() -> None:
    """Kill the first process that migrates when it has applied the first revision and not the others."""
    from runner.storage import migrate

    upgrade = migrate._upgrade

    def halfway(connection: Any, schema: str | None) -> list[str]:
        from alembic import command

        if _first():
            command.upgrade(migrate._config(schema, connection=connection), "0001")
            os.kill(os.getpid(), signal.SIGKILL)
        return upgrade(connection, schema)

    _replace(migrate, "_upgrade", halfway)


def hang_in_claims() -> None:
    """Let no claim of this process come back, from the first on; it reports every second."""
    from runner.periodic import heartbeat
    from runner.storage.postgres.queue import PostgresQueue

    async def hang(*_: Any) -> Any:
        await asyncio.sleep(3600)

    _replace(PostgresQueue, "claim", hang)
    _replace(heartbeat, "INTERVAL", 1.0)


def wrong_clock() -> None:
    """Set the wall clock of this process as `clock` says, a file with seconds to add; again whenever that changes."""
    import time_machine

    def follow() -> None:
        traveller, current = None, ""
        while True:
            with contextlib.suppress(FileNotFoundError):
                current, before = Path("clock").read_text(), current
                if current and current != before:
                    if traveller is not None:
                        traveller.stop()
                    right = time.time()
                    traveller = time_machine.travel(right + float(current), tick=True)
                    traveller.start()
                    print(f"the clock is off by {time.time() - right:.0f} s", flush=True)
            time.sleep(0.02)

    threading.Thread(target=follow, daemon=True).start()


def store_clock() -> None:
    """Have the clock of SQLite say as many seconds more as the file `clock` says."""
    from runner.storage.sqlite.connection import TidyConnection

    plain = TidyConnection.__init__

    def julianday(_: str) -> float:
        try:
            more = float(Path("clock").read_text())
        except FileNotFoundError:
            more = 0.0
        return 2440587.5 + (time.time() + more) / 86400

    def shifted(self: TidyConnection, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        self.create_function("julianday", 1, julianday)

    _replace(TidyConnection, "__init__", shifted)


def raise_in_callbacks() -> None:
    """Let the callback of the NATS client for errors raise, which ends the client's read loop."""
    from runner.nats.link import Link

    async def broken(self: Link, error: Exception) -> None:
        raise RuntimeError("raised in a callback")

    _replace(Link, "_on_error", broken)


def log_elsewhere() -> None:
    """Log into the file or pipe `log`, in place of the test's own pipe."""
    descriptor = os.open("log", os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 2)
    os.close(descriptor)


MUTANTS: dict[str, Callable[[], None]] = {
    each.__name__.replace("_", "-"): each
    for each in (
        acknowledge_early,
        acknowledge_unknown,
        claim_without_bounds,
        believe_duplicates,
        claim_at_every_signal,
        claim_by_subquery,
        commit_bit_by_bit,
        count_failures,
        forget_at_claim,
        ignore_lame_ducks,
        infer_success,
        keep_what_is_unasked,
        never_deaf,
        never_renew,
        no_polling,
        settle_together,
        read_without_limits,
        run_of_all_between,
        run_unfenced,
        run_wins,
        take_a_pong_for_a_yes,
        tick_by_own_clock,
        tick_from_now,
        tick_unfenced,
        trust_own_clock,
        trust_the_connection,
        trust_what_was_said,
        unfenced,
    )
}
FAULT_POINTS: dict[str, Callable[[], None]] = {
    each.__name__.replace("_", "-"): each
    for each in (
        die_before_settle,
        die_in_migration,
        little_memory,
        hang_in_claims,
        log_elsewhere,
        raise_in_callbacks,
        record_rows,
        slow_settle,
        stop_before_settle,
        stop_in_settle,
        store_clock,
        wrong_clock,
    )
}


def _before(method: str, number: signal.Signals) -> None:
    """Have this process send itself a signal when a method of the store is called for the first time anywhere."""
    from runner.storage.postgres.queue import PostgresQueue

    original = getattr(PostgresQueue, method)

    async def struck(self: PostgresQueue, *args: Any) -> Any:
        if _first():
            os.kill(os.getpid(), number)
        return await original(self, *args)

    setattr(PostgresQueue, method, struck)


def _first() -> bool:
    """Whether this is the first time in the life of the deployment; `struck` then holds the id of the process."""
    try:
        with open("struck", "x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return False
    return True


def _change(name: str, text: str, replacement: str) -> None:
    """Replace a piece of a hot statement of PostgreSQL."""
    from runner.storage.postgres import database
    from runner.storage.postgres.statements import statement

    if text not in statement(name, None, 1):
        raise SystemExit(f"{name}.sql has no {text!r}: this sabotage needs to be written anew")
    _changes.setdefault(name, []).append((text, replacement))

    def changed(name: str, schema: str | None, limit: int = 0) -> str:
        sql = statement(name, schema, limit)
        for old, new in _changes.get(name, []):
            sql = sql.replace(old, new)
        return sql

    _replace(database, "statement", changed)


def _replace(owner: Any, name: str, replacement: object) -> None:
    """Put `replacement` in the place of something that must be there, and that returns what it returns."""
    there, here = (getattr(each, "__annotations__", {}).get("return") for each in (getattr(owner, name), replacement))
    if None not in (there, here) and here not in (there, "Any"):
        raise TypeError(f"{name} returns {there}, and what breaks it {here}")
    setattr(owner, name, replacement)


if __name__ == "__main__":
    from runner.cli import main
    from tests.chaos import sabotage

    sabotage.apply(os.environ.get("CHAOS_SABOTAGE", ""))
    main()
