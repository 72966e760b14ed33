"""The dashboard of a runner that runs: who sees it, and what hostile events may do to it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import quote, urlencode

import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.engine import Engine

from runner import Event, Rejected, Runner, load
from runner.dashboard.pages import HEADERS
from runner.dashboard.view import View
from runner.storage.contract.events import Publication
from tests.support.eventually import eventually
from tests.support.http import Answer, ask

from .buses import Bus

READ, ADMIN, WRITE, BOUND = (f"evb_{letter * 43}" for letter in "rawb")
OPEN = "api: {listen: '127.0.0.1:0'}\n"
GUARDED = f"""\
api:
  listen: '127.0.0.1:0'
  tokens:
    - {{name: eve, secret: {READ}, scopes: [read]}}
    - {{name: ops, sha256: {hashlib.sha256(ADMIN.encode()).hexdigest()}, scopes: [read, admin]}}
    - {{name: shop, secret: {WRITE}, scopes: [publish]}}
    - {{name: tenant, secret: {BOUND}, scopes: [read], types: [a]}}
"""
PAGES = (
    "/",
    "/dashboard/subscriptions",
    "/dashboard/events",
    "/dashboard/dead-letters",
    "/dashboard/deliveries?state=dead",
    "/dashboard/schedules",
    "/dashboard/audit",
    "/dashboard/publish",
)


class Browser:
    """As much of a browser as the dashboard needs: it keeps cookies, and fills in forms."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.cookies: dict[str, str] = {}

    async def __call__(self, path: str, form: dict[str, str] | None = None, **headers: str) -> Answer:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookies:
            given["cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        body = None
        if form is not None:
            given.setdefault("content-type", "application/x-www-form-urlencoded")
            body = urlencode(form).encode()
        method = "GET" if form is None else "POST"
        address = self.runner.addresses[0]
        answer = await asyncio.to_thread(lambda: ask(address, path, method=method, headers=given, body=body))
        if "set-cookie" in answer.headers:
            name, value = answer.headers["set-cookie"].partition(";")[0].split("=", 1)
            self.cookies[name] = value.strip('"')
        return answer

    async def log_in(self, token: str, **form: str) -> Answer:
        return await self("/dashboard/login", {"token": token, **form})

    async def csrf(self) -> str:
        found = re.search(r'name="csrf" value="(\w+)"', (await self("/")).body.decode())
        assert found
        return found[1]


@pytest.fixture(params=["sqlite", "postgres"])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Bus:
    return Bus(tmp_path, request.getfixturevalue("tables_file" if request.param == "sqlite" else "tables_dsn"))


@pytest.fixture
def lite(tables_file: str, tmp_path: Path) -> Bus:
    return Bus(tmp_path, tables_file)


@pytest.fixture
async def guarded(lite: Bus) -> AsyncIterator[Browser]:
    async with load(lite.write(GUARDED)) as runner:
        yield Browser(runner)


class TestWhoSeesIt:
    async def test_everybody_where_the_api_has_no_tokens(self, lite: Bus) -> None:
        async with load(lite.write(OPEN)) as runner:
            browser = Browser(runner)
            for path in PAGES:
                answer = await browser(path)
                assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
                assert answer.headers.items() >= HEADERS.items()

    async def test_nobody_without_logging_in(self, guarded: Browser) -> None:
        for path in PAGES:
            answer = await guarded(path)
            assert answer.status == 303
            assert answer.headers["location"] == f"/dashboard/login?next={quote(path, safe='')}"
        assert (await guarded("/dashboard/login")).status == 200
        assert (await guarded("/dashboard/static/dashboard.css")).status == 200

    async def test_a_session_is_begun_by_a_token_and_ended_by_logging_out(self, guarded: Browser) -> None:
        answer = await guarded.log_in(READ, next="/dashboard/events")
        assert (answer.status, answer.headers["location"]) == (303, "/dashboard/events")
        cookie = answer.headers["set-cookie"].lower()
        assert all(each in cookie for each in ("httponly", "samesite=strict", "path=/"))
        assert READ not in cookie
        assert (await guarded("/")).status == 200
        assert (await guarded("/dashboard/logout", {"csrf": await guarded.csrf()})).status == 303
        assert (await guarded("/")).status == 303

    async def test_the_cookie_opens_pages_and_nothing_of_the_api(self, guarded: Browser) -> None:
        await guarded.log_in(ADMIN)
        assert (await guarded("/")).status == 200
        assert (await guarded("/status")).status == 401

    @pytest.mark.parametrize(
        ("token", "status"), [("", 401), ("evb_unknown", 401), (WRITE, 403), (BOUND, 403), ("ä" * 50, 401)]
    )
    async def test_other_tokens_begin_none(self, guarded: Browser, token: str, status: int) -> None:
        answer = await guarded.log_in(token)
        assert answer.status == status
        assert "set-cookie" not in answer.headers
        assert (await guarded("/")).status == 303

    async def test_too_many_failures_have_to_wait_and_the_right_token_never(self, guarded: Browser) -> None:
        answers = [await guarded.log_in("evb_wrong") for _ in range(21)]
        assert [each.status for each in answers] == [401] * 20 + [429]
        assert int(answers[-1].headers["retry-after"]) <= 60
        assert (await guarded.log_in(READ)).status == 303

    async def test_a_session_outlives_the_process_and_ends_with_its_token(self, lite: Bus) -> None:
        async with load(lite.write(GUARDED)) as runner:
            browser = Browser(runner)
            await browser.log_in(ADMIN)
        async with load(lite.write(GUARDED)) as runner:
            browser.runner = runner
            assert (await browser("/")).status == 200
        async with load(lite.write(GUARDED.replace(hashlib.sha256(ADMIN.encode()).hexdigest(), "f" * 64))) as runner:
            browser.runner = runner
            assert (await browser("/")).status == 303

    @pytest.mark.parametrize(
        "after", ["https://evil.example/", "//evil.example", "/\\evil.example", "/dashboard/../x", "javascript:1"]
    )
    async def test_a_login_leads_nowhere_else(self, guarded: Browser, after: str) -> None:
        assert (await guarded.log_in(READ, next=after)).headers["location"] == "/"

    async def test_a_login_form_of_another_origin_is_refused(self, guarded: Browser) -> None:
        for headers in ({"sec_fetch_site": "cross-site"}, {"origin": "https://evil.example"}, {"origin": "null"}):
            answer = await guarded("/dashboard/login", {"token": READ}, **headers)
            assert (answer.status, answer.headers.get("set-cookie")) == (403, None)

    async def test_a_form_of_another_session_changes_nothing(self, guarded: Browser) -> None:
        await guarded.log_in(READ)
        other = Browser(guarded.runner)
        await other.log_in(READ)
        for csrf in ("", "x", await other.csrf()):
            assert (await guarded("/dashboard/logout", {"csrf": csrf})).status == 403
        assert (await guarded("/")).status == 200

    async def test_a_link_of_another_site_finds_the_session(self, guarded: Browser) -> None:
        answer = await guarded("/dashboard/events?type=a", sec_fetch_site="cross-site")
        assert answer.status == 200
        assert b'http-equiv="refresh" content="0; url=/dashboard/events?type=a"' in answer.body

    async def test_the_path_of_a_proxy(self, lite: Bus) -> None:
        async with load(lite.write(GUARDED + "  root_path: /bus\n")) as runner:
            browser = Browser(runner)
            assert (await browser("/")).headers["location"] == "/bus/dashboard/login?next=%2Fbus%2F"
            answer = await browser.log_in(READ, next="/bus/dashboard/events")
            assert answer.headers["location"] == "/bus/dashboard/events"
            assert "path=/bus;" in answer.headers["set-cookie"].lower() + ";"
            page = (await browser("/bus/")).body.decode()
            assert set(re.findall(r'(?:href|src|action)="(/\w*)', page)) == {"/bus"}

    async def test_the_cookie_is_for_tls_alone_where_there_is_tls(self, guarded: Browser) -> None:
        host = guarded.runner.addresses[0].removeprefix("http://")
        answer = await guarded("/dashboard/login", {"token": READ}, origin=f"https://{host}")
        assert "; secure" in answer.headers["set-cookie"].lower()

    async def test_it_can_be_switched_off(self, lite: Bus) -> None:
        async with load(lite.write("api: {listen: '127.0.0.1:0', dashboard: false}\n")) as runner:
            for path in ("/", "/dashboard/login"):
                assert (await Browser(runner)(path)).status == 404


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'`{{7*7}}"


class TestHostileEvents:
    async def test_nothing_of_an_event_becomes_markup(self, bus: Bus) -> None:
        def refuse(event: Event) -> object:
            return Rejected(HOSTILE + "\u202e\x1b[2J")

        runner = load(bus.write(OPEN))
        runner.subscribe("picky", refuse)
        async with runner:
            browser = Browser(runner)
            event = Event.new(HOSTILE, {HOSTILE: HOSTILE}, source="/", id=HOSTILE, subject=HOSTILE)
            hostile = event.replace(source=f"/{HOSTILE}", extensions={"x": HOSTILE})
            [receipt] = await runner.publish_many([Publication(hostile, exported=True)])
            await eventually(lambda: self._dead(browser, receipt.seq))
            seq = receipt.seq
            of_it = (f"events/{seq}", f"traces/{seq}", f"deliveries/{seq}/picky", f"events?type={quote(HOSTILE)}")
            for path in (*PAGES, *[f"/dashboard/{each}" for each in (*of_it, "subscriptions/picky")]):
                answer = await browser(path)
                text = answer.body.decode()
                assert answer.status == 200, path
                assert "<script>alert" not in text
                assert "<img src=x" not in text
                assert "\u202e" not in text
                assert "\x1b" not in text
                assert "`49" not in text

    @staticmethod
    async def _dead(browser: Browser, seq: int) -> bool:
        return b'"state bad">dead' in (await browser(f"/dashboard/events/{seq}")).body


class TestEvents:
    async def test_one_event_with_the_way_of_each_delivery(self, bus: Bus) -> None:
        def picky(event: Event) -> object:
            return Rejected("odd")

        runner = load(bus.write(OPEN))
        runner.subscribe("picky", picky, types=["n"])
        runner.subscribe("kind", lambda event: None, types=["n"])
        runner.subscribe("other", lambda event: None, types=["m"])
        async with runner:
            browser = Browser(runner)
            receipt = await runner.publish(Event.new("n", b'{"big":%d}' % 2**70, source="/s", id="a/1"))
            await eventually(lambda: TestHostileEvents._dead(browser, receipt.seq))
            for reference in (str(receipt.seq), "a/1"):
                text = (await browser(f"/dashboard/events/{reference}")).body.decode()
                assert "given up after one attempt: odd" in text
                assert "attempt 1" in text
                assert str(2**70) in text
                assert "expected &#39;m&#39;, the event has &#39;n&#39;" in text

    async def test_schedules_and_their_runs(self, bus: Bus) -> None:
        file = OPEN + "schedules: [{name: a.b, every: 1d, event: {type: day}}]\n"
        async with load(bus.write(file)) as runner:
            browser = Browser(runner)
            receipt = await runner.schedules.run("a.b")
            text = (await browser("/dashboard/schedules/a.b")).body.decode()
            assert f'href="/dashboard/events/{receipt.seq}"' in text
            assert len(re.findall(r"<li>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", text)) == 10
            assert b"a.b" in (await browser("/dashboard/schedules")).body

    async def test_a_trace_is_a_tree(self, bus: Bus) -> None:
        async with load(bus.write(OPEN)) as runner:
            browser = Browser(runner)
            first = await runner.publish(Event.new("first", source="/s", id="1", extensions={"correlationid": "c"}))
            await runner.publish(
                Event.new("second", source="/s", id="2", extensions={"correlationid": "c", "causationid": "1"})
            )
            text = (await browser(f"/dashboard/traces/{first.seq}")).body.decode()
            assert "2 events" in text
            assert re.findall(r'class="depth-(\d)', text) == ["0", "1"]

    async def test_what_is_not_there_is_a_page_as_well(self, lite: Bus) -> None:
        async with load(lite.write(OPEN)) as runner:
            browser = Browser(runner)
            for path, status in (
                ("/dashboard/events/99", 404),
                ("/dashboard/subscriptions/nope", 404),
                ("/dashboard/deliveries/1/nope", 404),
                ("/dashboard/schedules/nope", 404),
                ("/dashboard/traces/nope", 404),
                ("/dashboard/dead-letters?subscription=nope", 404),
                ("/dashboard/dead-letters?before=1", 400),
                ("/dashboard/deliveries?state=lost", 400),
                ("/dashboard/subscriptions?sort=x", 400),
                ("/dashboard/events?state=bad", 400),
                ("/dashboard/events?before=x", 400),
                ("/dashboard/events?since=soon", 400),
                ("/dashboard/events?x=1", 400),
                ("/dashboard/static/site.py", 404),
            ):
                answer = await browser(path)
                assert (answer.status, answer.headers["content-type"]) == (status, "text/html; charset=utf-8"), path
                assert answer.headers.items() >= HEADERS.items()

    async def test_a_list_is_paged_and_searched(self, bus: Bus) -> None:
        async with load(bus.write(OPEN)) as runner:
            browser = Browser(runner)
            assert b"No events yet" in (await browser("/dashboard/events")).body
            await runner.publish_many([Event.new("n" if n % 2 else "m", source="/s", id=f"i{n}") for n in range(120)])
            seen: list[str] = []
            path = "/dashboard/events?type=n"
            while path:
                text = (await browser(path)).body.decode()
                seen += re.findall(r"<bdi>(i\d+)</bdi>", text)
                following = re.search(r'rel="next" href="([^"]+)"', text)
                path = following[1].replace("&amp;", "&") if following else ""
            assert seen == [f"i{n}" for n in range(119, -1, -2)]
            assert b"No event fits" in (await browser("/dashboard/events?type=q")).body

    async def test_a_search_that_takes_long_shows_how_far_it_came_and_goes_on(
        self, bus: Bus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("runner.storage.stretches._FIRST", 10)
        monkeypatch.setattr("runner.dashboard.events.patience", timedelta(0))
        async with load(bus.write(OPEN)) as runner:
            browser, pages, seen = Browser(runner), 0, list[str]()
            await runner.publish_many(
                [Event.new("rare" if n in (0, 27) else "common", source="/s", id=f"i{n}") for n in range(40)]
            )
            path = "/dashboard/events?type=rare"
            while path:
                text, pages = (await browser(path)).body.decode(), pages + 1
                seen += re.findall(r"<bdi>(i\d+)</bdi>", text)
                following = re.search(r'rel="next" href="([^"]+)">Search on', text)
                assert ("there are older" in text) == bool(following)
                path = following[1].replace("&amp;", "&") if following else ""
            assert (seen, pages) == (["i27", "i0"], 4)

    async def test_one_event_costs_as_many_queries_with_twenty_deliveries_as_with_one(self, bus: Bus) -> None:
        runner = load(bus.write(OPEN))
        for number in range(20):
            runner.subscribe(f"s{number}", lambda event: Rejected("odd"), types=["many"] if number else ["many", "one"])
        async with runner:
            browser, costs = Browser(runner), []
            for type in ("one", "many"):
                receipt = await runner.publish(Event.new(type, source="/s"))
                await eventually(partial(self._all_dead, browser, receipt.seq))
                statements = _Statements()
                with statements.counted():
                    await browser(f"/dashboard/events/{receipt.seq}")
                costs.append(statements.number)
            assert costs[0] == costs[1] <= 8

    @staticmethod
    async def _all_dead(browser: Browser, seq: int) -> bool:
        text = (await browser(f"/dashboard/events/{seq}")).body
        return b'"state bad">dead' in text and b'"state info">' not in text

    async def test_an_instance_shows_the_file_it_has_and_why_not_the_last_one(self, bus: Bus) -> None:
        path = bus.write(OPEN)
        async with load(path) as runner:
            browser = Browser(runner)
            digest = runner.reloading.state.digest
            assert await eventually(lambda: self._shows(browser, digest))
            path.write_text("nothing: of use\n")
            assert (await runner.reloading.reload("program")).outcome == "failed"
            assert await eventually(lambda: self._shows(browser, "not reloaded</span>"))
            assert await self._shows(browser, digest)
            [instance] = (await browser("/instances")).json["items"]
            assert instance["configuration"]["outcome"] == "failed"
            assert "this key is required" in instance["configuration"]["faults"][0]

    @staticmethod
    async def _shows(browser: Browser, words: str) -> bool:
        await asyncio.sleep(0)
        return words in (await browser("/")).body.decode()


async def test_a_session_ends_with_the_time_of_its_token(lite: Bus) -> None:
    import time_machine

    soon = "2037-01-01"
    async with load(lite.write(GUARDED.replace("scopes: [read]}", f"scopes: [read], expires: {soon}}}", 1))) as runner:
        browser = Browser(runner)
        await browser.log_in(READ)
        assert (await browser("/")).status == 200
        with time_machine.travel("2037-01-02", tick=True):
            assert (await browser("/")).status == 303
        assert (await browser("/")).status == 200
        with time_machine.travel(_in(timedelta(hours=13)), tick=True):
            assert (await browser("/")).status == 303


def _in(length: timedelta) -> Any:
    from runner.service.clock import utcnow

    return utcnow() + length


class TestOverview:
    async def test_it_costs_five_queries_and_none_while_somebody_looks(self, bus: Bus) -> None:
        runner = load(bus.write(OPEN))
        runner.subscribe("picky", lambda event: Rejected("odd"), types=["n"])
        async with runner:
            browser, statements = Browser(runner), _Statements()
            for receipt in await runner.publish_many([Event.new("n", source="/s") for _ in range(3)]):
                await eventually(partial(TestHostileEvents._dead, browser, receipt.seq))
            with statements.counted():
                text = (await browser("/")).body.decode()
                assert 1 <= statements.number <= 5
            assert "3 dead deliveries" in text
            assert 'class="plots"' in text

    async def test_with_the_store_away_it_says_so(self, tmp_path: Path) -> None:
        runner = load(Bus(tmp_path, "postgresql://nobody@127.0.0.1:1/none").write(OPEN))
        starting = asyncio.create_task(runner.start())
        try:
            await eventually(lambda: _listens(runner))
            answer = await Browser(runner)("/")
            assert answer.status == 200
            assert b"the store cannot be reached" in answer.body
        finally:
            starting.cancel()
            await asyncio.wait({starting})
            await runner.stop()


async def _listens(runner: Runner) -> bool:
    return bool(runner.addresses)


class _Statements:
    """Counts the statements that pages cause, whatever else the process does."""

    def __init__(self) -> None:
        self.number = 0
        self._counting = ContextVar("counting", default=False)

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        of = View.of

        def counting(*args: Any) -> View:
            self._counting.set(True)  # until the end of this request
            return of(*args)

        def note(_: object, __: object, statement: str, *___: object) -> None:
            self.number += self._counting.get() and not statement.startswith("BEGIN")

        sqlalchemy_event.listen(Engine, "before_cursor_execute", note)
        try:
            with patch.object(View, "of", counting):
                yield
        finally:
            sqlalchemy_event.remove(Engine, "before_cursor_execute", note)
