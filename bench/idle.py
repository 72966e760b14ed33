"""What a runner costs while nothing happens: `runner start`, NATS proven, no events."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE, create_subprocess_exec
from pathlib import Path
from typing import Any

import asyncpg
import psutil

from .contenders.base import Contender, Place

__all__ = ["idle"]

# Asked over a connection to another database, so that asking is not counted.
_TRANSACTIONS = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = $1"


async def idle(subject: Contender, place: Place, *, settle: float, seconds: float) -> dict[str, Any]:
    """Look at a runner that has had `settle` seconds to calm down; for `seconds`."""
    await subject.prepare()
    server, _, database = place.dsn.rpartition("/")
    connection = await asyncpg.connect(f"{server}/postgres")
    path = Path(place.directory) / "bench.yaml"
    process = await create_subprocess_exec(
        sys.executable, "-m", "runner", "start", "-c", str(path), stdout=DEVNULL, stderr=PIPE
    )
    try:
        await asyncio.sleep(settle)
        runner = psutil.Process(process.pid)
        busy, transactions = sum(runner.cpu_times()[:2]), await connection.fetchval(_TRANSACTIONS, database)
        await asyncio.sleep(seconds)
        busy = sum(runner.cpu_times()[:2]) - busy
        transactions = await connection.fetchval(_TRANSACTIONS, database) - transactions
        memory = runner.memory_info().rss / 2**20
    finally:
        process.terminate()
        _, errors = await process.communicate()
        await connection.close()
    if process.returncode != 0:
        raise SystemExit(f"runner start ended with {process.returncode}: {errors.decode()[-500:]}")
    return {"cpu": 100 * busy / seconds, "queries": transactions / seconds, "memory": memory}
