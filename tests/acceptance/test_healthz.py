"""`/healthz` of a process one of whose loops is stuck, or whose event loop is blocked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest

from tests.support.eventually import eventually
from tests.support.http import ask

from .deployment import Deployment, started

# Two seconds in place of twenty, so that the test does not wait; the length itself is held beside its definition.
_HANDLERS = """\
import os, time
from runner.service import vitals
vitals.STUCK = 2.0

async def wait(event):
    while not os.path.exists("told"):
        time.sleep(0.1)

fail = wait
"""


@pytest.fixture
def deployment(tmp_path: Path, tables_dsn: str) -> Deployment:
    made = Deployment(tmp_path, tables_dsn)
    made.write(more="api: {listen: '127.0.0.1:0'}\n")
    (tmp_path / "handlers.py").write_text(_HANDLERS)
    return made


@contextmanager
def locked(dsn: str, table: str) -> Iterator[None]:
    """Keep everybody from a table."""
    with asyncio.Runner() as loop:
        connection = loop.run(asyncpg.connect(dsn))
        loop.run(connection.execute(f"BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
        try:
            yield
        finally:
            loop.run(connection.close())


def test_a_stuck_loop_and_a_blocked_event_loop_are_told(deployment: Deployment) -> None:
    with started(deployment) as runner:
        url = "http" + runner.wait_for_line(r"listening.*http://").rpartition("'http")[2].rstrip("']")

        def healthz() -> int | None:
            try:
                return ask(url, "/healthz", timeout=1).status
            except OSError:  # the event loop had taken the connection when it was blocked
                return None

        def becomes(status: int) -> None:
            asyncio.run(eventually(lambda: healthz() == status, every=0.1))

        becomes(200)
        with locked(deployment.dsn, "scheduled"):  # claims hang, and the heartbeat is answered
            deployment.cli("publish", "a.b")
            becomes(503)
        becomes(200)
        deployment.cli("publish", "stuck.now")
        becomes(503)
        (deployment.directory / "told").touch()
        becomes(200)
