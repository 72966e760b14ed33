"""Spans by OpenTelemetry on real stores: the right parents, from a publish through two hops of handlers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import nats
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from runner import Event, Failed, Runner, load
from runner.config.secret import Secret
from runner.policies.retry import RetryPolicy
from runner.storage.tables import events
from tests.support.eventually import eventually
from tests.support.nats import NatsServer

from .buses import Bus, BusTests


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What a program has configured: a provider whose spans stay in memory."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


def traced(bus: Bus) -> Runner:
    runner = load(bus.write("tracing: otel\n"))
    bus._runners.append(runner)
    return runner


def event(type: str, id: str, **extensions: str) -> Event:
    return Event(type=type, source="/tests", id=id, extensions=extensions)


def parent_of(span: ReadableSpan, spans: Sequence[ReadableSpan]) -> str | None:
    """Return the name of a span's parent; None for one without."""
    if span.parent is None:
        return None
    [name] = [each.name for each in spans if each.context and each.context.span_id == span.parent.span_id]
    return name


async def shown(exporter: InMemorySpanExporter, count: int) -> Sequence[ReadableSpan]:
    async def all_there() -> Sequence[ReadableSpan]:
        spans = exporter.get_finished_spans()
        assert len(spans) == count, [span.name for span in spans]
        return spans

    found: Sequence[ReadableSpan] = await eventually(all_there)
    return found


async def recorded(bus: Bus) -> Mapping[str, Mapping[str, Any]]:
    return {row["id"]: row["extensions"] or {} for row in await bus.database.rows(events)}


class TestSpans(BusTests):
    @pytest.mark.parametrize("apart", [False, True], ids=["handed over", "claimed"])
    async def test_two_hops_of_handlers(self, bus: Bus, exporter: InMemorySpanExporter, apart: bool) -> None:
        runner = traced(bus)
        loop = asyncio.get_running_loop()

        async def first(handled: Event) -> None:
            await runner.publish(event("b", "second"))

        def second(handled: Event) -> None:  # in a thread
            asyncio.run_coroutine_threadsafe(runner.publish(event("c", "third")), loop).result(10)

        runner.subscribe("one", first, types=["a"])
        runner.subscribe("two", second, types=["b"])
        runner.subscribe("three", lambda handled: None, types=["c"])
        async with runner:
            with trace.get_tracer("program").start_as_current_span("request"):
                await runner.publish(event("a", "first"), delay=timedelta(milliseconds=50) if apart else None)
            await eventually(lambda: bus.settled(delivered=3))
            spans = await shown(exporter, 10)
        assert {span.name: parent_of(span, spans) for span in spans} == {
            "request": None,
            "publish a": "request",
            "dispatch a": "publish a",
            "deliver one": "dispatch a",
            "publish b": "deliver one",
            "dispatch b": "publish b",
            "deliver two": "dispatch b",
            "publish c": "deliver two",
            "dispatch c": "publish c",
            "deliver three": "dispatch c",
        }
        assert len({span.context.trace_id for span in spans if span.context}) == 1
        kinds = {span.name.partition(" ")[0]: span.kind.name for span in spans}
        assert kinds == {"request": "INTERNAL", "publish": "PRODUCER", "dispatch": "INTERNAL", "deliver": "CONSUMER"}
        [publish] = [span for span in spans if span.name == "publish b"]
        carried = (await recorded(bus))["second"]["traceparent"]
        assert publish.context is not None
        assert carried.split("-")[1:3] == [f"{publish.context.trace_id:032x}", f"{publish.context.span_id:016x}"]

    async def test_an_attempt_that_failed_says_so_and_a_retry_follows_from_the_publish(
        self, bus: Bus, exporter: InMemorySpanExporter
    ) -> None:
        runner = traced(bus)

        async def flaky(handled: Event, delivery: Any) -> Any:
            return Failed("busy", status=503) if delivery.attempt == 1 else None

        retry = RetryPolicy(delay=timedelta(milliseconds=20), jitter=0)
        runner.subscribe("one", flaky, types=["a"], retry=retry)
        async with runner:
            await runner.publish(event("a", "first"))
            await eventually(lambda: bus.settled(delivered=1))
            spans = await shown(exporter, 4)
        deliveries = [span for span in spans if span.name == "deliver one"]
        assert [(span.attributes or {})["runner.attempt"] for span in deliveries] == [1, 2]
        assert [parent_of(span, spans) for span in deliveries] == ["dispatch a", "publish a"]
        assert [span.status.status_code.name for span in deliveries] == ["ERROR", "UNSET"]
        assert deliveries[0].status.description == "busy"

    @pytest.mark.parametrize("raises", [True, False])
    async def test_no_secret_gets_into_a_span(self, bus: Bus, exporter: InMemorySpanExporter, raises: bool) -> None:
        secret = Secret("cAn4ry77x7kQ2mZ81wPb5Nq").reveal()
        runner = traced(bus)

        async def tell(handled: Event) -> Any:
            if not raises:
                return Failed(f"401 for {secret}")
            try:
                raise KeyError(secret)
            except KeyError as error:
                raise RuntimeError(f"401 for {secret}") from error

        runner.subscribe("one", tell, types=["a"], retry=RetryPolicy(max_attempts=1))
        async with runner:
            await runner.publish(event("a", "first"))
            await eventually(lambda: bus.settled(dead=1))
            spans = await shown(exporter, 3)
        [span] = [each for each in spans if each.name == "deliver one"]
        assert span.status.status_code.name == "ERROR"
        assert "401 for ***" in str(span.status.description)
        assert [each.name for each in span.events] == ["exception"] * raises
        assert secret not in "".join(each.to_json() for each in spans)

    async def test_a_trace_of_the_publisher_is_kept_and_continued(
        self, bus: Bus, exporter: InMemorySpanExporter
    ) -> None:
        runner = traced(bus)
        parent = "00-0af7651916cd43dd8448eb211c80319c-b9c7c989f97918e1-01"
        runner.subscribe("one", lambda handled: None, types=["a"])
        async with runner:
            await runner.publish(event("a", "first", traceparent=parent, tracestate="rojo=1"))
            await bus.publish([event("a", "garbage", traceparent="none")])
            await eventually(lambda: bus.settled(delivered=2))
            spans = await shown(exporter, 5)
        found = await recorded(bus)
        assert found["first"] == {"traceparent": parent, "tracestate": "rojo=1"}
        ours = [span for span in spans if span.context and f"{span.context.trace_id:032x}" == parent.split("-")[1]]
        assert sorted(span.name for span in ours) == ["deliver one", "dispatch a", "publish a"]
        assert {f"{span.parent.span_id:016x}" for span in ours if span.parent and span.name != "deliver one"} == {
            "b9c7c989f97918e1"
        }

    async def test_a_request_from_outside_is_continued(self, bus: Bus, exporter: InMemorySpanExporter) -> None:
        runner = traced(bus)
        headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b9c7c989f97918e1-01", "host": "x"}
        async with runner:
            with runner._bus.continuing(headers):
                await runner.publish(event("a", "first"))
            await runner.publish(event("b", "second"))
        first, second = [span for span in exporter.get_finished_spans() if span.name.startswith("publish")]
        assert first.parent is not None
        assert f"{first.parent.span_id:016x}" == "b9c7c989f97918e1"
        assert second.parent is None

    async def test_a_publish_over_http_goes_on_through_two_hops_of_handlers(
        self, bus: Bus, exporter: InMemorySpanExporter
    ) -> None:
        runner = load(bus.write("tracing: otel\napi: {listen: '127.0.0.1:0'}\n"))
        bus._runners.append(runner)
        parent = "00-0af7651916cd43dd8448eb211c80319c-b9c7c989f97918e1-01"

        async def again(handled: Event) -> None:
            await runner.publish(event("b", "second"))

        runner.subscribe("one", again, types=["a"])
        runner.subscribe("two", lambda handled: None, types=["b"])
        headers = {"ce-specversion": "1.0", "ce-type": "a", "ce-source": "/far", "ce-id": "1", "traceparent": parent}
        async with runner, aiohttp.ClientSession() as client:
            url = f"{runner.addresses[0]}/events"
            async with client.post(url, headers=headers) as answer:
                assert answer.status == 202, await answer.text()
            await eventually(lambda: bus.settled(delivered=2))
            spans = await shown(exporter, 6)
        [publish] = [span for span in spans if span.name == "publish a"]
        assert publish.parent is not None
        assert f"{publish.parent.span_id:016x}" == "b9c7c989f97918e1"
        assert {span.name: parent_of(span, spans) for span in spans if span is not publish} == {
            "dispatch a": "publish a",
            "deliver one": "dispatch a",
            "publish b": "deliver one",
            "dispatch b": "publish b",
            "deliver two": "dispatch b",
        }

    async def test_a_batch_is_one_span_with_links(self, bus: Bus, exporter: InMemorySpanExporter) -> None:
        runner = traced(bus)
        runner.subscribe("one", lambda batch: None, types=["a"], batch=10, concurrency=1)
        async with runner:
            await runner.publish_many([event("a", str(n)) for n in range(5)])
            await eventually(lambda: bus.settled(delivered=5))
            await eventually(lambda: any(span.name == "deliver one" for span in exporter.get_finished_spans()))
        spans = exporter.get_finished_spans()
        [delivery] = [span for span in spans if span.name == "deliver one"]
        assert len(delivery.links) == 5
        assert [span.name for span in spans].count("publish 5 events") == 1

    async def test_a_program_without_a_provider_sees_no_difference(self, bus: Bus) -> None:
        runner = traced(bus)
        runner.subscribe("one", lambda handled: None, types=["a"])
        async with runner:
            await runner.publish(event("a", "first"))
            await eventually(lambda: bus.settled(delivered=1))
        assert await recorded(bus) == {"first": {}}


SCRIPT = """
import asyncio, sys
from pathlib import Path
from runner import Event, load

Path("bus.yaml").write_text("deployment_id: d\\nstorage: {dsn: 'sqlite:///bus.db'}\\n" + sys.argv[1])
async def main():
    seen = asyncio.Event()
    runner = load("bus.yaml")
    runner.subscribe("one", lambda event: loop.call_soon_threadsafe(seen.set))
    loop = asyncio.get_running_loop()
    async with runner:
        await runner.publish(Event.new("a", source="/s"))
        await asyncio.wait_for(seen.wait(), 30)
asyncio.run(main())
print(sorted({name.split(".")[0] for name in sys.modules if name.startswith("opentelemetry")}))
"""


@pytest.mark.parametrize(("more", "loaded"), [("", "[]"), ("tracing: otel\n", "['opentelemetry']")])
def test_nothing_is_imported_unless_it_is_asked_for(tmp_path: Path, more: str, loaded: str) -> None:
    command = [sys.executable, "-c", SCRIPT, more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=tmp_path)
    assert done.stdout.strip() == loaded


def test_without_the_extra_the_file_is_refused_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "bus.yaml").write_text("deployment_id: d\nstorage: {dsn: 'sqlite:///bus.db'}\ntracing: otel\n")
    script = "import sys; sys.modules['opentelemetry'] = None; from runner.cli import main; main()"
    command = [sys.executable, "-c", script, "check", "-c", "bus.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert done.returncode == 78
    assert "bus.yaml:3:1: tracing: OpenTelemetry is not installed" in done.stderr
    assert "eventbus-runner[otel]" in done.stderr


def test_spans_of_dispatches_that_nobody_settles_end_with_their_leases() -> None:
    from runner.storage.contract.claims import Work
    from runner.tracing.dispatches import Dispatches

    ended: list[str] = []

    class Span:
        def __init__(self, event: Event) -> None:
            self.id = event.id

        def end(self) -> None:
            ended.append(self.id)

    dispatches = Dispatches(Span)
    lost, kept = (Work(n, 1, n, event("a", str(n))) for n in range(2))
    dispatches.claimed([lost], timedelta(0))
    dispatches.claimed([kept], timedelta(seconds=30))
    assert (ended, dispatches.of(lost.event), dispatches.of(kept.event) is not None) == (["0"], None, True)
    dispatches.claimed([kept], timedelta(seconds=30))
    dispatches.settled([1, 7])
    assert (ended, dispatches.of(kept.event)) == (["0", "1", "1"], None)


class TestHeaders:
    """What a receiver is given, in a header of its own and in the attributes of the event."""

    TRACE = "00-0af7651916cd43dd8448eb211c80319c-b9c7c989f97918e1-01"

    @pytest.mark.parametrize("spans", [False, True], ids=["passed on", "spanned"])
    async def test_of_a_webhook(self, tmp_path: Path, exporter: InMemorySpanExporter, spans: bool) -> None:
        heads: list[bytes] = []

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        sink = f"webhook: {{url: 'http://127.0.0.1:{port}/'}}"
        async with server:
            await self.publish(tmp_path, sink, spans=spans)
            await eventually(lambda: heads)
        headers = dict(line.split(": ", 1) for line in heads[0].decode().lower().split("\r\n")[1:] if line)
        assert headers["ce-traceparent"] == self.TRACE
        await self.check(exporter, headers["traceparent"], spans=spans)

    @pytest.mark.parametrize("spans", [False, True], ids=["passed on", "spanned"])
    async def test_of_nats(
        self, tmp_path: Path, exporter: InMemorySpanExporter, nats_server: NatsServer, spans: bool
    ) -> None:
        client = await nats.connect(nats_server.url)
        heard = await client.subscribe(f"traced{spans}.>")
        await client.flush()
        sink = f"nats: {{servers: ['{nats_server.url}'], subject: 'traced{spans}.{{type}}'}}"
        await self.publish(tmp_path, sink, spans=spans)
        message = await heard.next_msg(timeout=20)
        await client.close()
        assert message.headers is not None
        assert message.headers["ce-traceparent"] == self.TRACE
        await self.check(exporter, message.headers["traceparent"], spans=spans)

    async def publish(self, directory: Path, sink: str, *, spans: bool) -> None:
        text = (
            f"deployment_id: d\nstorage: {{dsn: 'sqlite:///bus.db'}}\nsinks: {{far: {{{sink}}}}}\n"
            "subscriptions: [{name: one, sink: far}]\n"
        )
        (directory / "bus.yaml").write_text(text + ("tracing: otel\n" if spans else ""))
        async with load(directory / "bus.yaml") as runner:
            receipt = await runner.publish(event("a", "first", traceparent=self.TRACE))

            async def delivered() -> bool:
                view = await runner._operations.records.event(str(receipt.seq))
                assert view.deliveries == {"delivered": 1}, view.deliveries
                return True

            await eventually(delivered)

    async def check(self, exporter: InMemorySpanExporter, header: str, *, spans: bool) -> None:
        if not spans:
            assert header == self.TRACE
            return
        [delivery] = [span for span in exporter.get_finished_spans() if span.name == "deliver one"]
        assert delivery.context is not None
        assert header.split("-")[1:3] == [self.TRACE.split("-")[1], f"{delivery.context.span_id:016x}"]
