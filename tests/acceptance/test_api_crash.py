"""kill -9 of a server in the middle of its requests: what was answered is recorded, what was not can be sent again."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from runner.service.backoff import doubling
from tests.support.eventually import eventually
from tests.support.journal import Journal
from tests.support.process import RunnerProcess
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
    """Clients that publish each event until it is accepted, and note every answer."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._ids = iter(range(REQUESTS))
        self.answers: Counter[int] = Counter()
        self.accepted: dict[str, list[bool]] = {}  # event -> was it a duplicate, for each 202
        self.lost = 0

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
            return False
        self.answers[answer.status] += 1
        if answer.status == 202:
            self.accepted.setdefault(id, []).append(receipt["duplicate"])
        return answer.status == 202


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
        asyncio.run(killed_amid(publisher, tmp_path))
        assert publisher.lost > 0
        assert len(publisher.accepted) == REQUESTS

        def arrived() -> bool:
            return len(journal.counts()) == REQUESTS

        asyncio.run(eventually(arrived, timeout=120))
    assert set(journal.counts().values()) == {1}
    recorded = {each["event"]["id"]: each["seq"] for each in deployment.json("events", "list", "--limit", "10000")}
    assert recorded.keys() == {str(number) for number in range(REQUESTS)}


async def killed_amid(publisher: Publisher, directory: Path) -> None:
    """Kill the server twice while requests are under way."""
    publishing = asyncio.create_task(publisher.run())
    for share in (REQUESTS // 3, 2 * REQUESTS // 3, REQUESTS):
        with server(directory) as process:
            await eventually(lambda: len(publisher.accepted) >= share or publishing.done(), timeout=240)  # noqa: B023
            if share < REQUESTS:
                process.kill()
                continue
            await publishing


def server(directory: Path) -> RunnerProcess:
    return RunnerProcess("start", "-c", "server.yaml", cwd=directory)
