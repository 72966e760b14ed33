"""Subscriptions that bring a destination of their own: by the API, a program and another process, on both stores."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from runner import Event, Runner, load
from runner.errors import ConfigError
from runner.log.redaction import redacted
from runner.service.clock import utcnow
from runner.storage.contract.records import DeliveryQuery
from runner.storage.tables import subscriptions
from runner.subscription import Destination
from tests.support.eventually import eventually
from tests.support.http import Answer, ask
from tests.support.receivers import answering, raw_receiver, receiver

from .buses import Bus, running

KEY, OTHER_KEY = "first-key-of-thirty-two-characters", "other-key-of-thirty-two-characters"
SECRET = "whsec_" + base64.b64encode(b"canary-of-a-signing-secret-123456").decode()
ANYWHERE = "destinations: {allow: {http: true, cidrs: [127.0.0.0/8]}, ports: null}\n"
FILE = "api: {{listen: '127.0.0.1:0'}}\nsinks: {{log: stdout}}\nsealing: {{keys: [{keys}]}}\n"


@pytest.fixture(params=["sqlite", "postgres"])
def dsn(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("tables_file" if request.param == "sqlite" else "tables_dsn"))


@pytest.fixture
async def bus(dsn: str, tmp_path: Path) -> AsyncIterator[Bus]:
    async with running(tmp_path, dsn) as made:
        yield made


def written(bus: Bus, *keys: str, more: str = ANYWHERE) -> Path:
    return bus.write(FILE.format(keys=", ".join(keys or (KEY,))) + more)


async def call(runner: Runner, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    content = None if body is None else orjson.dumps(body)
    address = runner.addresses[0]
    return await asyncio.to_thread(lambda: ask(address, path, method=method, headers=named, body=content))


class Requests:
    """Answers requests, and keeps them."""

    def __init__(self, status: int = 200) -> None:
        self.seen: list[tuple[dict[str, str], bytes]] = []
        self.status = status

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(({name.lower(): value for name, value in request.headers.items()}, await request.read()))
        return web.Response(status=self.status)

    def got(self, number: int) -> Callable[[], bool]:
        return lambda: len(self.seen) >= number


async def test_a_put_destination_is_delivered_to_at_once_and_its_secrets_stay_sealed(bus: Bus) -> None:
    requests = Requests()
    async with receiver(requests) as url, load(written(bus)) as runner, load(written(bus)) as other:
        webhook = {"url": f"{url}/in?key=canary-in-query", "secret": SECRET, "headers": {"X-Key": "canary-in-header"}}
        definition = {"types": ["order.*"], "destination": {"webhook": webhook}}
        made = await call(other, "PUT", "/subscriptions/crm", definition)
        assert made.status == 201, made.body
        shown = {"url": f"{url}/in?***", "secret": "***", "headers": {"X-Key": "***"}}
        assert (made.json["destination"], made.json["sink"]) == ({"webhook": shown}, "destination:crm")
        await runner.publish(Event.new("order.created", {"n": 1}, source="/s"))
        await eventually(requests.got(1))
        headers, body = requests.seen[0]
        assert (headers["x-key"], body) == ("canary-in-header", b'{"n":1}')
        assert headers["webhook-signature"].startswith("v1,")
        [row] = await bus.database.rows(subscriptions)
        told = [made.body.decode(), str(row["spec"]), (await call(runner, "GET", "/subscriptions")).body.decode()]
        for text in told:
            assert "canary" not in text
            assert SECRET not in text
        again = await call(other, "PUT", "/subscriptions/crm", definition, if_match=made.headers["etag"])
        assert (again.status, again.headers["etag"]) == (200, made.headers["etag"])
        assert redacted(SECRET) == "***"


async def test_a_program_puts_and_removes_it_as_well(bus: Bus) -> None:
    requests = Requests()
    async with receiver(requests) as url, load(written(bus)) as runner:
        put = await runner.subscriptions.put("crm", {"destination": {"webhook": f"{url}/in"}})
        assert put.created
        assert put.registered.subscription.destination == Destination(
            kind="webhook", shown={"url": f"{url}/in"}, options={"url": f"{url}/in"}
        )
        await runner.publish(Event.new("a", source="/s"))
        await eventually(requests.got(1))
        assert await runner.subscriptions.remove("crm") == 0
        await runner.publish(Event.new("a", source="/s", id="late"))

        async def one() -> bool:
            return await bus.settled(delivered=1)

        await eventually(one)
        assert len(requests.seen) == 1


async def test_another_destination_takes_over_and_the_old_one_ends_what_it_has(bus: Bus) -> None:
    asked, release = asyncio.Event(), asyncio.Event()
    after = Requests()

    async def slow(request: web.Request) -> web.StreamResponse:
        asked.set()
        await release.wait()
        return web.Response()

    async with receiver(slow) as old, receiver(after) as new, load(written(bus)) as runner:
        await runner.subscriptions.put("crm", {"destination": {"webhook": old}})
        await runner.publish(Event.new("a", source="/s", id="1"))
        await asyncio.wait_for(asked.wait(), 10)
        await runner.subscriptions.put("crm", {"destination": {"webhook": new}})
        await runner.publish(Event.new("a", source="/s", id="2"))
        await eventually(after.got(1))
        release.set()

        async def both() -> bool:
            return await bus.settled(delivered=2)

        await eventually(both)
        assert [headers["ce-id"] for headers, _ in after.seen] == ["2"]


async def test_an_expired_one_gets_nothing_new_is_listed_and_goes_in_the_end(bus: Bus) -> None:
    requests = Requests()
    async with receiver(requests) as url, load(written(bus)) as runner:
        later = utcnow() + timedelta(hours=1)
        definition = {"destination": {"webhook": url}, "expires_at": later.isoformat()}
        await runner.subscriptions.put("crm", definition)
        await runner.publish(Event.new("a", source="/s", id="in-time"))
        await eventually(requests.got(1))
        soon = utcnow() + timedelta(seconds=1.5)
        await runner.subscriptions.put("crm", {**definition, "expires_at": soon.isoformat()})

        async def expired() -> bool:
            return bool((await call(runner, "GET", "/subscriptions/crm")).json["expired"])

        await eventually(expired)
        await runner.publish(Event.new("a", source="/s", id="late"))

        async def one() -> bool:
            return await bus.settled(delivered=1)

        await eventually(one)
        assert (await call(runner, "GET", "/subscriptions/crm")).json["active"] is False
        event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "a"}
        dry = await call(runner, "POST", "/events?dry_run=true", event, content_type="application/cloudevents+json")
        assert "crm" not in [each["subscription"] for each in dry.json["subscriptions"] if each["matched"]]
        assert await runner.subscriptions.remove_expired(timedelta(hours=1)) == 0
        assert await runner.subscriptions.remove_expired(timedelta(0)) == 1
        assert (await call(runner, "GET", "/subscriptions/crm")).status == 404


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ("http://example.com/", "http:// is not allowed"),
        ("https://127.0.0.1/", "127.0.0.1 is not a public address"),
        ("https://[::ffff:10.0.0.1]/", "not a public address"),
        ("https://0x7f.1/", "another form than"),
        ("https://example.com:22/", "port 22 is not allowed"),
        ({"url": "https://example.com/", "tls": {"ca": "/etc/passwd"}}, "tls: it names files"),
        (
            {"url": "https://example.com/", "handshake": "warn", "origin": "trusted.example"},
            "origin: it is the name of",
        ),
        ({"url": "https://example.com/", "allow": {}}, "allow: where destinations may lead is set in"),
        (
            {
                "url": "https://example.com/",
                "auth": {"oauth2": {"token_url": "http://10.0.0.1/", "client_id": "a", "client_secret": "sec-ret-1"}},
            },
            "token_url: http://",
        ),
        ({"url": "https://example.com/", "secret": SECRET}, "sealing: {keys: "),
        ({"url": "https://example.com/", "headers": {"A": "b" * 70_000}}, "at most 65536 are taken"),
        ({"url": "https://example.com/", "headers": {f"A{n}": f"secret-{n}" for n in range(51)}}, "at most 50"),
        (f"https://example.com/{'/a1b2c3d4e5f6g7h8i9' * 500}", "at most 8000"),
    ],
)
async def test_what_may_not_be_is_refused_with_the_cure(tmp_path: Path, options: Any, fault: str) -> None:
    (tmp_path / "bus.yaml").write_text(
        "deployment_id: d\nstorage: {dsn: 'sqlite:///bus.db'}\napi: {listen: '127.0.0.1:0'}\n"
    )
    async with load(tmp_path / "bus.yaml") as runner:
        answer = await call(runner, "PUT", "/subscriptions/crm", {"destination": {"webhook": options}})
        assert (answer.status, fault in answer.json["detail"]) == (422, True), answer.body
        assert SECRET not in answer.body.decode()
        assert (await call(runner, "GET", "/subscriptions/crm")).status == 404


async def test_a_name_that_leads_inside_is_not_connected_to_and_nothing_tells_why(bus: Bus) -> None:
    connections: list[object] = []

    async def canary(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(reader)

    async with raw_receiver(canary) as url, load(written(bus, more="destinations: {ports: null}\n")) as runner:
        port = url.rpartition(":")[2]
        await runner.subscriptions.put(
            "crm", {"destination": {"webhook": f"https://localhost:{port}/"}, "retry": {"max_attempts": 1}}
        )
        await runner.publish(Event.new("a", source="/s"))

        async def dead() -> bool:
            return await bus.settled(dead=1)

        await eventually(dead)
        [view] = [each async for each in runner._operations.records.deliveries(DeliveryQuery())]
        assert view.last_error == f"localhost:{port}: cannot connect to the destination (attempt 1 of 1)"
        assert connections == []


@pytest.mark.parametrize("wanted", [None, "warn"])
async def test_the_operator_may_have_every_receiver_asked(bus: Bus, wanted: str | None) -> None:
    allowed: dict[str, str] = {}
    seen: list[tuple[str, str | None]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.method, request.headers.get("webhook-request-origin")))
        return web.Response(headers=allowed if request.method == "OPTIONS" else {})

    asked = ANYWHERE.replace("ports: null", "ports: null, handshake: required, origin: bus.example")
    async with receiver(answer) as url, load(written(bus, more=asked)) as runner:
        await runner.subscriptions.put("crm", {"destination": {"webhook": {"url": url, "handshake": wanted}}})
        await runner.publish(Event.new("a", source="/s"))

        async def withheld() -> bool:
            return await bus.settled(pending=1)

        await eventually(withheld)
        assert seen == [("OPTIONS", "bus.example")]
        allowed["WebHook-Allowed-Origin"] = "*"
        await runner.subscriptions.put("crm", {"destination": {"webhook": {"url": f"{url}/2", "handshake": wanted}}})
        await runner.publish(Event.new("a", source="/s"))
        await eventually(lambda: seen[1:] == [("OPTIONS", "bus.example"), ("POST", "bus.example")])


async def test_the_answer_of_such_a_receiver_is_not_kept(bus: Bus) -> None:
    async with receiver(answering(422, text="internal details")) as url, load(written(bus)) as runner:
        await runner.subscriptions.put("crm", {"destination": {"webhook": url}})
        await runner.publish(Event.new("a", source="/s"))

        async def dead() -> bool:
            return await bus.settled(dead=1)

        await eventually(dead)
        [view] = [each async for each in runner._operations.records.deliveries(DeliveryQuery())]
        _, [attempt] = await runner._operations.records.delivery(view.seq, "crm")
        assert (attempt.status, attempt.excerpt) == (422, None)


async def test_keys_are_changed_while_it_runs_and_resealing_goes_on_where_it_was(bus: Bus) -> None:
    requests = Requests()
    async with receiver(requests) as url:
        async with load(written(bus, KEY)) as runner:
            for name in ("one", "two"):
                await runner.subscriptions.put(name, {"destination": {"webhook": {"url": url, "secret": SECRET}}})
        async with load(written(bus, OTHER_KEY, KEY)) as runner:
            assert await runner.subscriptions.reseal(dry_run=True) == (2, 0, {})
            assert await runner.subscriptions.reseal() == (2, 0, {})
            assert await runner.subscriptions.reseal() == (0, 2, {})
            await runner.publish(Event.new("a", source="/s"))
            await eventually(requests.got(2))
        async with load(written(bus, OTHER_KEY)) as runner:
            await runner.publish(Event.new("a", source="/s"))
            await eventually(requests.got(4))


async def test_a_reload_takes_other_keys_and_limits(bus: Bus, capfd: pytest.CaptureFixture[str]) -> None:
    requests = Requests()

    async def reloaded(runner: Runner) -> None:
        done = await runner.reloading.reload("program")
        assert (done.outcome, list(done.faults)) == ("reloaded", [])

    async with receiver(requests) as url, load(written(bus, KEY)) as runner:
        with_secret = {"destination": {"webhook": {"url": url, "secret": SECRET}}}
        await runner.subscriptions.put("crm", with_secret)
        written(bus, OTHER_KEY, KEY)
        await reloaded(runner)
        assert await runner.subscriptions.reseal() == (1, 0, {})
        written(bus, OTHER_KEY)
        await reloaded(runner)
        await runner.publish(Event.new("a", source="/s"))
        await eventually(requests.got(1))

        written(bus, KEY)  # by mistake
        await reloaded(runner)
        await eventually(lambda: runner.worker.roster.destinations.names == [])
        await runner.publish(Event.new("a", source="/s"))
        written(bus, OTHER_KEY, more="")  # https only, and to the world outside
        await reloaded(runner)
        await eventually(lambda: "url: http:// is not allowed here" in capfd.readouterr().err)
        with pytest.raises(ConfigError, match="http:// is not allowed here"):
            await runner.subscriptions.put("other", with_secret)
        assert len(requests.seen) == 1
        written(bus, OTHER_KEY)
        await reloaded(runner)
        await eventually(requests.got(2))


async def test_without_its_key_a_destination_waits_and_says_so(bus: Bus, capfd: pytest.CaptureFixture[str]) -> None:
    requests = Requests()
    async with receiver(requests) as url:
        async with load(written(bus, KEY)) as runner:
            await runner.subscriptions.put("crm", {"destination": {"webhook": {"url": url, "secret": SECRET}}})
        async with load(written(bus, OTHER_KEY)) as runner:
            assert (await runner.subscriptions.reseal()).failed.keys() == {"crm"}
            await runner.publish(Event.new("a", source="/s"))

            async def waits() -> bool:
                return await bus.settled(pending=1)

            await eventually(waits)
            status = (await call(runner, "GET", "/status")).json
            assert [each["subject"] for each in status["findings"] if each["kind"] == "nobody_serves"] == ["crm"]
        async with load(written(bus, KEY)) as runner:
            await eventually(requests.got(1))
    said = capfd.readouterr().err
    assert "destination not opened" in said
    assert "which is not among sealing.keys" in said


async def test_nobody_s_destination_is_a_sink_for_others(bus: Bus) -> None:
    async with receiver(Requests()) as url, load(written(bus)) as runner:
        await runner.subscriptions.put("crm", {"destination": {"webhook": url}})

        async def served() -> bool:
            sinks = (await call(runner, "GET", "/instances")).json["items"][0]["sinks"]
            return "destination:crm" in sinks

        await eventually(served)
        with pytest.raises(ConfigError, match="unknown sink"):
            await runner.subscriptions.put("thief", {"sink": "destination:crm"})


async def test_that_of_the_document_is_taken(bus: Bus) -> None:
    text = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
    [body] = re.findall(r"subscriptions/crm .* -d '(\{.+?\})'\n```", text, re.DOTALL)
    async with load(written(bus, more="")) as runner:
        made = await call(runner, "PUT", "/subscriptions/crm", orjson.loads(body))
        assert (made.status, made.json["destination"]["webhook"]["secret"]) == (201, "***")
