"""kill -9 of a server in the middle of its requests: what was answered is recorded, what was not can be sent again."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from runner.service.backoff import doubling
from tests.support.eventually import eventually
from tests.support.journal import Journal
from tests.support.process import RunnerProcess, run_cli
from tests.support.server import free_port

from .deployment import Deployment

REQUESTS = 5000
CLIENTS = 32
CONFIG = """\
deployment_id: shop
storage: {{dsn: "{dsn}"}}
sinks: {{journal: {{python: "handlers:note"}}}}
subscriptions: [{{name: everything, types: ["*"], sink: journal}}]
"""


class Publisher:
    """
    Clients that publish each event until it is accepted, and note every answer.

    Attributes:
        receipts: the answer that ended each event; none is asked for again.
        lost: how many requests got no answer.
        unsure: the events of which a request got none, or another one than 202.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._ids = iter(range(REQUESTS))
        self.answers: Counter[int] = Counter()
        self.receipts: dict[str, dict[str, Any]] = {}
        self.lost = 0
        self.unsure: set[str] = set()

    async def run(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
            await asyncio.gather(*[self._client(session) for _ in range(CLIENTS)])

    async def _client(self, session: aiohttp.ClientSession) -> None:
        for number in self._ids:
            for pause in doubling(0.02, 0.5):
                if await self._publish(session, str(number)):
                    break
                await asyncio.sleep(pause)

    async def _publish(self, session: aiohttp.ClientSession, id: str) -> bool:
        headers = {"ce-specversion": "1.0", "ce-type": "order.created", "ce-source": "/shop", "ce-id": id}
        try:
            async with session.post(self._url, headers=headers, data=b"{}") as answer:
                receipt = await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            self.lost += 1
            self.unsure.add(id)
            return False
        self.answers[answer.status] += 1
        if answer.status != 202:
            self.unsure.add(id)
            return False
        self.receipts[id] = receipt
        return True

    async def again(self) -> list[dict[str, Any]]:
        """Publish every event once more, in batches; return the receipts."""
        batched = {"content-type": "application/cloudevents-batch+json"}
        same = {"specversion": "1.0", "type": "order.created", "source": "/shop", "data_base64": "e30="}
        same["datacontenttype"] = "application/octet-stream"  # what the client says of bytes
        receipts: list[dict[str, Any]] = []
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
            for first in range(0, REQUESTS, 1000):
                events = [{**same, "id": str(number)} for number in range(first, first + 1000)]
                async with session.post(self._url, headers=batched, data=json.dumps(events)) as answer:
                    assert answer.status == 202, await answer.text()
                    receipts += await answer.json(content_type=None)
        return receipts


@pytest.mark.timeout(600)
@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_every_202_is_recorded_and_nothing_comes_twice(
    store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    dsn = "sqlite:///runner.db" if store == "sqlite" else request.getfixturevalue("postgres_dsn")
    journal, deployment = Journal(tmp_path), Deployment(tmp_path, dsn)
    port = free_port()
    deployment.path.write_text(CONFIG.format(dsn=dsn))
    (tmp_path / "server.yaml").write_text(
        CONFIG.format(dsn=dsn) + f'api: {{listen: "127.0.0.1:{port}"}}\nworker: {{enabled: false}}\n'
    )
    with deployment.process("start") as worker:
        worker.wait_for_line("started")
        publisher = Publisher(f"http://127.0.0.1:{port}/events")
        kept, again = asyncio.run(killed_amid(publisher, tmp_path, deployment))

        def arrived() -> bool:
            return len(journal.counts()) == REQUESTS

        asyncio.run(eventually(arrived, timeout=120))
    recorded = seqs(deployment)
    assert publisher.lost, "no request was under way when the server was killed"
    assert recorded == {id: receipt["seq"] for id, receipt in publisher.receipts.items()}
    # What a dead server had recorded without an answer, and nothing else, was a duplicate when it was sent again.
    duplicates = {id for id, receipt in publisher.receipts.items() if receipt["duplicate"]}
    assert kept <= duplicates <= publisher.unsure
    assert [(each["id"], each["duplicate"], each["seq"]) for each in again] == [
        (str(number), True, recorded[str(number)]) for number in range(REQUESTS)
    ]
    assert set(journal.counts().values()) == {1}
    print(
        f"\n{store}: {REQUESTS} accepted, {publisher.lost} requests without an answer, of whose events {len(kept)} were"
        f" recorded, {len(duplicates)} duplicates when sent again, {len(again)} of {REQUESTS} the second time, 0 twice"
    )


async def killed_amid(
    publisher: Publisher, directory: Path, deployment: Deployment
) -> tuple[set[str], list[dict[str, Any]]]:
    """
    Kill the server twice while requests are under way, then publish everything again.

    Returns:
        The events that a dead server had recorded and not answered for, and the receipts of the second time.
    """
    kept: set[str] = set()
    publishing = asyncio.create_task(publisher.run())
    for share in (REQUESTS // 3, 2 * REQUESTS // 3, REQUESTS):
        with server(directory) as process:
            await eventually(lambda: len(publisher.receipts) >= share or publishing.done(), timeout=240)  # noqa: B023
            if share < REQUESTS:
                process.kill()
                kept |= set(await asyncio.to_thread(seqs, deployment)) - publisher.receipts.keys()
                continue
            await publishing
            return kept, await publisher.again()
    raise AssertionError("unreachable")


def seqs(deployment: Deployment) -> dict[str, int]:
    """Return the events of the store, each with its seq."""
    done = run_cli("events", "list", "--limit", "10000", "--json", "-c", "runner.yaml", cwd=deployment.directory)
    assert done.returncode == 0, done.stderr
    return {each["event"]["id"]: each["seq"] for each in map(json.loads, done.stdout.splitlines())}


def server(directory: Path) -> RunnerProcess:
    return RunnerProcess("start", "-c", "server.yaml", cwd=directory)
