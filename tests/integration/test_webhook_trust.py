"""What a webhook proves, to whom it goes, and what it refuses to reach."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import aiohappyeyeballs
import pytest
from aiohttp import web
from pydantic import ValidationError
from standardwebhooks.webhooks import Webhook

from runner import load
from runner.delivery import ACCEPTED, Delivery, DeliveryState, Failed, Rejected
from runner.errors import SinkError
from runner.event import Event
from runner.log.redaction import redacted
from runner.sinks.http import pool
from runner.sinks.http.hosts import Hosts
from runner.sinks.webhook import WebhookOptions
from runner.storage.contract.records import DeliveryQuery
from tests.support.dns import Rebinding
from tests.support.eventually import eventually
from tests.support.receivers import answering, raw_receiver, receiver, sink, sink_context, webhook
from tests.support.server import HOST

TLS = Path(__file__).parent / "tls"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLDER = f"whsec_{base64.b64encode(bytes(range(32))).decode()}"
EVENT = Event(type="order.created", source="/shop", id="a.b", data=b'{"n":\t1}', datacontenttype="application/json")
DELIVERY = Delivery(EVENT, "crm", 1)


class Requests:
    """Remembers requests and answers them with statuses in turn, the last one for ever."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses or (200,))
        self.seen: list[tuple[web.Request, bytes]] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.seen.append((request, await request.read()))
        return web.Response(status=self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0])

    def header(self, name: str) -> list[str | None]:
        return [request.headers.get(name) for request, _ in self.seen]


# --- signatures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["binary", "structured"])
async def test_a_signed_request_is_verified_by_the_reference(mode: str) -> None:
    requests = Requests()
    async with receiver(requests) as url, sink(url, secret=SECRET, mode=mode) as crm:
        assert await crm.deliver(DELIVERY) is ACCEPTED
        assert await crm.deliver(Delivery(Event(type="a", source="/", id="é"), "crm", 1)) is ACCEPTED
    for request, body in requests.seen:
        if body:
            Webhook(SECRET).verify(body, dict(request.headers))
        else:  # the reference takes nothing but JSON
            signed = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}."
            made = Webhook(SECRET).sign(request.headers["webhook-id"], _time(request), "")
            assert made == request.headers["webhook-signature"], signed
    assert all("." not in str(each) for each in requests.header("webhook-id"))


def _time(request: web.Request) -> datetime:
    return datetime.fromtimestamp(int(request.headers["webhook-timestamp"]), UTC)


async def test_the_id_stays_over_attempts_and_processes_and_the_time_does_not() -> None:
    requests = Requests(503, 503, 200)
    async with receiver(requests) as url:
        for attempt in (1, 2, 3):
            async with sink(url, secret=SECRET) as crm:
                await crm.deliver(Delivery(EVENT, "crm", attempt))
        async with sink(url, secret=SECRET) as crm:
            await crm.deliver(Delivery(EVENT.replace(id="other"), "crm", 1))
    ids = requests.header("webhook-id")
    assert len(set(ids[:3])) == 1
    assert ids[3] != ids[0]
    assert EVENT.id not in str(ids[0])
    assert requests.header("runner-attempt") == ["1", "2", "3", "1"]
    times = [int(each or 0) for each in requests.header("webhook-timestamp")]
    assert all(abs(each - datetime.now(UTC).timestamp()) < 60 for each in times)


async def test_a_batch_is_signed_as_one_message() -> None:
    requests = Requests()
    async with receiver(requests) as url, sink(url, secret=SECRET) as crm:
        batch = [Delivery(EVENT.replace(id=str(n)), "crm", 1) for n in range(3)]
        assert await crm.deliver_batch(batch) == [ACCEPTED] * 3
    [(request, body)] = requests.seen
    Webhook(SECRET).verify(body, dict(request.headers))
    assert len(json.loads(body)) == 3


async def test_two_secrets_sign_during_the_change_over() -> None:
    requests = Requests()
    later, before = datetime.now(UTC) + timedelta(hours=1), datetime.now(UTC) - timedelta(hours=1)
    async with receiver(requests) as url:
        for until in (None, later, before):
            async with sink(url, secret=SECRET, previous_secret=OLDER, previous_until=until) as crm:
                assert await crm.deliver(DELIVERY) is ACCEPTED
    first, second, third = requests.seen
    for request, body in (first, second):
        Webhook(SECRET).verify(body, dict(request.headers))
        Webhook(OLDER).verify(body, dict(request.headers))
    assert len(third[0].headers["webhook-signature"].split(" ")) == 1


async def test_nothing_is_signed_without_a_secret() -> None:
    requests = Requests()
    async with receiver(requests) as url, sink(url) as crm:
        await crm.deliver(DELIVERY)
    assert not [name for name in requests.seen[0][0].headers if name.lower().startswith("webhook-")]


async def test_a_long_event_leaves_room_for_its_signature() -> None:
    """Together with the signatures the headers stay below what common servers take."""
    heads: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with raw_receiver(talk) as url, sink(url, secret=SECRET, previous_secret=OLDER) as crm:
        for length in range(7000, 8200, 50):
            assert await crm.deliver(Delivery(EVENT.replace(subject="s" * length), "crm", 1)) is ACCEPTED
    assert max(map(len, heads)) <= 8192
    assert min(map(len, heads)) < 1000  # in the body at last


# --- who we are ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("auth", "expected"),
    [
        ({"bearer": "tok3n-of-ours"}, "Bearer tok3n-of-ours"),
        (
            {"basic": {"user": "us", "password": "p:ä55word"}},
            f"Basic {base64.b64encode('us:p:ä55word'.encode()).decode()}",
        ),
    ],
)
async def test_bearer_and_basic(auth: dict[str, object], expected: str) -> None:
    requests = Requests()
    async with receiver(requests) as url, sink(url, auth=auth) as crm:
        assert await crm.deliver(DELIVERY) is ACCEPTED
    assert requests.header("Authorization") == [expected]


class Tokens:
    """An authorization server that gives out `t1`, `t2` and so on."""

    def __init__(self, *, lifetime: object = 3600) -> None:
        self.lifetime = lifetime
        self.status = 200
        self.asked: list[tuple[web.Request, dict[str, list[str]]]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request, parse_qs((await request.read()).decode())))
        number = len(self.asked)
        await self.gate.wait()
        if self.status != 200:
            return web.json_response(
                {"error": "invalid_client", "error_description": "no <secret>"}, status=self.status
            )
        token = {"access_token": f"token-number-{number}", "token_type": "bearer", "expires_in": self.lifetime}
        return web.json_response({name: value for name, value in token.items() if value is not None})


def oauth2(token_url: str, **options: object) -> dict[str, object]:
    return {"oauth2": {"token_url": token_url, "client_id": "us er", "client_secret": "cl1ent:secret"} | options}


@pytest.mark.parametrize("send", ["header", "body"])
async def test_one_token_for_all_deliveries(send: str) -> None:
    server, requests = Tokens(), Requests()
    async with receiver(server) as token_url, receiver(requests) as url:
        auth = oauth2(f"{token_url}/token", scopes=("a", "b"), parameters={"audience": "crm"}, send=send)
        async with sink(url, auth=auth) as crm:
            server.gate.clear()
            deliveries = asyncio.gather(*(crm.deliver(DELIVERY) for _ in range(20)))
            await eventually(lambda: len(server.asked) == 1)
            server.gate.set()
            assert await deliveries == [ACCEPTED] * 20
    [(request, form)] = server.asked
    assert set(requests.header("Authorization")) == {"Bearer token-number-1"}
    assert form["grant_type"] == ["client_credentials"]
    assert (form["scope"], form["audience"]) == (["a b"], ["crm"])
    if send == "body":
        assert (form["client_id"], form["client_secret"]) == (["us er"], ["cl1ent:secret"])
        assert "Authorization" not in request.headers
    else:
        assert "client_secret" not in form
        expected = base64.b64encode(b"us+er:cl1ent%3Asecret").decode()  # RFC 6749 §2.3.1
        assert request.headers["Authorization"] == f"Basic {expected}"


async def test_sinks_with_the_same_client_share_its_token() -> None:
    server, requests = Tokens(), Requests()
    async with receiver(server) as token_url, receiver(requests) as url:
        context, auth = sink_context(), oauth2(token_url)
        async with sink(f"{url}/a", context, auth=auth) as a, sink(f"{url}/b", context, auth=auth) as b:
            assert await a.deliver(DELIVERY) is await b.deliver(DELIVERY) is ACCEPTED
            await a.stop()
            assert await b.deliver(DELIVERY) is ACCEPTED
        async with sink(url, context, auth=oauth2(token_url, scopes=("other",))) as other:
            assert await other.deliver(DELIVERY) is ACCEPTED
    assert len(server.asked) == 2


async def test_a_token_is_renewed_before_its_end_while_the_old_one_is_used() -> None:
    now = 1000.0
    server, requests = Tokens(lifetime=100), Requests()
    async with receiver(server) as token_url, receiver(requests) as url, sink(url, auth=oauth2(token_url)) as crm:
        assert crm._tokens is not None
        crm._tokens._clock = lambda: now
        assert await crm.deliver(DELIVERY) is ACCEPTED
        now += 79.0
        assert await crm.deliver(DELIVERY) is ACCEPTED
        assert len(server.asked) == 1
        now += 2.0  # within the last fifth
        server.gate.clear()
        assert await crm.deliver(DELIVERY) is ACCEPTED  # and does not wait
        await eventually(lambda: len(server.asked) == 2)
        assert await crm.deliver(DELIVERY) is ACCEPTED
        server.gate.set()

        async def renewed() -> bool:
            assert await crm.deliver(DELIVERY) is ACCEPTED
            return requests.header("Authorization")[-1] == "Bearer token-number-2"

        await eventually(renewed)
        now += 200.0
        assert await crm.deliver(DELIVERY) is ACCEPTED
    assert requests.header("Authorization")[:4] == ["Bearer token-number-1"] * 4
    assert requests.header("Authorization")[-1] == "Bearer token-number-3"
    assert len(server.asked) == 3


async def test_a_token_that_is_refused_is_not_sent_again() -> None:
    server, requests = Tokens(), Requests(401, 200)
    async with receiver(server) as token_url, receiver(requests) as url, sink(url, auth=oauth2(token_url)) as crm:
        assert await crm.deliver(DELIVERY) == Failed("HTTP 401", None, 401)
        assert await crm.deliver(DELIVERY) is ACCEPTED
    assert requests.header("Authorization") == ["Bearer token-number-1", "Bearer token-number-2"]


async def test_without_a_token_nothing_is_sent_and_the_server_is_left_alone() -> None:
    server, requests = Tokens(), Requests()
    server.status = 401
    async with receiver(server) as token_url, receiver(requests) as url, sink(url, auth=oauth2(token_url)) as crm:
        outcomes = await asyncio.gather(*(crm.deliver(DELIVERY) for _ in range(10)))
        outcomes += [await crm.deliver(DELIVERY)]
    assert outcomes == [Failed("no token: HTTP 401: invalid_client")] * 11
    assert len(server.asked) == 1
    assert requests.seen == []


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "{}",
        '{"access_token": ""}',
        '{"access_token": "a b"}',
        '{"access_token": "a\\r\\nX: y"}',
        '{"access_token": 5}',
        '{"access_token": "a", "token_type": "mac"}',
        '{"access_token": "' + "x" * 70_000 + '"}',
    ],
)
async def test_an_answer_that_holds_no_token(body: str) -> None:
    requests = Requests()
    async with (
        receiver(answering(200, text=body)) as token_url,
        receiver(requests) as url,
        sink(url, auth=oauth2(token_url)) as crm,
    ):
        assert await crm.deliver(DELIVERY) == Failed("no token: the answer holds no bearer token")
    assert requests.seen == []


@pytest.mark.parametrize("lifetime", [None, "3600", "soon", -5, 10**30, True])
async def test_odd_lifetimes(lifetime: object) -> None:
    server, requests = Tokens(lifetime=lifetime), Requests()
    async with receiver(server) as token_url, receiver(requests) as url, sink(url, auth=oauth2(token_url)) as crm:
        assert await crm.deliver(DELIVERY) is ACCEPTED
        assert await crm.deliver(DELIVERY) is ACCEPTED


async def test_a_server_that_gives_no_tokens_hangs_nobody() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with (
        raw_receiver(talk) as token_url,
        receiver(answering(200)) as url,
        sink(url, auth=oauth2(token_url), timeout=timedelta(seconds=0.2)) as crm,
    ):
        assert await crm.deliver(DELIVERY) == Failed("no token: no answer within 0.2 s")


async def test_a_token_is_hidden_in_what_a_receiver_repeats() -> None:
    server = Tokens()

    async def echo(request: web.Request) -> web.StreamResponse:
        return web.Response(status=500, text=request.headers["Authorization"])

    async with receiver(server) as token_url, receiver(echo) as url, sink(url, auth=oauth2(token_url)) as crm:
        answer = await crm.deliver(DELIVERY)
        assert isinstance(answer, Failed)
        assert "token-number-1" not in redacted(str(answer))
    assert redacted("token-number-1") == "token-number-1"  # one that is over is forgotten


# --- mutual TLS ------------------------------------------------------------------------------------


@pytest.fixture
def server_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.crt", TLS / "server.key")
    context.load_verify_locations(TLS / "server.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


async def test_a_client_certificate(server_tls: ssl.SSLContext) -> None:
    async with receiver(answering(200), ssl_context=server_tls) as url:
        files = {"ca": TLS / "server.crt", "cert": TLS / "server.crt", "key": TLS / "server.key"}
        async with sink(url, tls=files) as crm:
            assert await crm.deliver(DELIVERY) is ACCEPTED
        async with sink(url, tls={"ca": TLS / "server.crt"}) as crm:
            assert isinstance(await crm.deliver(DELIVERY), Failed)
        async with sink(url) as crm:
            answer = await crm.deliver(DELIVERY)
            assert isinstance(answer, Failed)
            assert "certificate is not trusted" in answer.reason


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"ca": "nowhere.pem"}, r"tls\.ca: .*nowhere\.pem cannot be read"),
        ({"cert": "nowhere.pem", "key": TLS / "server.key"}, r"tls\.cert: .*nowhere\.pem cannot be read"),
        ({"cert": TLS / "server.crt", "key": "nowhere.pem"}, r"tls\.key: .*nowhere\.pem cannot be read"),
        ({"cert": TLS / "server.crt", "key": TLS / "server.crt"}, r"tls\.key: .* cannot be used"),
        ({"ca": __file__}, r"tls\.ca: .* cannot be used"),
    ],
)
def test_a_file_of_tls_that_cannot_be_used_is_named(files: dict[str, object], fault: str) -> None:
    with pytest.raises(SinkError, match=fault):
        webhook("https://crm.example/", tls=files)


# --- where it goes ---------------------------------------------------------------------------------


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every connection look its name up."""
    monkeypatch.setattr(pool, "_REMEMBERED", 0.0)


class Canary:
    """A server that nobody is to reach."""

    def __init__(self) -> None:
        self.connections = 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1


async def test_nothing_private_is_reached_by_name_or_by_address() -> None:
    canary = Canary()
    async with raw_receiver(canary.talk) as url:
        port = url.rpartition(":")[2]
        for host in ("localhost", "ip6-localhost"):
            async with sink(f"http://{host}:{port}/", allow={"http": True}) as crm:
                answer = await crm.deliver(DELIVERY)
                assert isinstance(answer, Failed)
                assert "not allowed" in answer.reason or "does not resolve" in answer.reason
    assert canary.connections == 0


@pytest.mark.parametrize("first", ["8.8.8.8", "127.0.0.1"])
@pytest.mark.usefixtures("no_memory")
async def test_a_name_that_is_bound_to_another_address_meanwhile(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is checked is what is dialled: a second look-up, with another answer, does not happen in between."""
    canary, dialled = Canary(), list[list[object]]()

    async def dial(found: list[tuple[object, ...]], **options: object) -> object:
        dialled.append([each[4] for each in found])
        raise OSError(111, "nobody is there")

    monkeypatch.setattr(aiohappyeyeballs, "start_connection", dial)
    other = "127.0.0.1" if first == "8.8.8.8" else "8.8.8.8"
    dns = Rebinding(lambda number: [first if number % 2 == 0 else other])
    await dns.start()
    async with raw_receiver(canary.talk) as url:
        port = int(url.rpartition(":")[2])
        async with sink(f"http://rebind.example:{port}/", allow={"http": True}) as crm:
            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", dns.getaddrinfo)
            answers = [await crm.deliver(DELIVERY) for _ in range(10)]
    dns.stop()
    assert dns.asked == 10
    assert dialled == [[("8.8.8.8", port)]] * 5
    assert sum("127.0.0.1 is not a public address" in str(each) for each in answers) == 5
    assert canary.connections == 0


@pytest.mark.usefixtures("no_memory")
async def test_one_private_address_among_several_keeps_it_from_all(monkeypatch: pytest.MonkeyPatch) -> None:
    canary = Canary()
    dns = Rebinding(lambda _number: ["8.8.8.8", HOST])
    await dns.start()
    async with (
        raw_receiver(canary.talk) as url,
        sink(f"http://both.example:{url.rpartition(':')[2]}/", allow={"http": True}) as crm,
    ):
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", dns.getaddrinfo)
        assert isinstance(await crm.deliver(DELIVERY), Failed)
    dns.stop()
    assert canary.connections == 0


@pytest.mark.usefixtures("no_memory")
async def test_the_peer_of_the_connection_is_checked_before_a_byte_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read())

    async def elsewhere(found: list[Any], **options: Any) -> object:
        """Connect to the canary whatever was asked for, as a network that translates addresses would."""
        return await original([(*found[0][:4], (HOST, port))], **options)

    original = aiohappyeyeballs.start_connection
    dns = Rebinding(lambda _number: ["8.8.8.8"])
    await dns.start()
    async with raw_receiver(talk) as url:
        port = int(url.rpartition(":")[2])
        monkeypatch.setattr(aiohappyeyeballs, "start_connection", elsewhere)
        async with sink(f"http://fine.example:{port}/", allow={"http": True}) as crm:
            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", dns.getaddrinfo)
            answer = await crm.deliver(DELIVERY)
            assert isinstance(answer, Failed)
            assert f"{HOST} is not a public address" in answer.reason
        await eventually(lambda: received == [b""])
    dns.stop()


async def test_networks_and_names_that_the_file_allows() -> None:
    requests = Requests()
    async with receiver(requests) as url:
        port = url.rpartition(":")[2]
        for host, allow in ((HOST, {"cidrs": ("127.0.0.0/8",)}), ("localhost", {"hosts": ("localhost",)})):
            async with sink(f"http://{host}:{port}/", allow={"http": True} | allow) as crm:
                assert await crm.deliver(DELIVERY) is ACCEPTED
    assert len(requests.seen) == 2


async def test_tokens_are_fetched_within_the_same_limits() -> None:
    canary = Canary()
    async with raw_receiver(canary.talk) as token_url, receiver(answering(200)) as url:
        token_url = token_url.replace(HOST, "localhost")
        allow = {"http": True, "hosts": (HOST,), "cidrs": ()}
        async with sink(url, allow=allow, auth=oauth2(token_url)) as crm:
            answer = await crm.deliver(DELIVERY)
            assert isinstance(answer, Failed)
            assert "not allowed" in answer.reason
    assert canary.connections == 0


# --- limits, and a receiver that is gone -----------------------------------------------------------


async def test_sinks_to_one_host_share_its_limit() -> None:
    open_now = most = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0.001)
        open_now -= 1
        return web.Response()

    context = sink_context()
    async with receiver(answer) as url, sink(f"{url}/a", context, connections=3) as a, sink(f"{url}/b", context) as b:
        outcomes = await asyncio.gather(*(each.deliver(DELIVERY) for each in (a, b) for _ in range(20)))
        assert outcomes == [ACCEPTED] * 40
        await a.stop()
        assert await b.deliver(DELIVERY) is ACCEPTED
    assert most == 3


async def test_what_is_shared_and_what_is_not() -> None:
    hosts = Hosts()
    context = sink_context(hosts=hosts)
    for url in ("https://h/a", "https://H/b", "https://h:443/", "http://h/", "https://h:444/"):
        webhook(url, context)
    webhook("https://h/", context, allow={})
    assert len(hosts._pools) == 4


@pytest.mark.parametrize("batch", [False, True])
async def test_gone_pauses_the_subscription_where_that_is_wanted(batch: bool) -> None:
    paused: list[tuple[str, str]] = []
    context = sink_context(pause=lambda name, reason: paused.append((name, reason)))
    async with receiver(answering(410, text="bye")) as url:
        peer = url.removeprefix("http://")
        async with sink(url, context, gone="pause") as crm:
            if batch:
                [answer, _] = await crm.deliver_batch([DELIVERY, DELIVERY])
            else:
                answer = await crm.deliver(DELIVERY)
            assert answer == Failed("HTTP 410 (gone)", None, 410, "bye")
            assert set(paused) == {("crm", f"HTTP 410 of {peer}")}
        async with sink(url, context) as crm:
            assert isinstance(await crm.deliver(DELIVERY), Rejected)


async def test_gone_of_one_event_of_a_batch_pauses_as_well() -> None:
    paused: list[tuple[str, str]] = []
    context = sink_context(pause=lambda name, reason: paused.append((name, reason)))
    told = answering(200, {"Content-Type": "application/json"}, '{"outcomes": [200, 410]}')
    async with receiver(told) as url, sink(url, context, gone="pause") as crm:
        assert await crm.deliver_batch([DELIVERY, DELIVERY]) == [ACCEPTED, Failed("HTTP 410 (gone)", None, 410)]
    assert len(paused) == 1


async def test_a_runner_pauses_the_subscription_and_keeps_the_event(tmp_path: Path) -> None:
    requests = Requests(410)
    async with receiver(requests) as url:
        (tmp_path / "bus.yaml").write_text(
            f"deployment_id: gone\nstorage: {{dsn: 'sqlite:///bus.db'}}\n"
            f"sinks: {{crm: {{webhook: {{url: '{url}', gone: pause}}}}}}\n"
            "subscriptions: [{name: crm, sink: crm, retry: {delay: 1ms}}]\n"
        )
        runner = load(tmp_path / "bus.yaml")
        async with runner:
            await runner.publish(EVENT)
            records = runner._operations.records

            async def paused() -> bool:
                [(each, *_)] = await records.registered()
                return each.paused

            await eventually(paused)
            [(each, *_)] = await records.registered()
            assert each.paused_by == f"HTTP 410 of {url.removeprefix('http://')}"

            async def waits() -> bool:
                return [each.state async for each in records.deliveries(DeliveryQuery())] == [DeliveryState.PENDING]

            await eventually(waits)


# --- options ---------------------------------------------------------------------------------------

URL = "https://crm.example/"


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"secret": "s3cr3t-of-another-kind"}, "expected whsec_"),
        ({"previous_secret": SECRET}, "no secret that follows"),
        ({"secret": SECRET, "previous_until": "2026-01-31T12:00:00Z"}, "no previous_secret"),
        ({"secret": SECRET, "previous_secret": OLDER, "previous_until": "2026-01-31T12:00:00"}, "previous_until"),
        ({"auth": {}}, "expected one of bearer, basic and oauth2, got none"),
        ({"auth": {"bearer": "a", "basic": {"user": "u", "password": "p"}}}, "got bearer and basic"),
        ({"auth": {"bearer": "Bearer abc"}}, "leave out the word Bearer"),
        ({"auth": {"basic": {"user": "a:b", "password": "p"}}}, "colon"),
        ({"auth": {"bearer": "abc"}, "headers": {"authorization": "x"}}, "set by auth"),
        ({"auth": {"oauth2": {"token_url": "ftp://x", "client_id": "a", "client_secret": "b"}}}, "absolute URL"),
        ({"url": "http://crm.example/", "tls": {"ca": "x"}}, "nothing is encrypted"),
        ({"tls": {"cert": "x"}}, "go together"),
        ({"url": "http://crm.example/", "allow": {}}, "only https"),
        ({"url": "https://127.0.0.1/", "allow": {}}, "not a public address"),
        ({"url": "https://2130706433/", "allow": {}}, "another form"),
        ({"allow": {"cidrs": ["10.0.0.1/8"]}}, "expected a network"),
        ({"allow": {"hosts": ["*"]}}, "expected a host name"),
        (
            {"allow": {}, "auth": {"oauth2": {"token_url": "http://a/", "client_id": "a", "client_secret": "b"}}},
            "token_url",
        ),
        ({"gone": "pause", "permanent": (410,)}, "410"),
        ({"connections": 0}, "connections"),
    ],
)
def test_options_that_are_refused(options: dict[str, object], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        WebhookOptions.model_validate({"url": URL} | options)


def advised(**options: object) -> Iterator[str]:
    return (key for key, _ in WebhookOptions.model_validate({"url": URL} | options).advice())


def test_advice() -> None:
    past = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    assert list(advised(secret=SECRET)) == ["secret"]
    assert list(advised(secret=SECRET, mode="binary")) == []
    assert list(advised(secret=SECRET, mode="structured")) == []
    changed = {"secret": SECRET, "mode": "binary", "previous_secret": OLDER}
    assert list(advised(**changed)) == []
    assert list(advised(**changed, previous_until=past)) == ["previous_until"]
    assert list(advised(url="http://crm.example/", auth={"bearer": "abc"})) == ["url"]
    assert list(advised(auth=oauth2("http://idp.example/"))) == ["auth"]


def test_no_secret_is_shown() -> None:
    options = WebhookOptions.model_validate(
        {
            "url": URL,
            "secret": SECRET,
            "previous_secret": OLDER,
            "auth": oauth2("https://idp.example/t?key=k3y-of-ours"),
        }
    )
    shown = f"{options!r} {options.model_dump(mode='json')}"
    for text in (SECRET, OLDER, "cl1ent:secret", "k3y-of-ours"):
        assert text not in shown
