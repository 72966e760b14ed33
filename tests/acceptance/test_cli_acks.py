"""Deferred deliveries, acknowledged on the command line while a runner runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.eventually import eventually

from .deployment import Deployment, started

CONFIG = """\
deployment_id: shop
storage: {{dsn: "{dsn}"}}
sinks:
  later: {{python: "handlers:later"}}
  soon: {{python: "handlers:soon"}}
subscriptions:
  - {{name: later, types: ["later.*"], sink: later, retry: {{delay: 10ms}}}}
  - {{name: soon, types: ["soon.*"], sink: soon, retry: {{schedule: [10ms]}}}}
  - {{name: line, types: ["line.*"], sink: later, order_by: subject}}
"""

HANDLERS = """\
from datetime import timedelta
from runner import Deferred

def later(event):
    return Deferred(timedelta(hours=1))

def soon(event):
    return Deferred(timedelta(milliseconds=100))
"""


@pytest.fixture(params=["sqlite", "postgres"])
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Deployment:
    dsn = "sqlite:///runner.db" if request.param == "sqlite" else request.getfixturevalue("postgres_dsn")
    made = Deployment(tmp_path, dsn)
    made.path.write_text(CONFIG.format(dsn=dsn))
    (tmp_path / "handlers.py").write_text(HANDLERS)
    made.cli("migrate")
    return made


def wait(check: Callable[[], Any]) -> Any:
    return asyncio.run(eventually(lambda: asyncio.to_thread(check)))


def deferred(deployment: Deployment, event: str, attempts: int = 1) -> bool:
    """Whether the delivery of the event to `later` waits for its acknowledgement after so many attempts."""
    in_half_an_hour = datetime.now(UTC) + timedelta(minutes=30)
    return any(
        found["attempts"] == attempts and datetime.fromisoformat(found["due_at"]) > in_half_an_hour
        for found in deployment.json("deliveries", "list", "--event", event, "--state", "leased")
    )


def test_deferred_deliveries_are_acknowledged(deployment: Deployment) -> None:
    with started(deployment) as runner:
        for number in (1, 2):
            deployment.cli("publish", "later.one", "--id", f"e{number}")
        deployment.cli("publish", "soon.one")

        wait(lambda: deferred(deployment, "1"))
        said = "the delivery of event 1 to later"
        assert deployment.cli("deliveries", "ack", "1", "later")[0] == f"{said} is acknowledged\n"
        assert deployment.json("deliveries", "list", "--event", "1")[0]["state"] == "delivered"
        assert deployment.cli("deliveries", "ack", "1", "later")[0] == f"{said} was delivered already\n"

        wait(lambda: deferred(deployment, "2"))
        failed = deployment.json("deliveries", "ack", "e2", "later", "--fail", "no such customer")
        assert failed == [{"event": "e2", "subscription": "later", "answer": "failed", "changed": True}]
        wait(lambda: deferred(deployment, "2", attempts=2))
        [shown] = deployment.json("deliveries", "show", "e2", "later")
        assert [(each["number"], each["error"]) for each in shown["history"]] == [(1, "no such customer")]

        deployment.cli("deliveries", "cancel", "2", "later")
        _, complaint = deployment.cli("deliveries", "ack", "2", "later", code=1)
        assert "the delivery of event 2 is cancelled" in complaint
        assert "no subscription 'nobody'" in deployment.cli("deliveries", "ack", "2", "nobody", code=1)[1]

        wait(lambda: deployment.json("deliveries", "list", "--event", "3", "--state", "dead"))
        [dead] = deployment.json("deliveries", "list", "--event", "3")
        assert dead["last_error"] == "not acknowledged within 0.1 s (attempt 2 of 2)"
        assert runner.stop() == 0


def test_the_next_of_a_line_goes_once_the_one_before_it_is_acknowledged_or_cancelled(deployment: Deployment) -> None:
    with started(deployment) as runner:
        for _ in range(3):
            deployment.cli("publish", "line.one", "--subject", "a")
        wait(lambda: deferred(deployment, "1"))
        deployment.cli("deliveries", "ack", "1", "line")
        wait(lambda: deferred(deployment, "2"))
        deployment.cli("events", "cancel", "2")
        wait(lambda: deferred(deployment, "3"))
        assert runner.stop() == 0
