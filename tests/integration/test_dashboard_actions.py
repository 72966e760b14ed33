"""What a visitor of the dashboard does: asked first, with a count, then done once and on record."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import timedelta
from html import unescape

import pytest

from runner import Event, Rejected, load
from runner.policies.schedule import SOURCES
from runner.storage.contract.audit import ActionQuery
from tests.support.eventually import eventually

from .buses import Bus
from .test_dashboard import ADMIN, GUARDED, READ, Browser

BOSS, CLERK = f"evb_{'o' * 43}", f"evb_{'c' * 43}"
FILE = f"""{GUARDED.rstrip()}
    - {{name: boss, secret: {BOSS}, scopes: [read, admin]}}
    - {{name: clerk, secret: {CLERK}, scopes: [read, publish]}}
schedules:
  - {{name: daily, cron: "@daily", event: {{type: day}}}}
"""


@pytest.fixture
async def shop(tables_file: str, tmp_path: object) -> AsyncIterator[Browser]:
    """A visitor with the scope admin, where event 1 is dead for `picky`, event 2 delivered and event 3 due tomorrow."""

    def picky(event: Event) -> object:
        return Rejected("odd") if event.json()["n"] == 1 else None

    bus = Bus(tmp_path, tables_file)  # type: ignore[arg-type]  # a path
    runner = load(bus.write(FILE))
    runner.subscribe("picky", picky, types=["n"])
    async with runner:
        browser = Browser(runner)
        await browser.log_in(ADMIN)
        await runner.publish_many([Event.new("n", {"n": n}, source="/s", id=f"e{n}") for n in (1, 2)])
        await runner.publish(Event.new("n", {"n": 3}, source="/s", id="e3"), delay=timedelta(days=1))
        records = runner._operations.records

        async def ended() -> bool:
            return all([(await records.event(f"e{n}")).state == "settled" for n in (1, 2)])

        await eventually(ended)
        yield browser


async def asked(browser: Browser, path: str, **form: str) -> str:
    """Send a form without its confirmation; return the question in words."""
    answer = await browser(f"/dashboard{path}", {"csrf": await browser.csrf(), **form})
    assert answer.status == 200, answer.body
    [text] = re.findall(r"</h1>\s*<p>(.*?)</p>", answer.body.decode(), re.DOTALL)
    return unescape(text)


async def done(browser: Browser, path: str, **form: str) -> str:
    """Confirm; return what the next page says of it."""
    answer = await browser(f"/dashboard{path}", {"csrf": await browser.csrf(), "confirm": "yes", **form})
    assert answer.status == 303, answer.body
    page = (await browser(answer.headers["location"])).body.decode()
    [text] = re.findall(r'role="status">(.*?)</p>', page)
    return unescape(text)


async def entries(browser: Browser) -> list[tuple[str, str, int]]:
    found = await browser.runner._storage.audit.actions(ActionQuery())
    return [(each.action.actor, each.action.name, each.touched) for each in found]


ACTS = [
    (
        "/deliveries/1/picky/retry",
        {},
        "Will retry 1 delivery, of event 1 to picky, with fresh attempts.",
        "The delivery of event 1 to picky is due again.",
        ("deliveries.retry", 1),
    ),
    (
        "/deliveries/retry",
        {"state": "dead", "subscription": "picky", "rate": "10/s"},
        "Will retry 1 delivery of picky, with fresh attempts, the oldest first, 10/s.",
        "1 delivery of picky is due again.",
        ("deliveries.retry", 1),
    ),
    (
        "/events/3/cancel",
        {},
        "Will cancel what is still to come of n: its dispatch, and 0 deliveries.",
        "Event 3 is cancelled, with 1 delivery.",
        ("events.cancel", 1),
    ),
    (
        "/subscriptions/picky/pause",
        {},
        "Nothing more is delivered to picky until it is resumed. 0 deliveries of it wait now.",
        "picky is paused.",
        ("subscriptions.pause", 1),
    ),
    (
        "/subscriptions/picky/resume",
        {},
        "Will deliver to picky again, and close its breaker. 0 deliveries of it wait.",
        "picky was already active.",
        ("subscriptions.resume", 0),
    ),
    (
        "/subscriptions/picky/replay",
        {"type": "n"},
        "Will deliver 2 events of the type n again, also what was delivered, to picky.",
        "2 events are due again for picky.",
        ("subscriptions.replay", 2),
    ),
    (
        "/schedules/daily/run",
        {},
        "Will publish 1 event of the type day now, beside the times of daily. 0 subscriptions get it.",
        "daily has run: this is its event.",
        ("schedules.run", 1),
    ),
    (
        "/publish",
        {"type": "n", "source": "/test", "data": '{"n": 4}'},
        "Will publish 1 event of the type n. 1 subscription gets it: picky.",
        "Event 4 is published.",
        ("events.publish", 1),
    ),
]


@pytest.mark.parametrize(("path", "form", "question", "said", "entry"), ACTS, ids=[each[0] for each in ACTS])
async def test_an_action_asks_first_and_is_done_once(
    shop: Browser, path: str, form: dict[str, str], question: str, said: str, entry: tuple[str, int]
) -> None:
    assert await asked(shop, path, **form) == question
    assert await entries(shop) == []
    assert await done(shop, path, **form) == said
    assert await entries(shop) == [("dashboard:ops", *entry)]
    page = (await shop("/dashboard/audit")).body.decode()
    assert entry[0] in page
    assert "dashboard:ops" in page


async def test_a_question_passes_the_form_on_as_it_is(shop: Browser) -> None:
    given = {"type": "n", "source": "/'s&", "data": '{"n":\r\n "\u202e"}'}
    answer = await shop("/dashboard/publish", {"csrf": await shop.csrf(), **given})
    kept = re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', answer.body.decode())
    assert {name: unescape(value) for name, value in kept}.items() >= given.items()


async def test_the_form_comes_again_with_what_was_in_it_to_be_mended_or_changed(shop: Browser) -> None:
    given = {"type": "n", "source": "/here", "subject": "s/1", "id": "7", "delay": "10m", "data": '{"n":\r\n 1,}'}
    for more, status in (({}, 400), ({"confirm": "yes"}, 400), ({"confirm": "yes", "edit": "yes"}, 200)):
        answer = await shop("/dashboard/publish", {"csrf": await shop.csrf(), **given, **more})
        text = answer.body.decode()
        assert answer.status == status
        assert ("data: no JSON" in text) == (status == 400)
        fields = dict(re.findall(r'<input name="(\w+)" value="([^"]*)"', text))
        assert fields == {name: given[name] for name in ("type", "source", "subject", "id", "delay")}
        assert unescape(re.findall(r"<textarea[^>]*>([^<]*)<", text)[0]) == given["data"]
    assert await entries(shop) == []


async def test_schedules_pause_and_resume(shop: Browser) -> None:
    assert (await asked(shop, "/schedules/daily/pause")).startswith("Nothing is published for daily until")
    assert await done(shop, "/schedules/daily/pause") == "daily is paused."
    assert await done(shop, "/schedules/daily/resume") == "daily is active."


async def test_what_there_is_nothing_of_offers_no_button(shop: Browser) -> None:
    assert await asked(shop, "/deliveries/cancel", subscription="picky") == "No delivery of picky waits or runs."
    answer = await shop("/dashboard/deliveries/cancel", {"csrf": await shop.csrf(), "subscription": "picky"})
    assert b"autofocus" not in answer.body  # the button that confirms


@pytest.mark.parametrize(
    ("path", "form", "status"),
    [
        ("/deliveries/2/picky/retry", {}, 409),
        ("/deliveries/1/nobody/retry", {}, 404),
        ("/events/2/cancel", {}, 409),
        ("/subscriptions/nobody/pause", {}, 404),
        ("/deliveries/retry", {"since": "yesterday"}, 400),
        ("/deliveries/retry", {"rate": "fast"}, 400),
        ("/publish", {"type": "n", "source": "/s", "data": "{"}, 400),
        ("/publish", {"type": "", "source": "/s"}, 400),
    ],
)
async def test_what_cannot_be_done_is_said_before_the_question(
    shop: Browser, path: str, form: dict[str, str], status: int
) -> None:
    answer = await shop(f"/dashboard{path}", {"csrf": await shop.csrf(), **form})
    assert answer.status == status
    assert await entries(shop) == []


async def test_nothing_is_done_without_the_scope_the_session_or_the_page(shop: Browser) -> None:
    reader = Browser(shop.runner)
    await reader.log_in(READ)
    for browser, form in (
        (reader, {"csrf": await reader.csrf()}),
        (shop, {}),
        (shop, {"csrf": await reader.csrf()}),
    ):
        for path, *_ in ACTS:
            answer = await browser(f"/dashboard{path}", {"confirm": "yes", **form})
            assert answer.status == 403
    foreign = await shop(
        "/dashboard/subscriptions/picky/pause",
        {"csrf": await shop.csrf(), "confirm": "yes"},
        sec_fetch_site="cross-site",
    )
    assert foreign.status == 403
    assert await entries(shop) == []
    assert b"formaction" not in (await reader("/dashboard/dead-letters")).body
    assert b'action="/dashboard/deliveries/retry"' not in (await reader("/dashboard/dead-letters")).body


async def test_a_test_event_takes_the_scope_publish_or_admin(shop: Browser) -> None:
    form = {"type": "n", "source": "/test", "data": '{"n": 4}'}
    reader = Browser(shop.runner)
    await reader.log_in(READ)
    for more in ({}, {"confirm": "yes"}):
        answer = await reader("/dashboard/publish", {"csrf": await reader.csrf(), **form, **more})
        assert answer.status == 403
        assert b"does not have the scope admin or publish" in answer.body
    for path in ("/", "/dashboard/publish", "/dashboard/events?type=x"):
        assert b'href="/dashboard/publish"' not in (await reader(path)).body
        assert b'action="/dashboard/publish"' not in (await reader(path)).body
    assert await entries(shop) == []

    boss = Browser(shop.runner)
    await boss.log_in(BOSS)
    assert b'href="/dashboard/publish"' in (await boss("/")).body
    assert await done(boss, "/publish", **form) == "Event 4 is published."

    clerk = Browser(shop.runner)
    await clerk.log_in(CLERK)
    assert b'href="/dashboard/publish"' in (await clerk("/")).body
    answer = await clerk("/dashboard/subscriptions/picky/pause", {"csrf": await clerk.csrf(), "confirm": "yes"})
    assert answer.status == 403
    assert await done(clerk, "/publish", **form) == "Event 5 is published."
    assert await entries(shop) == [("dashboard:clerk", "events.publish", 1), ("dashboard:boss", "events.publish", 1)]


async def test_a_token_that_may_only_publish_does_not_speak_for_the_bus(shop: Browser) -> None:
    clerk = Browser(shop.runner)
    await clerk.log_in(CLERK)
    form = {"csrf": await clerk.csrf(), "type": "day", "source": f"{SOURCES}daily", "id": "of a tick to come"}
    for more in ({}, {"confirm": "yes"}):
        answer = await clerk("/dashboard/publish", {**form, **more})
        assert answer.status == 403
        assert b"the bus&#39;s own" in answer.body
    assert await entries(shop) == []
