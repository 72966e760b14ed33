"""`python -m bench.records`: what reads by people and retention cost over millions of recorded deliveries."""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import click
import psutil
from sqlalchemy import event, func, select, text

from runner.builder import open_storage
from runner.config import load_config
from runner.delivery import DeliveryState
from runner.storage import Storage, tables
from runner.storage.contract.archive import Retention
from runner.storage.contract.records import DeliveryQuery
from runner.subscription import Subscription
from tests.support.postgres import PostgresServer

_FILE = 'deployment_id: bench\nstorage: {{dsn: "{dsn}"}}\nlog: {{level: error}}\n'
_RETENTION = Retention(delivered=timedelta(days=7), dead=timedelta(days=7))
_PAGE = 4000  # events, as the pruner takes them
_STEP = 100_000  # events recorded in one transaction
_SETTINGS = {"max_wal_size": "8GB", "checkpoint_timeout": "30min", "shared_buffers": "512MB"}

# Events that were recorded and delivered thirty days ago, by the server: `:a` to `:b`. What the bus would record of
# them follows, in runs of a block each, or in rows; one of a hundred has a row in any case, of a second attempt.
_EVENTS = """
INSERT INTO events (seq, id, source, type, data, created_at)
SELECT n, 'h' || n, '/history', 'bench.event', repeat('x', 100)::bytea, now() - interval '30 days'
FROM generate_series(CAST(:a AS bigint), CAST(:b AS bigint)) n
"""
_RUNS = """
INSERT INTO runs (first, last, seqs, subscriptions, settled_at)
SELECT min(n), max(n), range_agg(int8range(n, n, '[]')),
       ARRAY(SELECT id FROM subscriptions ORDER BY id), now() - interval '30 days'
FROM generate_series(CAST(:a AS bigint), CAST(:b AS bigint)) n GROUP BY n >> 8
"""
_ROWS = """
INSERT INTO deliveries (event_seq, subscription_id, state, attempts, updated_at)
SELECT n, s.id, 'delivered', 1, now() - interval '30 days'
FROM generate_series(CAST(:a AS bigint), CAST(:b AS bigint)) n CROSS JOIN subscriptions s
WHERE NOT (n % 100 = 0 AND s.id = (SELECT min(id) FROM subscriptions))
"""
_RETRIED = """
INSERT INTO deliveries (event_seq, subscription_id, state, attempts, updated_at)
SELECT n, (SELECT min(id) FROM subscriptions), 'delivered', 2, now() - interval '30 days'
FROM generate_series(CAST(:a AS bigint), CAST(:b AS bigint)) n WHERE n % 100 = 0
"""

_NUMBERS = "WITH RECURSIVE number (n) AS (SELECT :a UNION ALL SELECT n + 1 FROM number WHERE n < :b)"
_AGED = "CAST((julianday('now') - 2440587.5 - 30) * 86400000000 AS INTEGER)"
_EVENTS_SQLITE = f"""
{_NUMBERS} INSERT INTO events (seq, id, source, type, data, created_at)
SELECT n, 'h' || n, '/history', 'bench.event', zeroblob(100), {_AGED} FROM number
"""
_RUNS_SQLITE = f"""
{_NUMBERS} INSERT INTO runs (first, last, seqs, subscriptions, settled_at)
SELECT min(n), max(n), json_array(json_array(min(n), max(n))),
       (SELECT json_group_array(id) FROM subscriptions), {_AGED} FROM number GROUP BY n >> 8
"""
_ROWS_SQLITE = f"""
{_NUMBERS} INSERT INTO deliveries (event_seq, subscription_id, state, attempts, updated_at)
SELECT n, s.id, 'delivered', 1, {_AGED} FROM number CROSS JOIN subscriptions s
WHERE NOT (n % 100 = 0 AND s.id = (SELECT min(id) FROM subscriptions))
"""
_RETRIED_SQLITE = f"""
{_NUMBERS} INSERT INTO deliveries (event_seq, subscription_id, state, attempts, updated_at)
SELECT n, (SELECT min(id) FROM subscriptions), 'delivered', 2, {_AGED} FROM number WHERE n % 100 = 0
"""


@click.command()
@click.option("--events", default=1_000_000, show_default=True, help="Events on record.")
@click.option("--subscriptions", default=10, show_default=True, help="Deliveries of each.")
@click.option("--samples", default=100, show_default=True, help="Reads of each kind.")
@click.option("--rows", is_flag=True, help="A row for each delivery, as versions before runs left them.")
@click.option("--sqlite", is_flag=True, help="In a file of SQLite, not in PostgreSQL.")
def main(events: int, subscriptions: int, samples: int, rows: bool, sqlite: bool) -> None:
    """Measure reads and retention over deliveries on record."""
    with tempfile.TemporaryDirectory(prefix="runner-bench-") as directory:
        if sqlite:
            dsn = f"sqlite:///{directory}/bench.db"
            asyncio.run(_measure(Path(directory), dsn, events, subscriptions, samples, rows))
            return
        server = PostgresServer(18, fsync=True, settings=_SETTINGS)
        server.start()
        try:
            dsn = server.create_database()
            asyncio.run(_measure(Path(directory), dsn, events, subscriptions, samples, rows))
        finally:
            server.discard()


async def _measure(directory: Path, dsn: str, events: int, subscriptions: int, samples: int, rows: bool) -> None:
    path = directory / "bench.yaml"
    path.write_text(_FILE.format(dsn=dsn))
    async with open_storage(load_config(path), create=True) as storage:
        names = [f"matching-{number}" for number in range(subscriptions)]
        await storage.registry.put_subscriptions([Subscription(name=name, sink="s") for name in names], "file")
        began = time.perf_counter()
        await _fill(storage, events, rows=rows)
        size = await _size(storage)
        kind = "rows" if rows else "runs"
        click.echo(
            f"{events * subscriptions:,} deliveries of {events:,} events in {kind} on {storage.engine.dialect.name}, "
            f"{size / events:,.0f} B for each event; filled in {time.perf_counter() - began:.0f} s"
        )
        await _read(storage, events, names, samples)
        await _prune(storage, events)


async def _fill(storage: Storage, events: int, *, rows: bool) -> None:
    sqlite = storage.engine.dialect.name == "sqlite"
    recorded = (_ROWS_SQLITE if rows else _RUNS_SQLITE) if sqlite else (_ROWS if rows else _RUNS)
    statements = [_EVENTS_SQLITE, _RETRIED_SQLITE, recorded] if sqlite else [_EVENTS, _RETRIED, recorded]
    for start in range(1, events + 1, _STEP):
        async with storage.engine.begin() as connection:
            if not sqlite:
                await connection.execute(text(f"SET LOCAL search_path TO {storage.schema}, pg_catalog"))
            for statement in statements:
                await connection.execute(text(statement), {"a": start, "b": min(start + _STEP - 1, events)})
    if sqlite:
        return
    async with storage.engine.connect() as connection:  # as autovacuum does meanwhile, where rows come one by one
        plain = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await plain.execute(text("VACUUM ANALYZE"))


async def _size(storage: Storage) -> int:
    pages = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
    sqlite = storage.engine.dialect.name == "sqlite"
    async with storage.engine.connect() as connection:
        found = await connection.scalar(text(pages if sqlite else "SELECT pg_database_size(current_database())"))
        return int(found or 0)


async def _read(storage: Storage, events: int, names: Sequence[str], samples: int) -> None:
    """Print how long reads take, of an event and a subscription chosen at random each time."""
    chance = random.Random(7)

    def seq() -> int:
        return chance.randint(1, events)

    async def listed(query: DeliveryQuery) -> int:
        return len([view async for view in storage.records.deliveries(query)])

    async def event_shown() -> int:
        return sum((await storage.records.event(str(seq()))).deliveries.values())

    async def of_event() -> int:
        return await listed(DeliveryQuery(seq=seq()))

    async def of_subscription() -> int:
        return await listed(DeliveryQuery(subscription=chance.choice(names), limit=100))

    async def in_the_middle() -> int:
        return await listed(DeliveryQuery(subscription=chance.choice(names), before=(seq(), names[0]), limit=100))

    async def without_any() -> int:
        return await listed(DeliveryQuery(state=DeliveryState.DEAD, limit=100))

    for title, ask in (
        ("events show", event_shown),
        ("deliveries list --event", of_event),
        ("deliveries list --subscription --limit 100", of_subscription),
        ("a later page of it", in_the_middle),
        ("deliveries list --state dead, none of them", without_any),
    ):
        taken, found, before = [], 0, await _busy(storage)
        for _ in range(samples):
            began = time.perf_counter()
            found += await ask()
            taken.append(1000 * (time.perf_counter() - began))
        p50, p99 = statistics.median(taken), statistics.quantiles(taken, n=100)[98]
        busy = 1000 * (await _busy(storage) - before) / samples
        click.echo(
            f"{title}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, the shortest {min(taken):.1f} ms, {busy:.1f} ms of CPU, "
            f"{found / samples:.0f} deliveries each"
        )


async def _busy(storage: Storage) -> float:
    """Return the seconds of CPU that this process has taken, and the one of the server that answers the engine."""
    if storage.engine.dialect.name == "sqlite":
        return time.process_time()
    async with storage.engine.connect() as connection:
        pid = await connection.scalar(text("SELECT pg_backend_pid()"))
    return time.process_time() + float(sum(psutil.Process(pid).cpu_times()[:2]))


async def _prune(storage: Storage, events: int) -> None:
    """Print how long retention takes for all of it, page by page and without the pauses of the pruner."""
    before = await _busy(storage)
    after, pages, began = 0, 0, time.perf_counter()
    async with _timed(storage) as longest:
        while True:
            pruned = await storage.archive.prune(_RETENTION, after, _PAGE)
            after, pages = pruned.after, pages + 1
            if pruned.ended:
                break
    took, busy = time.perf_counter() - began, await _busy(storage) - before
    seconds, statement = longest()
    click.echo(
        f"retention: {took:.1f} s for all of them, {1000 * took / pages:.1f} ms for {_PAGE} events, {busy:.1f} s of "
        f"CPU; longest statement {1000 * seconds:.0f} ms: {' '.join(statement.split())[:70]}"
    )
    async with storage.engine.connect() as connection:
        counts = (select(func.count()).select_from(table) for table in (tables.events, tables.deliveries, tables.runs))
        left = [await connection.scalar(count) for count in counts]
    if left != [0, 0, 0]:
        raise SystemExit(f"expected nothing to be left of {events} events, found {left}")


@asynccontextmanager
async def _timed(storage: Storage) -> AsyncIterator[Callable[[], tuple[float, str]]]:
    """Time each statement of the engine; the value returns the seconds and the text of the longest one."""
    longest, began = (0.0, ""), 0.0

    def before(*_: object) -> None:
        nonlocal began
        began = time.perf_counter()

    def after(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        nonlocal longest
        longest = max(longest, (time.perf_counter() - began, statement))

    engine = storage.engine.sync_engine
    event.listen(engine, "before_cursor_execute", before)
    event.listen(engine, "after_cursor_execute", after)
    yield lambda: longest
    event.remove(engine, "before_cursor_execute", before)
    event.remove(engine, "after_cursor_execute", after)


if __name__ == "__main__":
    main()
