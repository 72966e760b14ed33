"""The routes that look at records and correct them, each answer against its schema in `/openapi.json`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import jsonschema_rs
import orjson
import pytest

from runner import Event, Rejected, Runner, load
from runner.api import event_records
from tests.support.eventually import eventually
from tests.support.http import Answer, ask

from .buses import Bus, running

FILE = """\
api: {listen: '127.0.0.1:0'}
sinks: {log: stdout}
subscriptions:
  - {name: of-the-file, types: [nothing], sink: log}
schedules:
  - {name: daily, cron: "@daily", event: {type: day}}
"""


class Client:
    """Asks one runner, and holds every answer against the document."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.document: dict[str, Any] = {}

    async def __call__(self, method: str, path: str, status: int = 200, body: Any = None, **headers: str) -> Any:
        answer = await self.raw(method, path, body, **headers)
        assert answer.status == status, (answer.status, answer.body)
        self._check(method, path.partition("?")[0], answer)
        return answer.json

    async def raw(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        content = None if body is None else orjson.dumps(body)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await asyncio.to_thread(
            lambda: ask(self.runner.addresses[0], path, method=method, headers=named, body=content)
        )

    def _check(self, method: str, path: str, answer: Answer) -> None:
        # The most special template first: that with the fewest parameters.
        templates = sorted(self.document["paths"], key=lambda each: each.count("{"))
        operation = next(
            self.document["paths"][each][method.lower()]
            for each in templates
            if re.fullmatch(
                re.sub(r"\\{(?:ref|seq)\\}", ".+", re.sub(r"\\{(?!ref|seq)\w+\\}", "[^/]+", re.escape(each))), path
            )
            and method.lower() in self.document["paths"][each]
        )
        said = operation["responses"][str(answer.status)]["content"]
        [(media_type, entry)] = said.items()
        assert answer.headers["content-type"].startswith(media_type)
        jsonschema_rs.validate({**entry["schema"], "components": self.document["components"]}, answer.json)


@pytest.fixture(params=["sqlite", "postgres"])
def dsn(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("tables_file" if request.param == "sqlite" else "tables_dsn"))


@pytest.fixture
async def client(dsn: str, tmp_path: Path) -> AsyncIterator[Client]:
    async with running(tmp_path, dsn) as bus, load(_with_refusals(bus)) as runner:
        client = Client(runner)
        client.document = (await client.raw("GET", "/openapi.json")).json
        yield client


async def exchanged(client: Client, head: str, body: str = "") -> bytes:
    """Return the answer to a request as it is written here, for what a client library would not send."""
    host, port = urlsplit(client.runner.addresses[0]).netloc.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{head}connection: close\r\n\r\n{body}".encode())
    answer = await reader.read()
    writer.close()
    return answer


def _with_refusals(bus: Bus) -> Path:
    return bus.write(FILE)


@pytest.fixture
async def shop(dsn: str, tmp_path: Path) -> AsyncIterator[Client]:
    """A runner whose subscription `picky` refuses odd numbers, with six events that are settled."""

    def picky(event: Event) -> object:
        return Rejected("odd") if event.json()["n"] % 2 else None

    async with running(tmp_path, dsn) as bus:
        runner = load(bus.write(FILE))
        runner.subscribe("picky", picky, types=["n"])
        async with runner:
            client = Client(runner)
            client.document = (await client.raw("GET", "/openapi.json")).json
            await runner.publish_many([Event.new("n", {"n": n}, source="/s", id=f"a/{n}") for n in range(6)])

            async def settled() -> bool:
                return len((await client("GET", "/events?state=settled"))["items"]) == 6

            await eventually(settled)
            yield client


class TestAudit:
    async def test_what_a_caller_changes_is_listed_page_by_page(self, shop: Client) -> None:
        await shop("POST", "/subscriptions/picky/pause")
        await shop("POST", "/subscriptions/picky/resume")
        await shop("POST", "/deliveries/2/picky/retry")
        await shop("POST", "/deliveries/1/picky/retry", 409)
        await shop("POST", "/deliveries/retry?dry_run=true")
        first = await shop("GET", "/audit?limit=3")
        rest = await shop("GET", f"/audit?limit=3&cursor={first['next']}")
        seen = [*first["items"], *rest["items"]]
        assert [(each["action"], each["outcome"], each["touched"]) for each in seen] == [
            ("deliveries.retry", "refused", 0),
            ("deliveries.retry", "done", 1),
            ("subscriptions.resume", "done", 1),
            ("subscriptions.pause", "done", 1),
        ]
        assert {each["who"] for each in seen} == {"api:anybody"}
        assert seen[1]["target"] == "2 picky"
        assert rest["next"] is None

    async def test_filters(self, shop: Client) -> None:
        await shop("POST", "/schedules/daily/run")
        assert len((await shop("GET", "/audit?action=schedules.*&who=api:*&since=1h"))["items"]) == 1
        assert (await shop("GET", "/audit?action=deliveries.*"))["items"] == []
        await shop("GET", "/audit?actor=api:x", 400)


class TestEvents:
    async def test_pages_bring_each_once_the_newest_first(self, shop: Client) -> None:
        seen: list[str] = []
        cursor: Any = ""
        while cursor is not None:
            page = await shop("GET", f"/events?limit=4{cursor and '&cursor=' + cursor}")
            seen += [each["event"]["id"] for each in page["items"]]
            cursor = page["next"]
        assert seen == [f"a/{n}" for n in reversed(range(6))]

    async def test_filters(self, shop: Client) -> None:
        assert [each["seq"] for each in (await shop("GET", "/events?id=a/3"))["items"]] == [4]
        assert (await shop("GET", "/events?type=m*"))["items"] == []
        assert len((await shop("GET", "/events?since=2026-01-01T00:00:00Z&subject=*"))["items"]) == 0
        await shop("GET", "/events?state=gone", 400)
        await shop("GET", "/events?limit=0", 400)
        await shop("GET", "/events?since=yesterday", 400)
        await shop("GET", "/events?cursor=abc", 400)
        await shop("GET", "/events?stat=queued", 400)

    async def test_one_by_its_seq_or_its_id(self, shop: Client) -> None:
        by_id = await shop("GET", f"/events/{quote('a/3', safe='')}")
        assert by_id == await shop("GET", "/events/a/3") == await shop("GET", "/events/4")
        assert by_id["event"]["data"] == {"n": 3}
        problem = await shop("GET", "/events/nowhere", 404)
        assert problem["type"] == "urn:runner:problem:not-found"

    async def test_digits_that_are_no_seq_are_an_id(self, shop: Client) -> None:
        await shop.runner.publish(Event.new("odd", source="/s", id="0001"))
        assert (await shop("GET", "/events/0001"))["event"]["id"] == "0001"
        assert (await shop("GET", "/events/1"))["seq"] == 1

    async def test_a_cursor_is_of_one_list(self, shop: Client) -> None:
        cursors = {path: (await shop("GET", f"/{path}?limit=1"))["next"] for path in ("events", "deliveries")}
        for path, cursor in cursors.items():
            assert (await shop("GET", f"/{path}?cursor={cursor}"))["items"]
        for path in ("audit", "deliveries"):
            await shop("GET", f"/{path}?cursor={cursors['events']}", 400)
        await shop("GET", f"/events?cursor={cursors['deliveries']}", 400)

    async def test_cancel_and_reschedule(self, shop: Client) -> None:
        await shop("POST", "/events/1/cancel", 409)
        await shop("POST", "/events/1/reschedule?delay=1h", 409)
        await shop("POST", "/events/1/reschedule", 400)
        receipt = await shop.runner.publish(Event.new("later", source="/s"), delay=timedelta(hours=1))
        moved = await shop("POST", f"/events/{receipt.id}/reschedule?delay=2h")
        assert (moved["seq"], moved["event"]) == (receipt.seq, True)
        gone = await shop("POST", f"/events/{receipt.id}/cancel")
        assert (gone["was"], gone["cancelled"]) == ("scheduled", True)
        assert (await shop("GET", f"/events/{receipt.seq}"))["state"] == "cancelled"


class TestDeliveries:
    async def test_pages_and_filters(self, shop: Client) -> None:
        dead = await shop("GET", "/deliveries?state=dead&subscription=picky&limit=2")
        assert [each["seq"] for each in dead["items"]] == [6, 4]
        rest = await shop("GET", f"/deliveries?state=dead&subscription=picky&limit=2&cursor={dead['next']}")
        assert ([each["seq"] for each in rest["items"]], rest["next"]) == ([2], None)
        assert len((await shop("GET", "/deliveries?event=a/3"))["items"]) == 1
        await shop("GET", "/deliveries?subscription=nobody", 404)

    async def test_one_with_its_tries(self, shop: Client) -> None:
        one = await shop("GET", "/deliveries/4/picky")
        assert (one["state"], one["tries"][0]["error"]) == ("dead", "odd")
        await shop("GET", "/deliveries/4/nobody", 404)

    async def test_retry_one_and_many(self, shop: Client) -> None:
        counted = await shop("POST", "/deliveries/retry?subscription=picky&state=dead&dry_run=true")
        assert counted == {"retried": 3, "dry_run": True}
        assert await shop("POST", "/deliveries/4/picky/retry") == {"retried": 1}

        async def dead_again() -> bool:
            return (await shop("GET", "/deliveries/4/picky"))["attempts"] >= 1 and len(
                (await shop("GET", "/deliveries?state=dead"))["items"]
            ) == 3

        await eventually(dead_again)
        assert (await shop("POST", "/deliveries/retry?subscription=picky&state=dead"))["retried"] == 3
        await shop("POST", "/deliveries/1/picky/retry", 409)
        await shop("POST", "/deliveries/1/picky/cancel", 409)
        assert await shop("POST", "/deliveries/1/picky/ack") == {"changed": False}

    async def test_an_id_with_slashes_names_them_too(self, shop: Client) -> None:
        by_seq = await shop("GET", "/deliveries/4/picky")
        assert await shop("GET", f"/deliveries/{quote('a/3', safe='')}/picky") == by_seq
        assert await shop("GET", "/deliveries/a/3/picky") == by_seq
        assert await shop("POST", "/deliveries/a/0/picky/ack") == {"changed": False}

    async def test_of_a_type_and_since_a_while(self, shop: Client) -> None:
        assert len((await shop("GET", "/deliveries?type=n&since=1h"))["items"]) == 6
        assert (await shop("GET", "/deliveries?type=m*"))["items"] == []
        assert (await shop("GET", "/deliveries?until=1h"))["items"] == []

    async def test_parameters_of_a_change_may_stand_in_its_body(self, shop: Client) -> None:
        counted = await shop("POST", "/deliveries/retry", body={"state": "dead", "dry_run": True})
        assert counted == {"retried": 3, "dry_run": True}
        await shop("POST", "/deliveries/retry", 400, body={"state": "dead", "dryrun": True})
        await shop("POST", "/deliveries/retry?state=dead", 400, body={"state": "dead"})
        await shop("POST", "/deliveries/retry", 400, body={"state": ["dead"]})
        await shop("POST", "/subscriptions/picky/pause", 400, body={"until": "1h"})
        receipt = await shop.runner.publish(Event.new("later", source="/s"), delay=timedelta(hours=1))
        assert (await shop("POST", f"/events/{receipt.id}/reschedule", body={"delay": "2h"}))["event"] is True

    async def test_nothing_is_retried_that_nobody_named(self, shop: Client) -> None:
        await shop("POST", "/deliveries/retry", 400)
        assert (await shop("POST", "/deliveries/retry?dry_run=true"))["retried"] == 3


class TestSubscriptions:
    async def test_list_pause_resume(self, shop: Client) -> None:
        names = [each["name"] for each in (await shop("GET", "/subscriptions"))["items"]]
        assert sorted(names) == ["of-the-file", "picky"]
        paused = await shop("POST", "/subscriptions/picky/pause")
        assert paused == {"name": "picky", "paused": True, "changed": True}
        assert (await shop("GET", "/subscriptions/picky"))["paused_by"] == "anybody"
        assert (await shop("POST", "/subscriptions/picky/resume"))["changed"] is True
        await shop("POST", "/subscriptions/nobody/pause", 404)

    async def test_replay_and_explain(self, shop: Client) -> None:
        replayed = await shop("POST", "/subscriptions/picky/replay?dry_run=true&type=n")
        assert replayed == {"replayed": 6, "dry_run": True}
        event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "m"}
        explained = await shop("POST", "/subscriptions/picky/explain", body=event)
        assert (explained["matched"], explained["failing"]["clause"]) == (False, "types")
        await shop("POST", "/subscriptions/picky/explain", 400, body={})
        twice = orjson.Fragment(b'{"specversion": "1.0", "id": "1", "id": "2", "source": "/s", "type": "n"}')
        assert (await shop("POST", "/subscriptions/picky/explain", 400, body=twice))["attribute"] == "id"

    async def test_put_with_tags_and_delete(self, client: Client) -> None:
        entry = {"types": ["order.*"], "sink": "log"}
        made = await client("PUT", "/subscriptions/mine", 201, body=entry)
        assert (made["origin"], made["types"]) == ("api:mine", ["order.*"])
        tag = (await client.raw("GET", "/subscriptions/mine")).headers["etag"]
        await client("PUT", "/subscriptions/mine", 412, body=entry, if_none_match="*")
        await client("PUT", "/subscriptions/mine", 412, body=entry, if_none_match=f'"old", {tag}')
        await client("PUT", "/subscriptions/mine", 412, body=entry, if_match='"old"')
        await client("PUT", "/subscriptions/mine", 412, body=entry, if_match="")
        again = await client("PUT", "/subscriptions/mine", 200, body={**entry, "batch": None}, if_match=tag)
        assert again["types"] == ["order.*"]
        changed = await client("PUT", "/subscriptions/mine", 200, body={**entry, "types": ["a"]}, if_match=tag)
        assert changed["types"] == ["a"]
        await client("PUT", "/subscriptions/mine", 412, body=entry, if_match=tag)
        assert (await client("DELETE", "/subscriptions/mine"))["removed"] is True
        await client("GET", "/subscriptions/mine", 404)

    async def test_several_lines_of_a_precondition_are_one_list(self, client: Client) -> None:
        put = await client.raw("PUT", "/subscriptions/one", {"types": ["a"], "sink": "log"})
        for lines, status in ((('"x"', put.headers["etag"]), b"200"), (('"x"', '"y"'), b"412")):
            head = "".join(f"if-match: {each}\r\n" for each in lines)
            answer = await exchanged(client, f"DELETE /subscriptions/one HTTP/1.1\r\nhost: localhost\r\n{head}")
            assert answer.split()[1] == status, lines
            await client.raw("PUT", "/subscriptions/one", {"types": ["a"], "sink": "log"})

    async def test_a_body_is_taken_as_it_is(self, client: Client) -> None:
        body = {"types": ["a"], "sink": "log"}
        await client("PUT", "/subscriptions/one", 415, body, content_encoding="gzip")
        for lines in ("content-encoding: gzip\r\ncontent-encoding: identity\r\n", "content-encoding: br\r\n"):
            answer = await exchanged(
                client, f"POST /events HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n{lines}"
            )
            assert answer.split()[1] == b"415"

    async def test_a_member_that_is_given_twice_is_refused(self, client: Client) -> None:
        for path, body in (
            ("POST /deliveries/retry", '{"state": "dead", "dry_run": true, "dry_run": false}'),
            ("PUT /subscriptions/one", '{"types": ["a"], "sink": "log", "retry": {"delay": "1s", "delay": "2s"}}'),
        ):
            head = f"{path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
            answer = await exchanged(client, head, body)
            assert answer.split()[1] == b"400"
            assert b"given twice" in answer

    async def test_so_many_are_made_and_no_more(self, tables_file: str, tmp_path: Path) -> None:
        limited = FILE.replace("'127.0.0.1:0'", "'127.0.0.1:0', limits: {definitions: 1}")
        async with running(tmp_path, tables_file) as bus, load(bus.write(limited)) as runner:
            client = Client(runner)
            client.document = (await client.raw("GET", "/openapi.json")).json
            for kind, body in (
                ("subscriptions", {"types": ["a"], "sink": "log", "dead_letter": "log"}),
                ("schedules", {"cron": "@daily", "event": {"type": "day"}}),
            ):
                await client("PUT", f"/{kind}/one", 201, body)
                await client("PUT", f"/{kind}/two", 409, body)
                await client("PUT", f"/{kind}/one", 200, body)
                await client("DELETE", f"/{kind}/one")
                await client("PUT", f"/{kind}/two", 201, body)

    async def test_those_of_the_file_are_read_only(self, client: Client) -> None:
        await client("PUT", "/subscriptions/of-the-file", 409, body={"sink": "log"})
        await client("DELETE", "/subscriptions/of-the-file", 409)

    async def test_what_is_wrong_is_named(self, client: Client) -> None:
        problem = await client("PUT", "/subscriptions/mine", 422, body={"sink": "lgo", "tpyes": ["a"]})
        assert "unknown sink 'lgo'" in problem["detail"]
        assert "tpyes: unknown key; did you mean 'types'?" in problem["detail"]
        await client("PUT", "/subscriptions/mine", 400, body=[])
        await client("PUT", "/subscriptions/mine", 422, body={"sink": "log", "name": "yours"})
        problem = await client("PUT", "/subscriptions/mine", 422, body={"destination": {"webhook": {}}})
        assert problem["detail"] == "destination.webhook.url: this key is required"
        problem = await client("PUT", "/subscriptions/mine", 422, body={"types": ["a"]})
        assert problem["detail"] == "sink: this key is required, or a destination"

    @pytest.mark.parametrize("path", ["subscriptions", "schedules"])
    async def test_of_many_changes_for_one_state_one_is_made(self, client: Client, path: str) -> None:
        def new(n: int) -> Any:
            if path == "schedules":
                return {"every": f"{n + 1}h", "event": {"type": "a"}}
            return {"sink": "log", "types": [f"t{n}"]}

        for first in (0, 6):  # others the second time: what changes nothing leaves the tag as it is
            headers = {"If-None-Match": "*"}
            if first:
                headers = {"If-Match": (await client.raw("GET", f"/{path}/mine")).headers["etag"]}
            puts = [client.raw("PUT", f"/{path}/mine", new(first + n), **headers) for n in range(6)]
            answers = await asyncio.gather(*puts)
            assert sorted(each.status for each in answers)[1:] == [412] * 5
            [made] = [each for each in answers if each.status != 412]
            assert (await client.raw("GET", f"/{path}/mine")).headers["etag"] == made.headers["etag"]


class TestSchedules:
    async def test_made_run_and_removed(self, client: Client) -> None:
        entry = {"every": "15m", "event": {"type": "pulse", "data": {"n": 1}}}
        put = await client("PUT", "/schedules/pulse", 201, body=entry)
        assert (put["name"], put["changed"]) == ("pulse", True)
        tag = (await client.raw("GET", "/schedules/pulse")).headers["etag"]
        await client("PUT", "/schedules/pulse", 412, body=entry, if_none_match="*")
        assert (await client("PUT", "/schedules/pulse", body=entry, if_match=tag))["changed"] is False
        await client("PUT", "/schedules/pulse", body={**entry, "every": "20m"}, if_match=tag)
        await client("PUT", "/schedules/pulse", 412, body=entry, if_match=tag)
        await client("DELETE", "/schedules/pulse", 412, if_match=tag)
        assert len((await client("GET", "/schedules/pulse/next?n=3"))["next"]) == 3
        receipt = await client("POST", "/schedules/pulse/run")
        assert receipt["source"] == "/schedules/pulse"
        assert (await client("POST", "/schedules/pulse/pause"))["changed"] is True
        assert (await client("GET", "/schedules/pulse"))["paused"] is True
        assert (await client("POST", "/schedules/pulse/resume"))["changed"] is True
        assert [each["name"] for each in (await client("GET", "/schedules"))["items"]] == ["daily", "pulse"]
        assert (await client("DELETE", "/schedules/pulse"))["removed"] is True
        await client("GET", "/schedules/pulse", 404)
        await client("DELETE", "/schedules/daily", 409)
        await client("PUT", "/schedules/daily", 409, body={"every": "15m", "event": {"type": "pulse"}})
        await client("PUT", "/schedules/x", 422, body={"cron": "no", "event": {"type": "pulse"}})


class TestTheWhole:
    async def test_instances_and_status(self, client: Client) -> None:
        [one] = (await client("GET", "/instances"))["items"]
        assert one["alive"] is True
        assert (await client("GET", "/status"))["verdict"] in ("healthy", "degraded")

    async def test_a_path_says_all_of_its_methods(self, client: Client) -> None:
        for path, methods in (
            ("/events", "GET, HEAD, OPTIONS, POST"),
            ("/subscriptions/x", "DELETE, GET, HEAD, PUT"),
            ("/status", "GET, HEAD"),
        ):
            answer = await client.raw("PATCH", path)
            assert (answer.status, answer.headers["allow"]) == (405, methods)

    async def test_a_body_is_refused_before_it_is_read(self, client: Client) -> None:
        answer = await client.raw("PUT", "/subscriptions/x", "x" * 1024 * 1024)
        assert (answer.status, answer.headers["connection"]) == (413, "close")

    async def test_a_page_of_another_origin_changes_nothing(self, client: Client) -> None:
        pause, host = "/subscriptions/of-the-file/pause", client.runner.addresses[0]
        for headers in ({"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
            await client("POST", pause, 403, **headers)
        await client("GET", "/subscriptions", origin="https://evil.example")
        await client("POST", pause, origin=host)
        await client("POST", pause, origin=host, sec_fetch_site="same-origin")

    async def test_a_bound_token_cannot_tell_what_is_not_there_from_what_is_not_its_own(
        self, tables_file: str, tmp_path: Path
    ) -> None:
        token = "evb_" + "k" * 43
        entry = f"{{name: r, secret: {token}, scopes: [read], types: [mine]}}"
        more = f"api: {{listen: '127.0.0.1:0', tokens: [{entry}]}}\n"
        async with running(tmp_path, tables_file) as bus, load(bus.write(more)) as runner:
            for source in ("/a", "/b"):
                await runner.publish(Event.new("theirs", source=source, id="twice"))
            await runner.publish(Event.new("theirs", source="/a", id="once"))
            client = Client(runner)
            answers = [
                await client.raw("GET", f"/events/{ref}", authorization=f"Bearer {token}")
                for ref in ("twice", "once", "none")
            ]
        assert {each.status for each in answers} == {404}
        assert len({each.body for each in answers}) == 1

    async def test_a_page_costs_a_bounded_amount(
        self, tables_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever may see few events has no reason to read all, nor anybody to read a gigabyte at once."""
        monkeypatch.setattr(event_records, "_LOOKED_THROUGH", 10)
        monkeypatch.setattr(event_records, "_HEAVIEST", 2000)
        bound, free = "evb_" + "b" * 43, "evb_" + "f" * 43
        tokens = (
            f"{{name: b, secret: {bound}, scopes: [read], types: [mine]}}, {{name: f, secret: {free}, scopes: [read]}}"
        )
        more = f"api: {{listen: '127.0.0.1:0', tokens: [{tokens}]}}\n"
        async with running(tmp_path, tables_file) as bus, load(bus.write(more)) as runner:
            types = ["mine", *["theirs"] * 25, "mine"]
            await runner.publish_many([Event(type=each, source="/", id=str(n)) for n, each in enumerate(types)])
            client = Client(runner)

            async def pages(token: str, limit: int) -> list[list[str]]:
                found, cursor = [], ""
                while True:
                    path = f"/events?limit={limit}" + (f"&cursor={cursor}" if cursor else "")
                    page = (await client.raw("GET", path, authorization=f"Bearer {token}")).json
                    found.append([each["event"]["id"] for each in page["items"]])
                    if not (cursor := page["next"]):
                        return found

            assert await pages(bound, 5) == [["26"], [], ["0"]]
            assert await pages(bound, 1) == [["26"], [], [], ["0"], []]
            assert [len(each) for each in await pages(free, 20)] == [20, 7]
            large = [Event(type="a", source="/", id=f"large-{n}", data=b"x" * 900) for n in range(5)]
            await runner.publish_many(large)
            assert [len(each) for each in await pages(free, 20)][:2] == [3, 20]

    async def test_without_a_token_nothing_is_told(self, tables_file: str, tmp_path: Path) -> None:
        token = "evb_" + "k" * 43
        more = f"api: {{listen: '127.0.0.1:0', tokens: [{{name: r, secret: {token}, scopes: [read]}}]}}\n"
        async with load(Bus(tmp_path, tables_file).write(more)) as runner:
            client = Client(runner)
            client.document = (await client.raw("GET", "/openapi.json")).json
            for path, methods in client.document["paths"].items():
                for method in methods:
                    if path in ("/healthz", "/readyz", "/metrics"):
                        continue
                    given = re.sub(r"\{\w+\}", "x", path)
                    refused = (await client.raw(method.upper(), given)).status
                    assert refused in (401, 429), (method, path)  # after so many nobody is asked any more
            bearer = {"authorization": f"Bearer {token}"}
            assert (await client.raw("GET", "/instances", **bearer)).status == 200
            assert (await client.raw("POST", "/deliveries/retry", **bearer)).status == 403


ODD = """
    GET /events/%00 404, GET /events/%ed%a0%80 404, GET /events/9223372036854775808 404, POST /events/%00/cancel 404,
    GET /subscriptions/a%00b 404, DELETE /subscriptions/a%00b 404, POST /subscriptions/a%00b/pause 404,
    GET /schedules/%00 404, DELETE /schedules/%00 404, POST /schedules/%00/run 404, GET /deliveries/%00/x 404,
    GET /deliveries/1/%00 404, POST /deliveries/1/%00/retry 404, GET /deliveries/9223372036854775808/x 404,
    GET /events?type=%00 400, GET /events?since=0001-01-01T00:00:00Z 200,
    GET /events/stream?types=%00 400, GET /audit?who=%00 400, POST /events?deliver_at=0001-01-01T00:00:00Z 202,
    GET /dashboard/subscriptions/%00 404, GET /dashboard/events/%00 404, GET /dashboard/deliveries/1/%00 404,
    GET /dashboard/schedules/%00 404, GET /dashboard/traces/%00 404, GET /dashboard/traces/9223372036854775808 404,
    GET /dashboard/events?type=%00 400, GET /dashboard/events?id=%00 400, GET /dashboard/audit?who=%00 400,
    GET /dashboard/dead-letters?subscription=%00 400, GET /dashboard/deliveries?type=%00 400,
    GET /dashboard/events?since=0001-01-01T00:00:00Z 200, GET /dashboard/events?since=9999-12-31T23:59:59Z 200,
    GET /dashboard/events?since=999999999999d 400, GET /dashboard/events?before=999999999999999999 200
"""


async def test_odd_names_and_times_are_answered_alike_on_both_stores(dsn: str, tmp_path: Path) -> None:
    """A NUL, a lone surrogate, a number beyond 64 bits, the year 1: what one of the stores cannot look for."""
    bus = Bus(tmp_path, dsn)
    async with load(bus.write("api: {listen: '127.0.0.1:0'}\n")) as runner:
        for case in ODD.split(","):
            method, path, status = case.split()
            address = runner.addresses[0]
            headers = {"ce-specversion": "1.0", "ce-type": "a", "ce-source": "/", "ce-id": "1"}
            answer = await asyncio.to_thread(lambda: ask(address, path, method=method, headers=headers))  # noqa: B023
            assert answer.status == int(status), (case, answer.body[-200:])
