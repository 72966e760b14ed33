"""The official SDKs of CloudEvents, Python and JavaScript, publish to `POST /events` and read what a webhook sends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from aiohttp import web
from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings import http as sdk
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from runner import Event, load
from tests.support.eventually import eventually
from tests.support.http import ask

from .buses import Bus
from .test_api_publishing import Door

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
EVENTS = [
    Event(type="a.minimal", source="/shop", id="minimal", time=NOON),
    Event.new(
        "a.json",
        {"n": 1, "text": "é"},
        source="https://shop.example/orders",
        id="json",
        time=NOON,
        subject="Euro € 😀",
        dataschema="https://shop.example/schema",
        extensions={"tenantid": "shop 1"},
    ),
    Event(type="a.text", source="/shop", id="text", time=NOON, datacontenttype="text/plain", data="größer".encode()),
]

JAVASCRIPT = """
import { createServer } from "node:http";
import { CloudEvent, HTTP } from "cloudevents";

const [, , job, argument] = process.argv;
const read = async (request) => {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  return Buffer.concat(pieces).toString();
};

if (job === "publish") {
  for (const attributes of JSON.parse(await read(process.stdin))) {
    const event = new CloudEvent(attributes);
    const message = event.id.startsWith("binary") ? HTTP.binary(event) : HTTP.structured(event);
    const answer = await fetch(argument, { method: "POST", headers: message.headers, body: message.body });
    console.log(JSON.stringify([answer.status, await answer.json()]));
  }
} else {
  const server = createServer(async (request, response) => {
    const body = await read(request);
    try {
      console.log(JSON.stringify(HTTP.toEvent({ headers: request.headers, body }).toJSON()));
    } catch (error) {
      console.log(JSON.stringify({ error: String(error), headers: request.headers, body }));
    }
    response.writeHead(204).end();
  });
  server.listen(0, "127.0.0.1", () => console.log(server.address().port));
}
"""


@pytest.fixture(scope="session")
def javascript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("there is no Node.js here")
    directory = tmp_path_factory.mktemp("javascript")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "cloudevents@10.0.0"]
    done = subprocess.run(install, cwd=directory, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        pytest.skip("the registry of npm cannot be reached")
    (directory / "job.mjs").write_text(JAVASCRIPT)
    return directory


@contextlib.asynccontextmanager
async def serving(tables_file: str, tmp_path: Path, more: str = "") -> AsyncIterator[Door]:
    async with load(Bus(tmp_path, tables_file).write("api: {listen: '127.0.0.1:0'}\n" + more)) as runner:
        yield Door(runner)


def posting_to(port: int) -> str:
    """Return a file that posts each event to a receiver, in either mode."""
    url = f"http://127.0.0.1:{port}/"
    return (
        f"sinks: {{b: {{webhook: '{url}'}}, s: {{webhook: {{url: '{url}', mode: structured}}}}}}\n"
        "subscriptions: [{name: b, sink: b}, {name: s, sink: s}]\n"
    )


def texts(event: Event) -> dict[str, Any]:
    """Return all an event says, as it is after a way through headers."""
    names = ("id", "type", "source", "subject", "time", "datacontenttype", "dataschema", *event.extensions)
    given = {name: event.attribute(name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


class TestPython:
    @pytest.mark.parametrize("write", [sdk.to_binary, sdk.to_structured])
    async def test_publishes(
        self, tables_file: str, tmp_path: Path, write: Callable[[CloudEvent, JSONFormat], sdk.HTTPMessage]
    ) -> None:
        async with serving(tables_file, tmp_path) as door:
            for event in EVENTS:
                attributes = texts(event) | {"specversion": "1.0", "time": event.time}
                data = event.json() if event.id == "json" else None if event.data is None else event.data.decode()
                message = write(CloudEvent(attributes, data), JSONFormat())
                answer = await door.post(message.headers, message.body)
                assert (answer.status, answer.json["id"]) == (202, event.id)
            recorded = await door.recorded()
            assert [texts(each) for each in recorded] == [texts(each) for each in EVENTS]
            assert recorded[0].data is None
            assert recorded[1].json() == EVENTS[1].json()
            assert recorded[2].data == EVENTS[2].data

    async def test_reads_what_a_webhook_sends(self, tables_file: str, tmp_path: Path) -> None:
        seen: list[BaseCloudEvent] = []

        async def receive(request: web.Request) -> web.Response:
            message = sdk.HTTPMessage(headers=dict(request.headers), body=await request.read())
            seen.append(sdk.from_http(message, JSONFormat(), CloudEvent))
            return web.Response(status=204)

        app = web.Application()
        app.router.add_post("/", receive)
        server = web.AppRunner(app)
        await server.setup()
        site = web.TCPSite(server, "127.0.0.1", 0)
        await site.start()
        port = server.addresses[0][1]
        async with serving(tables_file, tmp_path, posting_to(port)) as door:
            await door.runner.publish_many(EVENTS)
            await eventually(lambda: len(seen) == 2 * len(EVENTS))
        await server.cleanup()
        for event in EVENTS:
            both = [each for each in seen if each.get_id() == event.id]
            for each in both:
                attributes = {name: value for name, value in each.get_attributes().items() if value is not None}
                assert attributes.pop("specversion") == "1.0"
                assert attributes == texts(event) | {"time": NOON}
                if event.id == "json":
                    assert each.get_data() == event.json()
            assert len(both) == 2


class TestJavaScript:
    """This SDK writes and reads header values as they are, without the percent-encoding of the binding (§3.1.3.2)."""

    async def test_publishes(self, tables_file: str, tmp_path: Path, javascript: Path) -> None:
        async with serving(tables_file, tmp_path) as door:
            given = [
                texts(self.plain(event) if mode == "binary" else event)
                | {"id": f"{mode}-{event.id}"}
                | ({} if event.data is None else {"data": event.json() if event.id == "json" else event.data.decode()})
                for event in EVENTS
                for mode in ("binary", "structured")
            ]
            job = ["node", "job.mjs", "publish", f"{door.address}/events"]
            done = await asyncio.to_thread(
                lambda: subprocess.run(
                    job, cwd=javascript, input=json.dumps(given), capture_output=True, text=True, timeout=60, check=True
                )
            )
            assert [json.loads(line)[0] for line in done.stdout.splitlines()] == [202] * len(given), done.stdout
            recorded = {each.id: each for each in await door.recorded()}
            for event in EVENTS:
                for mode in ("binary", "structured"):
                    back = recorded[f"{mode}-{event.id}"]
                    expected = texts(self.plain(event) if mode == "binary" else event) | {"id": back.id}
                    found = texts(back)
                    if event.data is None:
                        found.pop("datacontenttype", None)  # it names one for data that is not there
                    assert found == expected
                    if event.id == "json":
                        assert back.json() == event.json()
                    elif event.data is not None:
                        assert back.data == event.data

    @staticmethod
    def plain(event: Event) -> Event:
        """Return an event whose attributes are the same with and without percent-encoding."""
        if event.subject is None:
            return event
        return event.replace(subject="order/17", extensions={"tenantid": "shop"})

    async def test_reads_what_a_webhook_sends(self, tables_file: str, tmp_path: Path, javascript: Path) -> None:
        process = await asyncio.create_subprocess_exec(
            "node", "job.mjs", "receive", cwd=javascript, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            port = int(await process.stdout.readline())
            async with serving(tables_file, tmp_path, posting_to(port)) as door:
                await door.runner.publish_many(EVENTS)
                lines = [await asyncio.wait_for(process.stdout.readline(), 30) for _ in range(2 * len(EVENTS))]
        finally:
            process.kill()
            await process.wait()
        seen = [json.loads(line) for line in lines]
        for event in EVENTS:
            both = [each for each in seen if each.get("id") == event.id]
            assert len(both) == 2, seen
            for each in both:
                assert datetime.fromisoformat(each["time"]) == NOON
                expected = texts(event) | {"time": each["time"]}
                assert {name: unquote(str(each.get(name))) for name in expected} == expected
                if event.id == "json":
                    assert each["data"] == event.json()
                elif event.data is not None:
                    assert each["data"] == event.data.decode()


async def test_a_server_that_only_answers_is_enough_for_them(tables_file: str, tmp_path: Path) -> None:
    """The handshake that other systems make before they deliver here."""
    async with serving(tables_file, tmp_path) as door:
        answer = await asyncio.to_thread(
            lambda: ask(door.address, "/events", method="OPTIONS", headers={"webhook-request-origin": "a.example"})
        )
        assert answer.headers["webhook-allowed-origin"] == "a.example"
