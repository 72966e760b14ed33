"""The webhook sink against receivers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import sys
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiohttp import web
from pydantic import ValidationError

from runner.cloudevents import from_http
from runner.delivery import ACCEPTED, Deferred, Delivery, Failed, Outcome, Rejected
from runner.errors import SinkError
from runner.event import Event
from runner.sinks.http import pool
from runner.sinks.http.address import Address
from runner.sinks.webhook import WebhookOptions
from tests.support.eventually import eventually
from tests.support.receivers import Answer, Talk, answering, raw_receiver, receiver, sink, webhook
from tests.support.server import HOST, free_port

DELIVERY = Delivery(
    Event(type="order.created", source="/shop", id="1", data=b"{}", datacontenttype="application/json"), "crm", 4
)
TLS = Path(__file__).parent / "tls"


async def request_head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def outcome(status: int, headers: dict[str, str] | None = None, text: str = "") -> Outcome:
    async with receiver(answering(status, headers, text)) as url, sink(url) as webhook:
        return await webhook.deliver(DELIVERY)


# --- what is sent ----------------------------------------------------------------------------------


async def test_the_request() -> None:
    seen: list[tuple[web.Request, bytes]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append((request, await request.read()))
        return web.Response(headers={"Set-Cookie": "session=1"})

    async with receiver(answer) as url, sink(f"{url}/in?key=1", headers={"Authorization": "Bearer t"}) as webhook:
        assert await webhook.deliver(DELIVERY) is ACCEPTED
        assert await webhook.deliver(Delivery(Event(type="a", source="/"), "crm", 1)) is ACCEPTED
    (first, body), (second, nothing) = seen
    assert (first.method, first.path_qs, body) == ("POST", "/in?key=1", b"{}")
    names = {name.lower() for name in first.headers}
    assert names >= {"ce-specversion", "ce-type", "ce-source", "ce-id", "content-type", "content-length", "host"}
    assert first.headers["Runner-Attempt"] == "4"
    assert first.headers["Authorization"] == "Bearer t"
    assert first.headers["Accept-Encoding"] == "identity"
    assert "Python" not in first.headers["User-Agent"]
    assert (nothing, second.headers["Content-Length"]) == (b"", "0")
    assert "Content-Type" not in second.headers
    assert "Cookie" not in second.headers


@pytest.mark.parametrize("target", ["/x?sig=a%2Bb%2Fc%3D%3D", "/%7E;a+b?", "//a/../%2e%C3%a9?q=%20", "?q=ü"])
async def test_the_url_is_sent_as_it_is_written(target: str) -> None:
    heads: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await request_head(reader))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with raw_receiver(talk) as url, sink(url + target) as webhook:
        assert await webhook.deliver(DELIVERY) is ACCEPTED
        assert await webhook.deliver_batch([DELIVERY] * 2) == [ACCEPTED] * 2
    sent = {"?q=ü": "/?q=%C3%BC"}.get(target, target)
    assert [head.split(b"\r\n")[0].decode() for head in heads] == [f"POST {sent} HTTP/1.1"] * 2


@pytest.mark.parametrize(
    ("attributes", "structured"),
    [
        pytest.param({"subject": "a" * 2000}, False, id="ASCII"),
        pytest.param({"subject": "注文" * 400}, False, id="7 KiB"),
        pytest.param({"subject": "注文" * 1000}, True, id="18 KB"),
        pytest.param({"extensions": {f"e{n}": "é" * 300 for n in range(5)}}, True, id="many"),
        pytest.param({"source": "/büro/" * 80, "dataschema": "é" * 1500}, True, id="together"),
    ],
)
async def test_attributes_that_are_too_long_for_headers_travel_in_the_body(
    attributes: dict[str, Any], structured: bool
) -> None:
    """To a server that takes 8 KiB of headers, as many do."""
    event = Event(**{"type": "a", "source": "/", "data": b'{"id": 12345678901234567890123}'} | attributes)
    event = event.replace(datacontenttype="application/json")
    received: list[Event] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await request_head(reader)
        lines = [line.split(": ", 1) for line in head.decode().split("\r\n")[1:-2]]
        headers = {name.lower(): value for name, value in lines}
        received.append(from_http(headers, await reader.readexactly(int(headers["content-length"]))))
        assert headers["runner-attempt"] == "2"
        assert (headers["content-type"] == "application/cloudevents+json") is structured
        assert any(name.startswith("ce-") for name in headers) is not structured
        writer.write(b"HTTP/1.1 %d x\r\n\r\n" % (431 if len(head) > 8192 else 204))

    async with raw_receiver(talk) as url, sink(url) as webhook:
        assert await webhook.deliver(Delivery(event, "crm", 2)) is ACCEPTED
    assert received == [event]


async def test_structured_by_choice() -> None:
    seen: list[tuple[str, bytes]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append((request.headers["Content-Type"], await request.read()))
        return web.Response()

    async with receiver(answer) as url, sink(url, mode="structured") as webhook:
        assert await webhook.deliver(DELIVERY) is ACCEPTED
        assert await webhook.deliver_batch([DELIVERY]) == [ACCEPTED]
        forged = Event(type="a", source="/", datacontenttype="text/plain\r\nX-Evil: 1")
        assert isinstance(await webhook.deliver(Delivery(forged, "crm", 1)), Rejected)
    document = (
        b'{"specversion":"1.0","type":"order.created","source":"/shop","id":"1",'
        b'"datacontenttype":"application/json","data":{}}'
    )
    assert seen == [
        ("application/cloudevents+json", document),
        ("application/cloudevents-batch+json", b"[" + document + b"]"),
    ]


async def test_connections_are_used_again() -> None:
    peers: set[object] = set()

    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return web.Response(status=500, text="x" * 1000)

    async with receiver(answer) as url, sink(url) as webhook:
        for _ in range(5):
            await webhook.deliver(DELIVERY)
    assert len(peers) == 1


async def test_no_more_connections_than_allowed() -> None:
    open_now, most = 0, 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0)
        open_now -= 1
        return web.Response()

    async with receiver(answer) as url, sink(url, connections=3) as webhook:
        assert await asyncio.gather(*(webhook.deliver(DELIVERY) for _ in range(30))) == [ACCEPTED] * 30
    assert most <= 3


async def test_the_environment_chooses_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://{HOST}:1")
    monkeypatch.setenv("no_proxy", "")
    assert await outcome(200) is ACCEPTED


async def test_an_event_that_would_forge_a_header_is_rejected() -> None:
    forged = Event(type="a", source="/", datacontenttype="text/plain\r\nX-Evil: 1")
    async with receiver(answering(200)) as url, sink(url) as webhook:
        assert isinstance(await webhook.deliver(Delivery(forged, "crm", 1)), Rejected)


# --- what an answer means --------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_accepted(status: int) -> None:
    assert await outcome(status, text="" if status == 204 else "error 500 gone") is ACCEPTED


@pytest.mark.parametrize("status", [400, 410, 413, 415, 422, 431])
async def test_rejected(status: int) -> None:
    answer = await outcome(status, text="please retry")
    assert isinstance(answer, Rejected)
    assert (answer.status, answer.excerpt) == (status, "please retry")
    assert str(status) in answer.reason


@pytest.mark.parametrize(
    "status", [401, 402, 403, 404, 405, 406, 408, 409, 425, 429, 451, 500, 501, 502, 503, 504, 599]
)
async def test_failed(status: int) -> None:
    answer = await outcome(status, text="permanent: 410 gone, never retry")
    assert answer == Failed(f"HTTP {status}", None, status, "permanent: 410 gone, never retry")


async def test_further_statuses_that_reject() -> None:
    for status, expected in ((404, Rejected), (308, Rejected), (400, Rejected), (403, Failed), (503, Failed)):
        async with receiver(answering(status)) as url, sink(url, permanent=(404, 308)) as webhook:
            answer = await webhook.deliver(DELIVERY)
        assert isinstance(answer, expected)
        assert answer.status == status


async def test_with_a_deferral_202_is_answered_later() -> None:
    seen: list[str | None] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("Runner-Subscription"))
        return web.Response(status=int(request.path[1:]))

    later = timedelta(minutes=10)
    async with receiver(answer) as url:
        for status, expected in ((202, Deferred(later)), (200, ACCEPTED), (204, ACCEPTED)):
            async with sink(f"{url}/{status}", deferred=later) as webhook:
                assert await webhook.deliver(DELIVERY) == expected
                assert await webhook.deliver_batch([DELIVERY, DELIVERY]) == [expected] * 2
        async with sink(f"{url}/202") as webhook:
            assert await webhook.deliver(DELIVERY) is ACCEPTED
    assert seen == ["crm"] * 6 + [None]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_never_followed(status: int) -> None:
    hits: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        hits.append(request.path)
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    async with receiver(answer) as url, sink(f"{url}/here") as webhook:
        answered = await webhook.deliver(DELIVERY)
    assert hits == ["/here"]
    assert isinstance(answered, Failed)
    assert answered.status == status


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("0", timedelta(0)),
        (" 5 ", timedelta(seconds=5)),
        ("-1", timedelta(0)),
        ("1000000000000", timedelta(seconds=10**9)),
        ("99999999999999999999", timedelta(seconds=10**9)),
        ("9" * 5000, None),
        ("1e12", None),
        ("5.5", None),
        ("soon", None),
        ("", None),
        ("\u0665", None),
        ("Wed, 21 Oct 2015 07:28:10 GMT", timedelta(seconds=10)),
        ("Wed, 21 Oct 2015 07:27:00 GMT", timedelta(0)),
        ("Wednesday, 21-Oct-15 07:28:10 GMT", timedelta(seconds=10)),
        ("Wed, 99 Oct 2015 07:28:10 GMT", None),
        ("Wed, 21 Oct 2015 07:28:10 GMT" + " " * 6000 + "(x)", None),
    ],
)
async def test_retry_after(status: int, value: str, wait: timedelta | None) -> None:
    answer = await outcome(status, {"Retry-After": value, "Date": "Wed, 21 Oct 2015 07:28:00 GMT"})
    assert isinstance(answer, Failed)
    assert answer.retry_after == wait


async def test_retry_after_means_nothing_with_another_status() -> None:
    assert await outcome(500, {"Retry-After": "7"}) == Failed("HTTP 500", None, 500)


async def test_an_excerpt_is_short_and_safe_to_store() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=500, body=b"a\x00\x1b[2J\n\xff" + "é".encode() * 10_000)

    async with receiver(answer) as url, sink(url) as webhook:
        answered = await webhook.deliver(DELIVERY)
    assert isinstance(answered, Failed)
    assert answered.excerpt is not None
    assert answered.excerpt.startswith("a\ufffd\ufffd[2J\n\ufffdé")
    assert len(answered.excerpt) == 512


# --- receivers that misbehave ----------------------------------------------------------------------


async def test_a_receiver_that_never_answers() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with raw_receiver(talk) as url, sink(url, timeout=timedelta(seconds=0.2)) as webhook:
        async with asyncio.timeout(20):
            answer = await webhook.deliver(DELIVERY)
    assert answer == Failed(f"{url.removeprefix('http://')}: no answer within 0.2 s")


async def test_a_receiver_that_sends_headers_slowly() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with raw_receiver(talk) as url, sink(url, timeout=timedelta(seconds=2)) as webhook:
        async with asyncio.timeout(20):
            assert await webhook.deliver(DELIVERY) is ACCEPTED  # its status line has come in time


async def test_a_receiver_that_sends_its_status_slowly() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in b"HTTP/1.1 200 OK" + b"K" * 1000:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.02)

    async with raw_receiver(talk) as url, sink(url, timeout=timedelta(seconds=0.3)) as webhook:
        async with asyncio.timeout(10):
            answer = await webhook.deliver(DELIVERY)
    assert answer == Failed(f"{url.removeprefix('http://')}: no answer within 0.3 s")


async def test_a_receiver_that_does_not_read() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport has it
        await asyncio.Event().wait()

    large = Delivery(Event(type="a", source="/", data=b"x" * 1024 * 1024), "crm", 1)
    async with raw_receiver(talk) as url, sink(url, timeout=timedelta(seconds=0.3)) as webhook:
        async with asyncio.timeout(20):
            deliveries = await asyncio.gather(*(webhook.deliver(large) for _ in range(8)))
    assert all(isinstance(each, Failed) for each in deliveries)


async def test_a_receiver_that_refuses_a_large_event_before_it_has_read_it() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport has it
        writer.write(b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await asyncio.Event().wait()

    large = Delivery(Event(type="a", source="/", data=b"x" * 1024 * 1024), "crm", 1)
    async with raw_receiver(talk) as url, sink(url, timeout=timedelta(minutes=5)) as webhook:
        async with asyncio.timeout(20):
            assert await webhook.deliver(large) == Rejected("HTTP 413", 413, "big")


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"Content-Length: 2\r\n\r\nok", id="a body"),
        pytest.param(b"Content-Length: 100\r\n\r\npart", id="a body cut off"),
        pytest.param(b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", id="a length twice"),
        pytest.param(b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok", id="two lengths"),
        pytest.param(b"Content-Length: two\r\n\r\nok", id="a length in words"),
        pytest.param(b"X: " + b"x" * 9 * 1024 + b"\r\nContent-Length: 0\r\n\r\n", id="a header of 9 KB"),
        pytest.param(b"X: " + b"x" * 1_000_000 + b"\r\n\r\n", id="a header of 1 MB"),
        pytest.param(b"X: y\r\n" * 10_000 + b"\r\n", id="60 KB of headers"),
        pytest.param(b"X: y\r\n" * 200_000 + b"\r\n", id="200,000 headers"),
        pytest.param(b"garbage\x00\xff\r\n: :\r\n\r\n", id="headers that are none"),
        pytest.param(b"\r\n" + b"\x16\x03garbage" * 100, id="garbage after the head"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n5\r\npa", id="a chunk cut off"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n", id="a broken chunk"),
        pytest.param(b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope", id="no gzip"),
    ],
)
@pytest.mark.parametrize("status", [200, 204])
@pytest.mark.parametrize("then", ["it closes", "it stays"])
async def test_the_status_decides_whatever_follows_it(status: int, rest: bytes, then: str) -> None:
    requests = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        for _ in range(2):
            await request_head(reader)
            await reader.readexactly(2)
            requests += 1
            writer.write(f"HTTP/1.1 {status} x\r\n".encode() + rest)
            await writer.drain()
            if then == "it closes":
                break

    async with raw_receiver(talk) as url, sink(url, timeout=timedelta(seconds=1.5)) as webhook:
        assert await webhook.deliver(DELIVERY) is ACCEPTED
        assert await webhook.deliver(DELIVERY) is ACCEPTED
    assert requests == 2


async def test_what_cannot_be_read_is_not_waited_for() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        writer.write(b"HTTP/1.1 400 No\r\nContent-Length: 1\r\nContent-Length: 3\r\n\r\nbad")
        await asyncio.Event().wait()

    async with raw_receiver(talk) as url, sink(url, timeout=timedelta(minutes=1)) as webhook:
        async with asyncio.timeout(10):
            assert await webhook.deliver(DELIVERY) == Rejected("HTTP 400", 400, "bad")


async def test_the_status_counts_although_the_body_hangs() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart")
        await asyncio.Event().wait()

    async with raw_receiver(talk) as url, sink(url, timeout=timedelta(seconds=2)) as webhook:
        assert await webhook.deliver(DELIVERY) is ACCEPTED


@pytest.mark.parametrize(
    "spoken",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="SSH"),
        pytest.param(b"HTTP/1.1 999999 No\r\n\r\n", id="a strange status"),
        pytest.param(b"HTTP/1.1 204 No Con", id="a status line cut off"),
        pytest.param(b"HTTP/1.1 200 " + b"x" * 1_000_000, id="a status line of 1 MB"),
        pytest.param(b"HTTP/1.1 102 Processing\r\n\r\n" * 50_000, id="interim answers"),
    ],
)
async def test_what_is_no_answer_is_a_failure(spoken: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        writer.write(spoken)
        await writer.drain()

    async with raw_receiver(talk) as url, sink(f"{url}/in?key=s3cret", timeout=timedelta(seconds=5)) as webhook:
        answer = await webhook.deliver(DELIVERY)
    assert isinstance(answer, Failed)
    assert answer.status is None
    assert "s3cret" not in answer.reason
    assert len(answer.reason) < 200


@pytest.mark.parametrize("compressed", [False, True], ids=["10 MB", "a bomb"])
async def test_an_endless_answer_is_not_read(compressed: bool) -> None:
    sent = 0
    block = zlib.compress(b"\x00" * 50_000_000) if compressed else b"x" * 64_000

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(status=500, headers={"Content-Encoding": "deflate"} if compressed else None)
        await response.prepare(request)
        for _ in range(160):
            await response.write(block)
            sent += len(block)
        return response

    async with receiver(answer) as url, sink(url) as webhook:
        assert isinstance(await webhook.deliver(DELIVERY), Failed)  # what the first one loads is not counted
        tracemalloc.start()
        try:
            async with asyncio.timeout(20):
                answered = await webhook.deliver(DELIVERY)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert isinstance(answered, Failed)
    assert answered.status == 500
    assert peak < 4_000_000 + (len(block) if compressed else 0)


async def test_a_name_that_does_not_resolve_and_a_closed_port() -> None:
    async with sink("http://nowhere.invalid/?key=s3cret") as webhook:
        assert await webhook.deliver(DELIVERY) == Failed("nowhere.invalid:80: the name does not resolve")
    async with sink(f"http://{HOST}:{free_port()}/?key=s3cret") as webhook:
        answer = await webhook.deliver(DELIVERY)
    assert isinstance(answer, Failed)
    assert "cannot connect" in answer.reason
    assert "s3cret" not in answer.reason


async def test_tls_to_a_plain_port_fails() -> None:
    async with receiver(answering(200)) as url, sink(url.replace("http:", "https:")) as webhook:
        answer = await webhook.deliver(DELIVERY)
    assert isinstance(answer, Failed)
    assert "cannot connect" in answer.reason


async def test_a_receiver_that_closes_idle_connections() -> None:
    requests = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        await request_head(reader)
        await reader.readexactly(2)
        requests += 1
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()

    async with raw_receiver(talk) as url, sink(f"{url}/?key=s3cret") as webhook:
        assert await webhook.deliver(DELIVERY) is ACCEPTED
        async with asyncio.timeout(20):
            while (outcome := await webhook.deliver(DELIVERY)) is not ACCEPTED:  # it may meet the connection closing
                assert isinstance(outcome, Failed)
                assert "s3cret" not in outcome.reason
    assert requests >= 2


# --- budgets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beginning", "piece"),
    [
        pytest.param(b"", b"HTTP/1.1 102 Processing\r\n\r\n", id="interim answers"),
        pytest.param(b"HTTP/1.1 103 Early Hints\r\n", b"Link: </x>\r\n", id="an interim answer"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", id="headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x=", b"x" * 100, id="a chunk extension"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", id="chunks of a byte"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"T: x\r\n", id="trailers"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 100, id="a body"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n", b"x" * 100, id="10 GB"),
    ],
)
async def test_an_answer_without_end_is_given_up_and_holds_nobody(beginning: bytes, piece: bytes) -> None:
    """Counted in bytes that the receiver got rid of: what the sockets hold, and little more."""
    block = piece * (2**18 // len(piece))
    sent: list[int] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        sent.append(0)
        writer.write(beginning)
        while True:
            writer.write(block)
            await writer.drain()
            sent[-1] += len(block)

    async with raw_receiver(talk) as url, sink(url, timeout=timedelta(minutes=5)) as webhook:
        async with asyncio.timeout(30):
            outcomes = await asyncio.gather(*(webhook.deliver(DELIVERY) for _ in range(4)))
    accepted = b" 200 " in beginning
    assert all(each is ACCEPTED if accepted else isinstance(each, Failed) for each in outcomes)
    assert len(sent) == 4
    assert max(sent) < 16 * 2**20


# --- connections that are kept ---------------------------------------------------------------------

NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.mark.parametrize(
    "unasked",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", id="a whole answer"),
        pytest.param(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n", id="408"),
        pytest.param(b"H", id="its beginning"),
        pytest.param(b"\r\n", id="an empty line"),
    ],
)
@pytest.mark.parametrize("when", ["with the answer", "after it", "before the loop has looked"])
async def test_a_connection_with_unread_input_is_not_used_again(unasked: bytes, when: str) -> None:
    """A receiver that speaks unasked, and reads no other request on that connection."""
    read = 0
    writers: list[asyncio.StreamWriter] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal read
        await request_head(reader)
        await reader.readexactly(2)
        read += 1
        writers.append(writer)
        writer.write(NO_CONTENT + (unasked if when == "with the answer" else b""))
        await asyncio.Event().wait()

    async with raw_receiver(talk) as url, sink(url) as webhook:
        for number in range(1, 5):
            assert await webhook.deliver(DELIVERY) is ACCEPTED
            assert read == number
            if when == "after it":
                writers[-1].write(unasked)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            elif when == "before the loop has looked":
                # Written at once by the transport, and read by nobody before the next request is sent.
                writers[-1].transport.write(unasked)


async def test_a_connection_whose_answer_came_before_the_request_was_sent_is_not_used_again() -> None:
    peers = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal peers
        peers += 1
        await request_head(reader)
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport has it
        writer.write(NO_CONTENT)
        await asyncio.Event().wait()

    large = Delivery(Event(type="a", source="/", data=b"x" * 1024 * 1024), "crm", 1)
    bulky = [large] * 16  # more than the sockets hold
    async with raw_receiver(talk) as url, sink(url) as webhook:
        async with asyncio.timeout(30):
            for number in (1, 2):
                assert await webhook.deliver_batch(bulky) == [ACCEPTED] * 16
                assert peers == number


async def test_a_request_that_may_have_been_read_is_not_sent_again() -> None:
    requests = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        for answer in (NO_CONTENT, b""):
            await request_head(reader)
            await reader.readexactly(2)
            requests += 1
            writer.write(answer)

    async with raw_receiver(talk) as url, sink(url) as webhook:
        assert await webhook.deliver(DELIVERY) is ACCEPTED
        answer = await webhook.deliver(DELIVERY)
    assert requests == 2
    assert answer == Failed(f"{url.removeprefix('http://')}: the connection was closed without an answer")


async def test_a_delivery_that_is_cancelled_leaves_no_connection_behind() -> None:
    steps: list[str] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        await reader.readexactly(2)
        steps.append("read")
        if len(steps) == 1:
            await reader.read()
            steps.append("closed")
        writer.write(NO_CONTENT)
        await asyncio.Event().wait()

    async with raw_receiver(talk) as url, sink(url, connections=1) as webhook:
        waiting = asyncio.create_task(webhook.deliver(DELIVERY))
        await eventually(lambda: steps)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await eventually(lambda: steps == ["read", "closed"])
        async with asyncio.timeout(5):
            assert await webhook.deliver(DELIVERY) is ACCEPTED


async def test_waiting_for_a_connection_is_part_of_the_time() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with raw_receiver(talk) as url, sink(url, timeout=timedelta(seconds=0.3), connections=1) as webhook:
        async with asyncio.timeout(5):
            answers = await asyncio.gather(*(webhook.deliver(DELIVERY) for _ in range(5)))
    assert answers == [Failed(f"{url.removeprefix('http://')}: no answer within 0.3 s")] * 5


async def test_idle_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_IDLE", 0.05)
    steps: list[str] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        await reader.readexactly(2)
        steps.append("read")
        writer.write(NO_CONTENT)
        assert await reader.read() == b""
        steps.append("closed")

    async with raw_receiver(talk) as url, sink(url) as webhook:
        assert await webhook.deliver(DELIVERY) is ACCEPTED
        await eventually(lambda: steps == ["read", "closed"])
        assert await webhook.deliver(DELIVERY) is ACCEPTED


async def test_a_name_with_an_address_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, lookups = asyncio.get_running_loop(), 0
    silent = socket.create_server((HOST, 0), backlog=1)
    fillers = [socket.socket() for _ in range(8)]  # a backlog that is full takes nobody
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(silent.getsockname())

    async def getaddrinfo(host: object, port: int, **options: object) -> list[object]:
        nonlocal lookups
        lookups += 1
        ways = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*ways, silent.getsockname()), (*ways, (HOST, port))]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    async with receiver(answering(204)) as url, sink(url.replace(HOST, "crm.example")) as webhook:
        async with asyncio.timeout(10):
            assert await asyncio.gather(*(webhook.deliver(DELIVERY) for _ in range(20))) == [ACCEPTED] * 20
    assert lookups == 1
    for each in (silent, *fillers):
        each.close()


# --- TLS -------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def tls_receiver(talk: Talk) -> AsyncIterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.crt", TLS / "server.key")

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await talk(reader, writer)
        writer.transport.abort()

    port = free_port()
    server = await asyncio.start_server(accept, [HOST, "127.0.0.2"], port, ssl=context)
    try:
        yield port
    finally:
        server.close()


async def test_a_name_is_asked_for_again_once_its_address_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, ports = asyncio.get_running_loop(), [free_port()]

    async def getaddrinfo(host: object, port: int, **options: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (HOST, ports[-1]))]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    async with receiver(answering(204)) as url, sink("http://crm.example") as webhook:
        answer = await webhook.deliver(DELIVERY)
        assert answer == Failed("crm.example:80: cannot connect: Connection refused")
        ports.append(int(url.rpartition(":")[2]))
        assert await webhook.deliver(DELIVERY) is ACCEPTED


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
async def test_a_connection_that_fails_leaves_no_descriptor_behind(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"))

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(kinds) % 2:
            await reader.read()
        writer.write(b"no TLS at all\r\n")

    kinds: list[int] = []

    async def failing() -> None:
        short = timedelta(seconds=0.05)
        async with raw_receiver(talk) as url, sink(url.replace("http:", "https:"), timeout=short) as webhook:
            await webhook.deliver(DELIVERY)
            before = descriptors()
            for number in range(20):
                kinds.append(number)
                assert isinstance(await webhook.deliver(DELIVERY), Failed)
            await eventually(lambda: descriptors() <= before + 2)

    await asyncio.to_thread(run, failing())


async def over_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    peers, unasked = 0, b""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal peers
        peers += 1
        while True:
            await request_head(reader)
            await reader.readexactly(2)
            writer.write(NO_CONTENT + unasked)

    monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "server.crt"))
    async with tls_receiver(talk) as port, sink(f"https://{HOST}:{port}/") as webhook:
        for _ in range(5):
            assert await webhook.deliver(DELIVERY) is ACCEPTED
        assert peers == 1
        unasked = NO_CONTENT
        for _ in range(3):
            assert await webhook.deliver(DELIVERY) is ACCEPTED
        assert peers == 3
        async with sink(f"https://127.0.0.2:{port}/") as other:
            assert "the certificate is not trusted" in str(await other.deliver(DELIVERY))
    monkeypatch.delenv("SSL_CERT_FILE")
    async with tls_receiver(talk) as port, sink(f"https://{HOST}:{port}/") as webhook:
        assert await webhook.deliver(DELIVERY) == Failed(f"{HOST}:{port}: the certificate is not trusted")


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
async def test_over_tls_connections_are_kept_and_names_are_checked(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    await asyncio.to_thread(run, over_tls(monkeypatch))


async def test_on_the_loop_of_the_command_line_unread_input_ends_a_connection() -> None:
    async def unread() -> None:
        for when in ("with the answer", "after it", "before the loop has looked"):
            await test_a_connection_with_unread_input_is_not_used_again(NO_CONTENT, when)

    await asyncio.to_thread(uvloop.run, unread())


async def test_a_peer_that_closes_at_once() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with raw_receiver(talk) as url, sink(url, timeout=timedelta(minutes=5)) as webhook:
        async with asyncio.timeout(10):
            for _ in range(20):
                assert isinstance(await webhook.deliver(DELIVERY), Failed)


# --- what is refused before anything is sent -------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["", "crm.example.com", "/events", "ftp://crm.example/", "http://", "http://[::1", "http://me:s3cret@h/"]
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="URL") as refused:
        Address.parse(url)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ce-id", "1"),
        ("CE-Anything", "1"),
        ("Content-Type", "text/plain"),
        ("content-length", "1"),
        ("Host", "evil"),
        ("Transfer-Encoding", "chunked"),
        ("webhook-id", "1"),
        ("Runner-Attempt", "1"),
        ("bad name", "1"),
        ("", "1"),
        ("X-Evil\r\nHost", "1"),
        ("X-Evil", "1\r\nHost: x"),
        ("X-Evil", "\x00"),
    ],
)
def test_headers_that_are_refused(name: str, value: str) -> None:
    with pytest.raises(ValidationError, match="headers"):
        WebhookOptions.model_validate({"url": "https://crm.example/", "headers": {name: value}})


async def test_deliver_before_start_is_an_error() -> None:
    with pytest.raises(SinkError, match="before start"):
        await webhook("https://crm.example/").deliver(DELIVERY)


# --- batches ---------------------------------------------------------------------------------------

BATCH = [Delivery(Event(type="order.created", source="/shop", id=str(n), data=b"%d" % n), "crm", 1) for n in range(5)]


async def outcomes(answer: Answer, batch: Sequence[Delivery] = BATCH) -> Sequence[Outcome]:
    async with receiver(answer) as url, sink(url) as webhook:
        return await webhook.deliver_batch(batch)


async def test_a_batch_is_one_request() -> None:
    seen: list[tuple[web.Request, Any]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append((request, await request.json()))
        return web.Response()

    assert await outcomes(answer) == [ACCEPTED] * 5
    [(request, documents)] = seen
    assert request.headers["Content-Type"] == "application/cloudevents-batch+json"
    assert request.headers["Runner-Attempt"] == "1"
    assert [each["id"] for each in documents] == list("01234")
    assert not any(name.lower().startswith("ce-") for name in request.headers)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("", [ACCEPTED] * 5),
        (" ", [ACCEPTED] * 5),
        ('{"stored": 5}', [ACCEPTED] * 5),
        ("[1, 2]", [ACCEPTED] * 5),
        ('{"outcomes": null}', [ACCEPTED] * 5),
        (
            '{"outcomes": [200, 422, 500, {"status": 503, "retry_after": 7, "reason": "busy"}, {"status": 204}]}',
            [
                ACCEPTED,
                Rejected("HTTP 422", 422),
                Failed("HTTP 500", None, 500),
                Failed("HTTP 503", timedelta(seconds=7), 503, "busy"),
                ACCEPTED,
            ],
        ),
        ('{"outcomes": [200]}', [Failed("the answer gives 1 outcomes for a batch of 5")] * 5),
        ('{"outcomes": []}', [Failed("the answer gives 0 outcomes for a batch of 5")] * 5),
        ('{"outcomes": [200, 200', [Failed("the answer to a batch is malformed")] * 5),
        ('{"outcomes": 200}', [Failed("the answer to a batch is malformed")] * 5),
        ('{"outcomes": [200, 200, 200, 200, true]}', [Failed("the answer to a batch is malformed")] * 5),
        ('{"outcomes": [200, 200, 200, 200, 999]}', [Failed("the answer to a batch is malformed")] * 5),
        ('{"outcomes": [200, 200, 200, 200, {"state": 200}]}', [Failed("the answer to a batch is malformed")] * 5),
        ('{"outcomes": "12345"}', [Failed("the answer to a batch is malformed")] * 5),
    ],
)
async def test_what_a_json_answer_says_of_each_event(body: str, expected: list[Outcome]) -> None:
    assert await outcomes(answering(200, {"Content-Type": "application/json; charset=utf-8"}, body)) == expected


async def test_an_answer_that_is_no_json_says_nothing_of_single_events() -> None:
    assert await outcomes(answering(200, {"Content-Type": "text/plain"}, '{"outcomes": [500]}')) == [ACCEPTED] * 5


async def test_an_answer_that_is_cut_off_is_no_success() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"outcomes": [')
        await writer.drain()

    async with raw_receiver(talk) as url, sink(url) as webhook:
        assert await webhook.deliver_batch(BATCH) == [Failed("the answer to a batch was cut off")] * 5


async def test_an_answer_without_end_is_no_success() -> None:
    huge = answering(200, {"Content-Type": "application/json"}, '"' + "x" * 3 * 2**20 + '"')
    assert await outcomes(huge) == [Failed("the answer to a batch was cut off")] * 5


async def test_nothing_of_a_batch_is_rejected_for_what_another_event_may_be_to_blame_for() -> None:
    reason = "HTTP 400, for a batch of 5: each is tried alone"
    assert await outcomes(answering(400, text="bad")) == [Failed(reason, None, 400, "bad")] * 5
    assert await outcomes(answering(400, text="bad"), BATCH[:1]) == [Rejected("HTTP 400", 400, "bad")]
    busy = answering(503, {"Retry-After": "3"})
    assert await outcomes(busy) == [Failed("HTTP 503", timedelta(seconds=3), 503)] * 5


async def test_an_event_that_cannot_be_sent_is_rejected_once_it_is_alone() -> None:
    odd = Delivery(Event(type="", source="/shop", id="9"), "crm", 1)
    together = await outcomes(answering(200), [*BATCH, odd])
    assert [type(each) for each in together] == [Failed] * 6
    [alone] = await outcomes(answering(200), [odd])
    assert isinstance(alone, Rejected)


async def test_a_batch_that_is_too_large_goes_in_halves() -> None:
    sizes: list[int] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        ids = [each["id"] for each in await request.json()]
        sizes.append(len(ids))
        return web.Response(status=413 if len(ids) > 2 or ids == ["2"] else 200)

    assert await outcomes(answer) == [ACCEPTED, ACCEPTED, Rejected("HTTP 413", 413), ACCEPTED, ACCEPTED]
    assert sizes == [5, 2, 3, 1, 2]
