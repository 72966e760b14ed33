"""Tables that are hard to work on: planned badly, or full of what nobody can clean up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from statistics import quantiles

import asyncpg
import pytest

from tests.support.postgres import PostgresServer

from .deployment import BATCH, LEASE, Subscriber
from .journals import now
from .trial import Trial, Violation

_METHODS = ("hashjoin", "mergejoin", "material", "sort", "hashagg", "bitmapscan", "indexonlyscan", "memoize")
_FATAL = ("hashjoin", "mergejoin", "material", "sort", "hashagg")  # without these, a subquery is computed for each row

_COUNT_CLAIMS = """
CREATE TABLE public.chaos_claims (size int);
CREATE FUNCTION public.chaos_count() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO public.chaos_claims SELECT count(*) FROM claimed WHERE lease_token IS NOT NULL; RETURN NULL; END $$;
CREATE TRIGGER chaos_count AFTER UPDATE ON public.dispatch REFERENCING NEW TABLE AS claimed
    FOR EACH STATEMENT EXECUTE FUNCTION public.chaos_count();
"""

# Rows of work that come and go unseen, as those of a busy day do; one statement leaves so many dead.
_CHURN = """
WITH event AS (SELECT min(seq) AS seq FROM events)
INSERT INTO dispatch (event_seq) SELECT event.seq FROM event, generate_series(1, $1)
"""
_CHURNED = 200_000


async def planned_badly(trial: Trial) -> None:
    """The planner may not use what it would: a claim takes no more than its limit all the same."""
    await trial.start(Subscriber("note", "note"), runners=1)
    admin = await asyncpg.connect(trial.dsn)
    await admin.execute(_COUNT_CLAIMS)
    methods = {*_FATAL, *trial.random.sample(_METHODS, 5)}
    for method in methods:
        await admin.execute(f"ALTER DATABASE {trial.dsn.rsplit('/', 1)[1]} SET enable_{method} = off")
    trial.note(f"without {', '.join(sorted(methods))}")
    [first] = trial.runners
    await asyncio.to_thread(first.stop)
    trial.publish(2000, rate=5000.0, wave=100)
    await trial.reach(2000)
    await trial.deployment.start(3)
    trial.fault()
    await trial.drain(30.0)
    sizes = [row[0] for row in await admin.fetch("SELECT size FROM chaos_claims")]
    await admin.close()
    trial.bite("full claims", sum(size >= BATCH for size in sizes))
    trial.require(max(sizes) <= BATCH, f"a claim took {max(sizes)} events, expected at most {BATCH}")
    await trial.verify()


async def nothing_cleaned_up(trial: Trial) -> None:
    """A transaction that stays open keeps the dead rows of the tables of work where they are."""
    await trial.start(Subscriber("note", "note"))
    trial.publish(2400, rate=100.0, wave=2)
    await trial.reach(500)
    calm = _latencies(trial, 0.0)
    holder, admin = await asyncpg.connect(trial.dsn), await asyncpg.connect(trial.dsn)
    await holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM events")
    trial.note("a transaction stays open")
    began = now()
    for _ in range(20):
        async with admin.transaction():
            await admin.execute(_CHURN, _CHURNED // 20)
            await admin.execute("DELETE FROM dispatch WHERE xmin = pg_current_xact_id()::xid")
        await trial.reach(trial.answered() + 40)
    await admin.execute("VACUUM dispatch")
    trial.bite("dead rows that no vacuum removes", await admin.fetchval(_DEAD))
    busy = _latencies(trial, began)
    trial.note(f"99 % within {_p99(calm) * 1000:.0f} ms before, {_p99(busy) * 1000:.0f} ms since")
    trial.require(_p99(busy) <= max(5 * _p99(calm), 1.0), f"99 % within {_p99(busy):.2f} s, {_p99(calm):.2f} s before")
    await holder.execute("ROLLBACK")
    await admin.execute("VACUUM dispatch")
    trial.fault()
    trial.note("the transaction has ended")
    await asyncio.gather(holder.close(), admin.close())
    await trial.verify(recovery=5.0)


# Each makes prepared statements and cached plans invalid, moves rows, or takes an index away; then it is undone.
_ALTERATIONS: Sequence[tuple[str, ...]] = (
    ("ALTER TABLE events ADD COLUMN chaos int DEFAULT 1", "ALTER TABLE events DROP COLUMN chaos"),
    ("ALTER TABLE dispatch ADD COLUMN chaos text", "ALTER TABLE dispatch DROP COLUMN chaos"),
    ("ALTER TABLE deliveries ADD COLUMN chaos bigint", "ALTER TABLE deliveries DROP COLUMN chaos"),
    ("ALTER TABLE runs ADD COLUMN chaos int DEFAULT 1", "ALTER TABLE runs DROP COLUMN chaos"),
    ("ALTER TABLE dispatch ALTER event_seq TYPE int", "ALTER TABLE dispatch ALTER event_seq TYPE bigint"),
    ("ALTER TABLE events ALTER type TYPE varchar", "ALTER TABLE events ALTER type TYPE text"),
    ("ALTER TABLE bus ALTER subscriptions_version TYPE int", "ALTER TABLE bus ALTER subscriptions_version TYPE bigint"),
    ("VACUUM FULL dispatch", "VACUUM FULL deliveries", "VACUUM FULL runs", "VACUUM FULL events"),
    ("REINDEX TABLE events", "REINDEX TABLE deliveries", "REINDEX TABLE runs"),
    (
        "DROP INDEX deliveries_due",
        "CREATE INDEX CONCURRENTLY deliveries_due ON deliveries (subscription_id, due_at)"
        " WHERE state IN ('pending', 'leased')",
    ),
)
_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'runner'"
_LOCK = "BEGIN; LOCK TABLE dispatch, deliveries, runs, events IN ACCESS EXCLUSIVE MODE"


async def altered(trial: Trial) -> None:
    """An administrator changes the tables while they are worked on, and holds them for seconds."""
    retried = Subscriber("stumble", "stumble", options="breaker: off")
    await trial.start(Subscriber("work"), retried, Subscriber("hook", hook=0.02))
    trial.publish(1200, rate=100.0)
    admin = await asyncpg.connect(trial.dsn, timeout=10, server_settings={"search_path": "public"})
    other = await asyncpg.connect(trial.dsn)
    alterations = list(_ALTERATIONS)
    trial.random.shuffle(alterations)
    for statements in alterations:
        for statement in statements:
            before = trial.answered()
            await _altered(admin, statement)
            trial.fault()
            await trial.reach(before + 10)
            trial.bite("changes under load")
        trial.note(statements[0])
    await _altered(admin, _LOCK)
    held = now()
    await trial.require_soon(lambda: other.fetchval(_WAITING), "a runner waits for the lock", 5.0)
    trial.bite("sessions that wait for a lock", await other.fetchval(_WAITING))
    await asyncio.sleep(max(0.0, trial.random.uniform(1.0, 3.0) - (now() - held)))
    seconds = now() - held
    await admin.execute("COMMIT")
    trial.fault()
    trial.note("the tables were held for seconds")
    await asyncio.gather(admin.close(), other.close())
    # What is held longer than a lease is delivered again.
    await trial.verify(duplicates=trial.held() if seconds >= LEASE / 2 else 0, recovery=5.0)


async def _altered(admin: asyncpg.Connection, statement: str) -> None:
    """Do as an administrator does of whose statement and a runner's PostgreSQL has ended this one: repeat it."""
    while True:
        try:
            await admin.execute(statement, timeout=30)
        except asyncpg.DeadlockDetectedError:
            await admin.execute("ROLLBACK")
        else:
            return


_DEAD = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'dispatch'"


def _latencies(trial: Trial, since: float) -> list[float]:
    """Return the seconds from publishing to acceptance, of events published since then."""
    seen = trial.deployment.deliveries.read()  # first: each of them was published before it
    invoked = {line.id: line.at for line in trial.deployment.published.read() if line.step == "invoke"}
    return [each.at - invoked[each.id] for each in seen if each.step == "accepted" and invoked[each.id] >= since]


def _p99(seconds: Sequence[float]) -> float:
    return quantiles(seconds, n=100)[-1]


@pytest.mark.chaos_postgres
@pytest.mark.chaos("FI-28", "a transaction that stays open, and 200,000 rows of work that come and go")
async def test_fi_28(trial: Trial) -> None:
    await nothing_cleaned_up(trial)


@pytest.mark.chaos_postgres
@pytest.mark.chaos("FI-30", "a planner that may not use most of its methods")
async def test_fi_30(trial: Trial) -> None:
    await planned_badly(trial)


@pytest.mark.chaos_postgres
@pytest.mark.chaos("FI-65", "tables altered, rewritten, indexed anew and locked under load")
async def test_fi_65(trial: Trial) -> None:
    await altered(trial)


@pytest.mark.chaos("FI-30")
async def test_a_mutant_is_caught(make_trial: Callable[..., Trial], durable_postgres: PostgresServer) -> None:
    with pytest.raises(Violation):
        await planned_badly(make_trial(durable_postgres, mutant="claim-by-subquery"))
