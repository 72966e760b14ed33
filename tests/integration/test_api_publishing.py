"""`POST /events` of a runner that runs: every mode, every answer, and what is recorded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from runner import Event, EventError, Runner, load
from runner.cloudevents import from_http, to_http, to_http_batched, to_http_structured
from runner.event import new_id
from runner.storage.contract.events import Publication
from runner.storage.contract.records import EventQuery, EventView
from tests.support.eventually import eventually
from tests.support.http import Answer, ask
from tests.support.receivers import receiver
from tests.unit.cloudevents.conformance import INVALID_BATCHES, INVALID_EVENTS, VALID_BATCHES, VALID_EVENTS

from .buses import Bus

STRUCTURED = {"content-type": "application/cloudevents+json"}
BATCHED = {"content-type": "application/cloudevents-batch+json"}
BINARY = {"ce-specversion": "1.0", "ce-type": "order.created", "ce-source": "/shop", "ce-id": "1"}
LIMIT = 1024 * 1024


@pytest.fixture(params=["sqlite", "postgres"])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Bus:
    return Bus(tmp_path, request.getfixturevalue("tables_file" if request.param == "sqlite" else "tables_dsn"))


@pytest.fixture
def lite(tables_file: str, tmp_path: Path) -> Bus:
    return Bus(tmp_path, tables_file)


class Door:
    """A runner that listens, and a client of it."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    @property
    def address(self) -> str:
        return self.runner.addresses[0]

    async def post(self, headers: dict[str, str], body: bytes = b"", query: str = "", method: str = "POST") -> Answer:
        return await asyncio.to_thread(
            lambda: ask(self.address, f"/events{query}", method=method, headers=headers, body=body)
        )

    async def raw(self, *pieces: bytes) -> bytes:
        """Send bytes as they are, and return all that comes until the connection is closed."""
        reader, writer = await self.connect()
        for piece in pieces:
            writer.write(piece)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
        try:
            return await asyncio.wait_for(reader.read(), 30)
        finally:
            writer.close()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        parts = urlsplit(self.address)
        return await asyncio.open_connection(parts.hostname, parts.port)

    async def recorded(self) -> list[Event]:
        """Return the events of the store, the oldest first."""
        return [view.event for view in await self.views()]

    async def views(self) -> list[EventView]:
        query = EventQuery(newest_first=False, limit=10_000)
        return [view async for view in self.runner._storage.records.events(query)]


@contextlib.asynccontextmanager
async def serving(bus: Bus, more: str = "") -> AsyncIterator[Door]:
    api = f"api: {{listen: '127.0.0.1:0'{', ' if more else ''}{more}}}\n"
    async with load(bus.write(api)) as runner:
        yield Door(runner)


def without_time(event: Event) -> Event:
    return event.replace(time=None)


# --- what is taken ---------------------------------------------------------------------------------


class TestModes:
    async def test_binary_mode(self, bus: Bus) -> None:
        event = Event(
            type="order.created",
            source="/shop/é",
            id="a 1",
            subject='"x" 100%',
            datacontenttype="image/png",
            dataschema="urn:s",
            data=bytes(range(256)),
            extensions={"tenantid": "shop"},
        )
        async with serving(bus) as door:
            answer = await door.post(*to_http(event))
            assert answer.status == 202
            assert answer.headers["content-type"] == "application/json"
            assert answer.json == {"id": "a 1", "source": "/shop/é", "seq": 1, "duplicate": False}
            [recorded] = await door.recorded()
            assert without_time(recorded) == event

    async def test_structured_mode_keeps_types_and_bytes(self, bus: Bus) -> None:
        data = b'{"big": 123456789012345678901234567890,\n  "esc": "\\u00e9"}'
        event = Event(
            type="a",
            source="/",
            datacontenttype="application/json",
            data=data,
            extensions={"number": -5, "truth": True, "text": "5"},
        )
        async with serving(bus) as door:
            assert (await door.post(*to_http_structured(event))).status == 202
            [recorded] = await door.recorded()
            assert without_time(recorded) == event

    async def test_batched_mode(self, bus: Bus) -> None:
        events = [Event(type="a", source="/", data=b"%d" % number, datacontenttype="a/json") for number in range(50)]
        async with serving(bus) as door:
            answer = await door.post(*to_http_batched(events))
            assert answer.status == 202
            assert [each["id"] for each in answer.json] == [each.id for each in events]
            assert [each["seq"] for each in answer.json] == sorted(each["seq"] for each in answer.json)
            assert [without_time(each) for each in await door.recorded()] == events
            answer = await door.post(BATCHED, b"[]")
            assert (answer.status, answer.json) == (202, [])

    async def test_the_official_cases(self, lite: Bus) -> None:
        async with serving(lite) as door:
            for name, document, sample in VALID_EVENTS:
                document = document | {"id": name}
                answer = await door.post(STRUCTURED, json.dumps(document).encode())
                assert (answer.status, answer.json["id"]) == (202, name)
                [recorded] = [each for each in await door.recorded() if each.id == name]
                assert recorded.replace(time=sample.time) == sample.replace(id=name)
                assert sample.time in (None, recorded.time)
            for name, document, attribute in INVALID_EVENTS:
                answer = await door.post(STRUCTURED, json.dumps(document).encode())
                assert (answer.status, answer.json["attribute"]) == (400, attribute), name
                assert answer.json["type"] == "urn:runner:problem:invalid-event"
            for name, documents, samples in VALID_BATCHES:
                answer = await door.post(BATCHED, json.dumps(documents).encode())
                assert answer.status == 202, name
                assert [each["id"] for each in answer.json] == [each.id for each in samples]
            for name, documents, index, _ in INVALID_BATCHES:
                answer = await door.post(BATCHED, json.dumps(documents).encode())
                assert (answer.status, answer.json["index"]) == (400, index), name


class TestUris:
    async def test_what_is_none_is_a_400_and_recorded_nowhere(self, bus: Bus) -> None:
        wrong = [("source", "my shop"), ("source", "http://[bad"), ("source", "/%zz"), ("dataschema", "/schema")]
        async with serving(bus) as door:
            for name, value in wrong:
                event = Event(type="a", source="/", id="1").replace(**{name: value})
                for message in ((BINARY | {f"ce-{name}": value}, b""), to_http_structured(event)):
                    for query in ("", "?dry_run=true"):
                        answer = await door.post(*message, query=query)
                        assert (answer.status, answer.json["attribute"]) == (400, name), value
                        assert answer.json["type"] == "urn:runner:problem:invalid-event"
                batch = [Event(type="a", source="/"), event]
                answer = await door.post(*to_http_batched(batch))
                assert (answer.status, answer.json["attribute"], answer.json["index"]) == (400, name, 1)
                answer = await door.post(*to_http_batched([event]))
                assert (answer.status, answer.json["index"]) == (400, 0)
            assert await door.recorded() == []

    async def test_a_producer_that_does_not_encode_header_values(self, lite: Bus) -> None:
        async with serving(lite) as door:
            for sent, taken in (
                ("/a%20b", "/a%20b"),
                ("/100%25", "/100%25"),
                ("/caf%C3%A9", "/café"),
                ("/100%2525", "/100%25"),
            ):
                headers = BINARY | {"ce-id": sent, "ce-source": sent, "ce-dataschema": f"urn:{sent}"}
                answer = await door.post(headers, b"x")
                assert (answer.status, answer.json["source"]) == (202, taken)
                assert (await door.recorded())[-1].dataschema == f"urn:{taken}"
            answer = await door.post(BINARY | {"ce-source": "/a%20b%zz"}, b"x")
            assert (answer.status, answer.json["attribute"]) == (400, "source")

    async def test_what_was_recorded_under_other_rules_is_delivered(self, bus: Bus) -> None:
        delivered: list[Event] = []

        async def keep(request: web.Request) -> web.Response:
            delivered.append(from_http(request.headers, await request.read()))
            return web.Response(status=204)

        old = Event(type="a", source="my shop", dataschema="/schema", id="old", data=b"x")
        async with receiver(keep) as url:
            more = f"sinks: {{hook: {{webhook: {{url: '{url}'}}}}}}\nsubscriptions: [{{name: s, sink: hook}}]\n"
            async with load(bus.write(more)) as runner:
                with pytest.raises(EventError, match="source: expected a URI reference"):
                    await runner.publish(old)
                await runner.publish_many([Publication(old, exported=True)])
                [again] = await runner.publish_many([Publication(old, exported=True)])
                assert again.duplicate
                await eventually(lambda: len(delivered) == 1)
        assert without_time(delivered[0]) == old


class TestReceipts:
    async def test_the_same_again_is_a_duplicate_and_other_content_a_conflict(self, bus: Bus) -> None:
        async with serving(bus) as door:
            head = TestBodies.head("content-length: 1", "connection: close")
            answers = await asyncio.gather(*[door.raw(head + b"x") for _ in range(100)])  # FI-45
            assert {each.split(b" ")[1] for each in answers} == {b"202"}
            receipts = [json.loads(each.partition(b"\r\n\r\n")[2]) for each in answers]
            assert sorted(each.pop("duplicate") for each in receipts) == [False] + [True] * 99
            assert receipts == [{"id": "1", "source": "/shop", "seq": 1}] * 100
            answer = await door.post(BINARY, b"y")
            assert (answer.status, answer.json["type"]) == (409, "urn:runner:problem:event-conflict")
            assert [each.data for each in await door.recorded()] == [b"x"]

    async def test_a_batch_is_recorded_whole_or_not_at_all(self, bus: Bus) -> None:
        async with serving(bus) as door:
            await door.post(BINARY, b"x")
            batch = [Event(type="a", source="/", id="new"), Event(type="other", source="/shop", id="1")]
            answer = await door.post(*to_http_batched(batch))
            assert (answer.status, answer.json["index"]) == (409, 1)
            answer = await door.post(*to_http_batched(batch[1:]))
            assert (answer.status, answer.json["index"]) == (409, 0)
            documents = [{"specversion": "1.0", "id": "2", "source": "/", "type": "a"}, {}]
            assert (await door.post(BATCHED, json.dumps(documents).encode())).status == 400
            assert [each.id for each in await door.recorded()] == ["1"]

    async def test_nothing_is_made_up(self, lite: Bus) -> None:
        async with serving(lite) as door:
            answer = await door.post({name: BINARY[name] for name in BINARY if name != "ce-id"}, b"")
            assert (answer.status, answer.json["attribute"]) == (400, "id")
            assert await door.recorded() == []


class TestTimes:
    async def test_a_delay_and_a_time_are_kept_by_the_store(self, bus: Bus) -> None:
        at = (datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0)
        there = at.astimezone(None).isoformat()  # its `+` means a blank in a query
        async with serving(bus) as door:
            assert (await door.post(BINARY, query="?delay=1h30m")).status == 202
            assert (await door.post(BINARY | {"ce-id": "2"}, query=f"?deliver_at={there}")).status == 202
            assert (await door.post(BINARY | {"ce-id": "3"}, query="?deliver_at=2001-01-01T00:00:00Z")).status == 202
            first, second, third = await door.views()
            assert (first.state, second.state) == ("scheduled", "scheduled")
            assert second.due_at == at
            assert first.due_at is not None
            assert abs(first.due_at - datetime.now(UTC) - timedelta(minutes=90)) < timedelta(minutes=5)
            assert third.due_at is None

    @pytest.mark.parametrize(
        ("query", "parameter", "detail"),
        [
            ("?delay=tomorrow", "delay", "expected a duration"),
            ("?delay=-1s", "delay", "expected a duration"),
            ("?delay=1h&delay=2h", "delay", "given twice"),
            ("?deliver_at=tomorrow", "deliver_at", "expected RFC 3339"),
            ("?deliver_at=2026-01-31", "deliver_at", "expected RFC 3339"),
            ("?delay=1h&deliver_at=2026-01-31T00:00:00Z", "deliver_at", "not both"),
            ("?delay_s=1h", "delay_s", "unknown; expected one of: delay, deliver_at, dry_run"),
            ("?dry_run=perhaps", "dry_run", "expected true or false"),
            ("?access_token=evb_canary", "access_token", "never stands in a URL"),
            ("?%0d%0a=1", "\\r\\n", "unknown"),
            ("?%ff=1", "", "in UTF-8"),
        ],
    )
    async def test_parameters_that_cannot_be_acted_on(self, lite: Bus, query: str, parameter: str, detail: str) -> None:
        async with serving(lite) as door:
            answer = await door.post(BINARY, query=query)
            assert (answer.status, answer.json["parameter"]) == (400, parameter)
            assert detail in answer.json["detail"]
            assert b"canary" not in answer.body
            assert await door.recorded() == []

    async def test_too_far_ahead(self, lite: Bus) -> None:
        async with serving(lite) as door:
            assert (
                "at most 366 days" in (await door.post(BINARY, query="?deliver_at=9999-01-01T00:00:00Z")).json["detail"]
            )


# --- what is refused -------------------------------------------------------------------------------


class TestRefusals:
    @pytest.mark.parametrize(
        ("headers", "body", "status", "name"),
        [
            ({}, b"{}", 400, "invalid-event"),
            ({"content-type": "application/json"}, b"{}", 400, "invalid-event"),
            (STRUCTURED, b"", 400, "invalid-event"),
            (STRUCTURED, b"[]", 400, "invalid-event"),
            (BATCHED, b"{}", 400, "invalid-event"),
            ({"content-type": "application/cloudevents+avro"}, b"x", 415, "unsupported-media-type"),
            ({"content-type": "application/cloudevents+json; charset=utf-16"}, b"x", 415, "unsupported-media-type"),
            (BINARY | {"content-encoding": "gzip"}, b"x", 415, "unsupported-media-type"),
            (BINARY | {"ce-id": "%C0%80"}, b"", 400, "invalid-event"),
            (BINARY | {"ce-subject": "a%00b"}, b"", 400, "invalid-event"),
            (BINARY | {"ce-datacontenttype": "a/b"}, b"", 400, "invalid-event"),
        ],
    )
    async def test_messages(self, lite: Bus, headers: dict[str, str], body: bytes, status: int, name: str) -> None:
        async with serving(lite) as door:
            answer = await door.post(headers, body)
            assert answer.status == status
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json["type"] == f"urn:runner:problem:{name}"
            assert answer.json["status"] == status
            assert await door.recorded() == []

    @pytest.mark.parametrize(
        "body",
        [
            b'{"a": NaN}',
            b'{"a": Infinity}',
            b'{"data": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
            b'{"id": "\\ud800"}',
            b'{"id": "\\u0000", "source": "/", "type": "a", "specversion": "1.0"}',
            b'{"id": "1", "id": "2", "source": "/", "type": "a", "specversion": "1.0"}',
            b'\xef\xbb\xbf{"id": "1", "source": "/", "type": "a", "specversion": "1.0"}',
            b'{"id": "\xff", "source": "/", "type": "a", "specversion": "1.0"}',
            b'{"id": "1", "source": "/", "type": "a", "specversion": "1.0", "x": 9223372036854775808}',
            json.dumps({"specversion": "1.0", "id": "1"} | {f"x{n}": "" for n in range(50_000)}).encode(),
        ],
        ids=lambda body: repr(body[:20]),
    )
    async def test_json_that_is_none_or_too_much(self, bus: Bus, body: bytes) -> None:
        async with serving(bus) as door:
            answer = await door.post(STRUCTURED, body)
            assert answer.status in (400, 413)
            assert len(answer.json["detail"]) < 300
            assert await door.recorded() == []

    async def test_other_methods(self, lite: Bus) -> None:
        async with serving(lite) as door:
            answer = await door.post(BINARY, method="PATCH")
            assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS, POST")

    async def test_while_too_many_events_wait(self, lite: Bus) -> None:
        path = lite.write("api: {listen: '127.0.0.1:0', limits: {pending: 3}}\n")
        opened = asyncio.Event()

        async def handle(event: Event) -> None:
            await opened.wait()

        runner = load(path)
        runner.subscribe("slow", handle, concurrency=1)
        async with runner:
            door = Door(runner)

            async def full() -> Answer | None:
                answer = await door.post(BINARY | {"ce-id": new_id()})
                return answer if answer.status == 503 else None

            answer = await eventually(full)
            assert answer is not None
            assert answer.json["type"] == "urn:runner:problem:too-many-waiting"
            assert int(answer.headers["retry-after"]) >= 1
            assert 3 <= len(await door.recorded()) < 20
            opened.set()

            async def free() -> bool:
                return (await door.post(BINARY | {"ce-id": "more"})).status == 202

            await eventually(free)


class TestBodies:
    async def test_up_to_the_limit(self, bus: Bus) -> None:
        async with serving(bus) as door:
            assert (await door.post(BINARY, b"x" * LIMIT)).status == 202
            answer = await door.post(BINARY | {"ce-id": "2"}, b"x" * (LIMIT + 1))
            assert (answer.status, answer.json["limit"]) == (413, LIMIT)
            assert [len(each.data or b"") for each in await door.recorded()] == [LIMIT]

    async def test_a_limit_of_the_file(self, lite: Bus) -> None:
        async with serving(lite, "limits: {body: 1KiB, batch: 2}") as door:
            assert (await door.post(BINARY, b"x" * 1025)).status == 413
            batch = [Event(type="a", source="/", id=str(number)) for number in range(3)]
            answer = await door.post(*to_http_batched(batch))
            assert (answer.status, answer.json["detail"]) == (413, "batch: 3 events, at most 2 are taken")
            assert (await door.post(*to_http_batched(batch[:2]))).status == 202

    @pytest.mark.parametrize("chunked", [True, False])
    async def test_a_client_that_sends_far_too_much_gets_its_answer(self, lite: Bus, chunked: bool) -> None:
        async with serving(lite) as door:
            piece = b"x" * 65_536
            pieces = [b"10000\r\n" + piece + b"\r\n"] * 320 + [b"0\r\n\r\n"] if chunked else [piece] * 320
            length = "transfer-encoding: chunked" if chunked else f"content-length: {len(piece) * 320}"
            answer = await door.raw(self.head(length), *pieces)
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert b"connection: close" in answer
            assert await door.recorded() == []

    async def test_chunks(self, lite: Bus) -> None:
        async with serving(lite) as door:
            head = self.head("transfer-encoding: chunked", "connection: close")
            answer = await door.raw(head, b"3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 202 ")
            assert [each.data for each in await door.recorded()] == [b"abcde"]

    @pytest.mark.parametrize("together", [False, True])
    async def test_trailers_are_no_headers(self, lite: Bus, together: bool) -> None:
        """RFC 9110 §6.5.1; a token or an attribute there counted where the request came in one piece."""
        token = "evb_" + "a" * 43
        async with serving(lite, f"tokens: [{{name: a, secret: {token}, scopes: [publish]}}]") as door:
            for told, late, status in (
                ("connection: close", f"authorization: Bearer {token}", b"401"),
                (f"authorization: Bearer {token}\r\nconnection: close", "ce-subject: eu/1", b"202"),
            ):
                pieces = [self.head("transfer-encoding: chunked", told), b"0\r\n", f"{late}\r\n\r\n".encode()]
                answer = await door.raw(*([b"".join(pieces)] if together else pieces))
                assert answer.startswith(b"HTTP/1.1 %b " % status)
            assert [each.subject for each in await door.recorded()] == [None]

    async def test_trailers_without_end_are_refused(self, lite: Bus) -> None:
        async with serving(lite) as door:
            reader, writer = await door.connect()
            writer.write(self.head("transfer-encoding: chunked", "expect: 100-continue"))
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write((b"0\r\n" + b"t: x\r\n" * 20_000)[: 64 * 1024 + 1])
            answer = await asyncio.wait_for(reader.read(), 30)
            writer.close()
            assert answer.startswith(b"HTTP/1.1 431 ")
            assert answer.count(b"HTTP/1.1 ") == 1
            assert await door.recorded() == []

    async def test_requests_sent_at_once_are_answered_in_their_order(self, lite: Bus) -> None:
        """In one piece each is whole when its turn comes, and the second waits for the answer to the first."""
        ids = [str(number) for number in range(5)]
        async with serving(lite) as door:
            head = b"".join([self.head("content-length: 1", id=each) + b"x" for each in ids])
            answer = await door.raw(head + self.head("content-length: 1", "connection: close", id="last") + b"x")
            assert re.findall(rb"HTTP/1.1 (...) ", answer) == [b"202"] * 6
            assert re.findall(rb'"id":"(\w+)"', answer) == [each.encode() for each in [*ids, "last"]]
            assert answer.lower().count(b"\r\ncontent-type: application/json\r\n") == 6
            assert answer.lower().count(b"\r\ndate: ") == 6
            assert answer.count(b"\r\nconnection: close\r\n") == 1
            assert [each.id for each in await door.recorded()] == [*ids, "last"]

    @pytest.mark.parametrize("together", [False, True])
    async def test_a_client_that_asks_before_it_sends_a_body(self, lite: Bus, together: bool) -> None:
        async with serving(lite) as door:
            reader, writer = await door.connect()
            head = self.head("content-length: 2", "expect: 100-continue")
            writer.write(head + b"ab" if together else head)
            answered = b""
            if not together:
                assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
                writer.write(b"a")
                await asyncio.sleep(0)
                writer.write(b"b")
            while b"}" not in answered:
                answered += await reader.read(4096)
            writer.close()
            assert answered.startswith(b"HTTP/1.1 202 ")
            assert [each.data for each in await door.recorded()] == [b"ab"]

    async def test_a_client_that_leaves_has_published_nothing(self, lite: Bus) -> None:
        async with serving(lite) as door:
            for length in ("content-length: 100", "transfer-encoding: chunked"):
                _, writer = await door.connect()
                writer.write(self.head(length) + b"5\r\nabcde\r\n")
                await writer.drain()
                writer.close()
                await writer.wait_closed()
            assert (await door.post(BINARY | {"ce-id": "2"})).status == 202
            assert [each.id for each in await door.recorded()] == ["2"]

    @staticmethod
    def head(*more: str, id: str = "1") -> bytes:
        attributes = BINARY | {"ce-id": id}
        lines = ["POST /events HTTP/1.1", "host: localhost", *(f"{name}: {each}" for name, each in attributes.items())]
        return "\r\n".join([*lines, *more, "", ""]).encode()


class TestHandshake:
    """Web Hooks for Event Delivery 1.0.2, §4."""

    @pytest.mark.parametrize("rate", [{}, {"webhook-request-rate": "120"}])
    async def test_events_are_expected_here(self, lite: Bus, rate: dict[str, str]) -> None:
        async with serving(lite) as door:
            asked = {"webhook-request-origin": "eventemitter.example.com", **rate}
            answer = await door.post(asked, method="OPTIONS")
            assert answer.status == 200
            assert answer.headers["webhook-allowed-origin"] == "eventemitter.example.com"
            assert answer.headers["webhook-allowed-rate"] == "*"
            assert "POST" in answer.headers["allow"]

    @pytest.mark.parametrize("asked", [{}, {"webhook-request-origin": "a b\x01"}, {"origin": "https://evil.example"}])
    async def test_without_an_origin_nothing_is_granted(self, lite: Bus, asked: dict[str, str]) -> None:
        async with serving(lite) as door:
            answer = await door.post(asked, method="OPTIONS")
            assert "webhook-allowed-origin" not in answer.headers
            assert not [name for name in answer.headers if name.startswith("access-control-")]


class TestDocument:
    async def test_the_command_of_docs_http_md(self, lite: Bus) -> None:
        text = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
        [command] = re.findall(r"```sh\n(curl -i .*?)```", text, re.DOTALL)
        async with serving(lite) as door:
            command = command.replace("http://127.0.0.1:8080", door.address)
            done = await asyncio.to_thread(
                lambda: subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30, check=True)
            )
            assert done.stdout.startswith("HTTP/1.1 202 ")
            answer = json.loads(re.findall(r"`(\{\"id\": \"17\".*?\})`", text)[0])
            assert json.loads(done.stdout.splitlines()[-1]) == answer
            [recorded] = await door.recorded()
            assert recorded.json() == {"order": 17}


class TestDryRun:
    async def test_it_says_who_would_get_an_event_and_records_none(self, bus: Bus) -> None:
        runner = load(bus.write("api: {listen: '127.0.0.1:0'}\n"))
        runner.subscribe("orders", lambda event: None, types=("order.*",))
        runner.subscribe("invoices", lambda event: None, types=("invoice.*",))
        async with runner:
            door = Door(runner)
            answer = await door.post(BINARY, query="?dry_run=true&delay=1h")
            assert answer.status == 200
            assert answer.json["subscriptions"] == [
                {
                    "name": "invoices",
                    "matched": False,
                    "failing": {"clause": "types", "expected": "'invoice.*'", "actual": "'order.created'"},
                    "held": None,
                },
                {"name": "orders", "matched": True, "failing": None, "held": None},
            ]
            assert answer.json["due_at"] > datetime.now(UTC).isoformat()
            batch = [Event(type="a", source="/"), Event(type="invoice.paid", source="/")]
            answer = await door.post(*to_http_batched(batch), query="?dry_run=1")
            assert [[each["matched"] for each in one["subscriptions"]] for one in answer.json] == [
                [False, False],
                [True, False],
            ]
            assert (await door.post({}, query="?dry_run=true")).status == 400
            assert await door.recorded() == []

    @pytest.mark.parametrize("bound", ["", ", types: ['order.*']", ", attributes: {tenantid: shop}"])
    async def test_who_may_not_read_learns_how_many_and_not_who(self, lite: Bus, bound: str) -> None:
        """Names and filters of subscriptions are the business of others, of other tenants even."""
        token, reader = "evb_" + "s" * 43, "evb_" + "r" * 43
        producer = f"{{name: shop, secret: {token}, scopes: [publish{', read' if bound else ''}]{bound}}}"
        tokens = f"tokens: [{producer}, {{name: ops, secret: {reader}, scopes: [publish, read]}}]"
        runner = load(lite.write(f"api: {{listen: '127.0.0.1:0', {tokens}}}\n"))
        runner.subscribe("canary-orders", lambda event: None, types=("order.*",))
        runner.subscribe("canary-invoices", lambda event: None, types=("canary-type.*",))
        async with runner:
            door = Door(runner)
            answer = await door.post(BINARY | {"authorization": f"Bearer {token}"}, query="?dry_run=1")
            assert (answer.status, answer.json["matched"], answer.json["subscriptions"]) == (200, 1, None)
            assert b"canary" not in answer.body
            answer = await door.post(BINARY | {"authorization": f"Bearer {reader}"}, query="?dry_run=1")
            assert (answer.json["matched"], len(answer.json["subscriptions"])) == (1, 2)


class TestSchemas:
    async def test_data_that_breaks_its_schema(self, lite: Bus, tmp_path: Path) -> None:
        (tmp_path / "order.json").write_text('{"properties": {"items": {"items": {"minimum": 1}}}}')
        more = "types: {order.created: {schema: order.json}}\n"
        async with load(lite.write("api: {listen: '127.0.0.1:0'}\n" + more)) as runner:
            door = Door(runner)
            headers = BINARY | {"content-type": "application/json"}
            for query in ("", "?dry_run=true"):
                answer = await door.post(headers, b'{"items": [1, 0]}', query=query)
                assert (answer.status, answer.json["pointer"]) == (422, "/items/1")
                assert answer.json["type"] == "urn:runner:problem:schema-violated"
            batch = [Event.new("a", 1, source="/"), Event.new("order.created", {"items": [0]}, source="/")]
            for query in ("", "?dry_run=true"):
                for place, events in ((1, batch), (0, batch[1:])):
                    answer = await door.post(*to_http_batched(events), query=query)
                    assert (answer.status, answer.json["index"], answer.json["pointer"]) == (422, place, "/items/0")
                    assert answer.json["detail"].startswith(f"event {place + 1} of {len(events)}: ")
            assert (await door.post(headers, b'{"items": [1]}')).status == 202


class TestTokens:
    async def test_a_tenant_publishes_its_own_events_only(self, lite: Bus) -> None:
        token = "evb_" + "s" * 43
        entry = (
            f"{{name: shop, secret: {token}, scopes: [publish], types: ['order.*'], attributes: {{tenantid: shop}}}}"
        )
        async with serving(lite, f"tokens: [{entry}]") as door:
            assert (await door.post(BINARY)).status == 401
            known = BINARY | {"authorization": f"Bearer {token}"}
            assert (await door.post(known)).status == 202
            assert (await door.post(known)).json["duplicate"] is True
            answer = await door.post(known | {"ce-id": "2", "ce-tenantid": "other"})
            assert (answer.status, answer.json["attribute"]) == (403, "tenantid")
            assert (await door.post(known | {"ce-id": "3", "ce-type": "invoice"})).status == 403
            batch = [Event(type="order.a", source="/"), Event(type="invoice", source="/")]
            headers, body = to_http_batched(batch)
            answer = await door.post(headers | {"authorization": f"Bearer {token}"}, body)
            assert (answer.status, answer.json["index"], answer.json["attribute"]) == (403, 1, "type")
            assert answer.json["detail"].startswith("event 2 of 2: ")
            alone = to_http_batched(batch[1:])
            answer = await door.post(alone[0] | {"authorization": f"Bearer {token}"}, alone[1])
            assert (answer.status, answer.json["index"]) == (403, 0)
            assert "index" not in (await door.post(known | {"ce-id": "4", "ce-type": "invoice"})).json
            [recorded] = await door.recorded()
            assert recorded.extensions == {"tenantid": "shop"}
            asked = {"webhook-request-origin": "a.example"}
            assert (await door.post(asked, method="OPTIONS")).headers["webhook-allowed-origin"] == "a.example"

    async def test_nothing_is_read_of_a_body_without_a_token(self, lite: Bus) -> None:
        entry = f"{{name: shop, secret: {'evb_' + 's' * 43}, scopes: [publish]}}"
        async with serving(lite, f"tokens: [{entry}]") as door:
            reader, writer = await door.connect()
            writer.write(TestBodies.head("content-length: 1000000"))
            assert b" 401 " in await asyncio.wait_for(reader.readline(), 30)
            writer.close()


class TestServingOnly:
    async def test_a_process_without_a_worker_takes_events_and_delivers_none(self, bus: Bus) -> None:
        sinks = "sinks: {nowhere: {python: 'no_such_module:handle'}}\n"
        subscriptions = "subscriptions: [{name: all, types: ['*'], sink: nowhere}]\n"
        path = bus.write("api: {listen: '127.0.0.1:0'}\n" + sinks + subscriptions)
        path.write_text(path.read_text().replace("worker: {", "worker: {enabled: false, "))
        runner = load(path)
        with pytest.raises(ValueError, match=r"worker\.enabled is false"):
            runner.subscribe("mine", lambda event: None)
        async with runner:
            door = Door(runner)
            assert (await door.post(BINARY)).status == 202
            for probe in ("/healthz", "/readyz"):
                assert (await asyncio.to_thread(lambda: ask(door.address, probe))).status == 200  # noqa: B023
            [view] = await door.views()
            assert view.state == "queued"
