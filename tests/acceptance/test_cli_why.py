"""`runner why` and `subscriptions explain`, of what a real runner left behind."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.eventually import eventually

from .deployment import Deployment, started

CONFIG = """\
deployment_id: shop
storage: {{dsn: "{dsn}"}}
sinks:
  broken: {{python: "handlers:fail"}}
  stuck: {{python: "handlers:wait"}}
subscriptions:
  - {{name: crm, types: ["order.*"], filter: {{prefix: {{subject: eu/}}}}, sink: broken,
     retry: {{delay: 1h, jitter: 0}}}}
  - {{name: line, types: ["order.*"], sink: stuck, order_by: subject}}
"""

HANDLERS = """\
import asyncio

def fail(event):
    raise RuntimeError("no such customer")

async def wait(event):
    await asyncio.sleep(3600)
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


def test_why(deployment: Deployment) -> None:
    def kinds(event: str, subscription: str) -> list[str]:
        [found] = deployment.json("why", event, subscription)
        return [each["kind"] for each in found["reasons"]]

    with started(deployment) as runner:
        for number, subject in enumerate(("eu/1", "us/1", "eu/1"), 1):
            deployment.cli("publish", "order.created", "--id", f"e{number}", "--subject", subject)
        wait(lambda: kinds("e1", "crm") == ["retry"])
        wait(lambda: kinds("e1", "line") == ["lease"])
        wait(lambda: kinds("e3", "line") == ["order"])
        screen = deployment.cli("why", "e1", "crm")[0].splitlines()
        assert screen[0] == "event 1 (order.created) for crm: pending"
        assert screen[1].startswith("it matches; the subscription was written at ")
        assert screen[2].startswith("retry: it waits to be retried: RuntimeError: no such customer, until ")
        assert f":{runner.pid}) holds its lease" in deployment.cli("why", "1", "line")[0]
        said = "filter.prefix.subject: expected to begin with 'eu/', the event has 'us/1'"
        assert f"it does not match: {said}" in deployment.cli("why", "e2", "crm")[0]
        deployment.cli("subscriptions", "pause", "crm")
        assert kinds("e1", "crm") == ["paused", "retry"]
        assert re.search(r"^paused: \S+@\S+ paused the subscription at ", deployment.cli("why", "1", "crm")[0], re.M)
        runner.kill()
    deployment.cli("publish", "order.created", "--id", "e4", "--subject", "eu/2")
    assert kinds("e4", "crm")[:2] == ["queued", "paused"]
    assert "no event has the seq or the id 'e9'" in deployment.cli("why", "e9", "crm", code=1)[1]
    assert "no subscription 'oders'; there are: crm, line" in deployment.cli("why", "e1", "oders", code=1)[1]


def test_explain(deployment: Deployment) -> None:
    with started(deployment) as runner:
        assert runner.stop() == 0
    event = {"specversion": "1.0", "id": "e1", "source": "/shop", "type": "order.created", "subject": "us/1"}
    (deployment.directory / "event.json").write_text(json.dumps(event, indent=1))
    explain = ("subscriptions", "explain", "crm", "--event")
    [found] = deployment.json(*explain, "event.json")
    assert (found["matched"], found["failing"]) == (
        False,
        {"clause": "filter.prefix.subject", "expected": "to begin with 'eu/'", "actual": "'us/1'"},
    )
    assert deployment.json(*explain, "-", input=json.dumps(event | {"subject": "eu/1"}))[0]["matched"]
    screen = deployment.cli(*explain, "event.json")[0]
    assert screen.startswith("crm does not match: filter.prefix.subject: expected to begin with 'eu/', the event has")
    assert "--event: " in deployment.cli(*explain, "-", input="{", code=1)[1]
