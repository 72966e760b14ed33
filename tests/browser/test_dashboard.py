"""The dashboard in a real browser, as a person meets it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.http import ask
from tests.support.process import RunnerProcess

from .conftest import Tab, open_tab, until

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser

TOKEN, READER = (f"evb_{letter * 43}" for letter in "tr")
LONG = f"a-name-{'that-is-long-' * 3}as-long-as-may-be"
SHOP = """\
from pathlib import Path

from runner import Rejected

MENDED = Path(__file__).with_name("mended")


def crm(event):
    if event.type == "order.created" and not MENDED.exists():
        return Rejected("unknown customer 4711: the CRM knows no such number")


def mail(event):
    if event.type == "order.created" and not MENDED.exists():
        raise ConnectionError("mail.internal refuses connections")


def bill(event):
    pass
"""
FILE = f"""\
deployment_id: shop
storage: {{dsn: "sqlite:///runner.db"}}
sinks: {{crm: {{python: "shop:crm"}}, mail: {{python: "shop:mail"}}, bill: {{python: "shop:bill"}}}}
subscriptions:
  - {{name: orders-to-crm, types: ["order.*"], sink: crm}}
  - {{name: mails, types: ["order.*", "customer.*"], sink: mail, retry: {{delay: 1h}}}}
  - {{name: billing, types: ["order.*"], sink: bill}}
  - {{name: {LONG}, types: ["long.*"], sink: bill}}
schedules:
  - {{name: nightly, cron: "0 2 * * *", timezone: Europe/Paris, event: {{type: report.due}}}}
api:
  listen: "127.0.0.1:0"
  tokens:
    - {{name: ops, secret: {TOKEN}, scopes: [read, admin, publish]}}
    - {{name: eve, secret: {READER}, scopes: [read]}}
log: {{format: json}}
"""


class Shop:
    """A runner whose CRM refuses orders until it is mended."""

    def __init__(self, directory: Path, more: str = "") -> None:
        self.directory = directory
        (directory / "shop.py").write_text(SHOP)
        (directory / "runner.yaml").write_text(FILE.replace("schedules:", f"{more}schedules:"))
        self.process = RunnerProcess("start", env={"RUNNER_CONFIG": "runner.yaml"}, cwd=directory)
        found = re.search(r"http://127\.0\.0\.1:\d+", self.process.wait_for_line("listening"))
        assert found
        self.address = found[0]
        self.process.wait_for_line('"started"')

    def publish(self, type: str, id: str, data: str) -> None:
        event = f'{{"specversion": "1.0", "type": "{type}", "source": "/shop", "id": "{id}", "data": {data}}}'
        headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/cloudevents+json"}
        assert ask(self.address, "/events", method="POST", headers=headers, body=event.encode()).status == 202

    def dead(self) -> int:
        headers = {"authorization": f"Bearer {TOKEN}"}
        return len(ask(self.address, "/deliveries?state=dead", headers=headers).json["items"])

    def mend(self) -> None:
        (self.directory / "mended").touch()


@pytest.fixture
def shop(tmp_path: Path, chromium: Browser) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    for number in range(4):
        shop.publish("order.created", f"order-{number}", f'{{"number": {number}, "customer": 4711}}')
        shop.publish("customer.changed", f"customer-{number}", "{}")
    until(lambda: shop.dead() == 4)
    yield shop
    assert shop.process.stop() == 0


@pytest.fixture
def tab(shop: Shop, chromium: Browser) -> Iterator[Tab]:
    tab = open_tab(chromium, shop.address)
    tab.log_in(TOKEN)
    yield tab
    tab.page.context.close()
    assert tab.faults == []


def test_from_a_failing_subscription_to_a_delivery_that_succeeds(shop: Shop, tab: Tab) -> None:
    page = tab.page
    page.get_by_role("link", name="Subscriptions").click()
    row = page.get_by_role("row").filter(has_text="orders-to-crm")
    row.get_by_role("link", name="4").click()
    page.get_by_role("link", name="order.created").first.click()
    page.get_by_text("unknown customer 4711").first.wait_for()
    shop.mend()
    page.get_by_role("button", name="Retry").click()
    page.get_by_text("Will retry 1 delivery, of event").wait_for()
    page.get_by_role("button", name="Retry it").click()
    page.get_by_role("status").get_by_text("is due again").wait_for()

    page.locator("article .state.good").get_by_text("delivered").wait_for()  # without a reload
    assert shop.dead() == 3
    page.get_by_role("link", name="Dead letters").click()
    page.get_by_role("button", name="Retry all").click()
    page.get_by_text("Will retry 3 deliveries").wait_for()
    page.get_by_role("button", name="Retry 3 deliveries").click()
    page.get_by_role("status").get_by_text("3 deliveries are due again").wait_for()
    until(lambda: shop.dead() == 0)
    page.get_by_role("link", name="Audit log").click()
    written = page.get_by_role("row").filter(has_text="dashboard:ops")
    written.nth(1).wait_for()
    assert written.count() == 2


def test_a_test_event_is_published_and_arrives_live(shop: Shop, tab: Tab) -> None:
    page = tab.page
    watching = Tab(page.context.new_page(), shop.address)
    watching.open("/dashboard/events?type=order.paid")
    watching.page.get_by_text("No event fits.").wait_for()
    page.get_by_role("link", name="Publish").click()
    page.get_by_label("Type").fill("order.paid")
    page.get_by_label("Data").fill('{"number": 12345678901234567890123,\n "paid": true}')
    page.get_by_role("button", name="Check").click()
    page.get_by_text("3 subscriptions get it: billing, mails, orders-to-crm").wait_for()
    page.get_by_role("button", name="Publish it").click()
    page.get_by_role("status").get_by_text("is published").wait_for()
    assert "12345678901234567890123" in page.locator("pre.data").inner_text()
    page.locator("article .state.good").nth(2).wait_for()  # all three have it
    watching.page.bring_to_front()
    watching.page.get_by_role("row").filter(has_text="order.paid").get_by_text("3 delivered").wait_for()
    assert watching.faults == []


def test_a_deployment_of_400_subscriptions_stays_usable(
    tmp_path: Path, chromium: Browser, pictures: Path | None
) -> None:
    many = "".join(f'  - {{name: tenant-{number:03}, types: ["t{number}.*"], sink: bill}}\n' for number in range(400))
    shop = Shop(tmp_path, many)
    shop.publish("t123.created", "first", "{}")
    tab = open_tab(chromium, shop.address)
    tab.log_in(TOKEN)
    page = tab.page
    assert page.get_by_role("row").count() < 100  # the overview shows those that need a look
    page.get_by_role("link", name="Subscriptions").click()
    page.get_by_role("row").nth(400).wait_for()
    tab.keep(pictures, "subscriptions-many-desktop-light")
    page.get_by_label("Name has").fill("tenant-123")
    page.get_by_role("button", name="Show").click()
    page.get_by_role("link", name="tenant-123").click()
    page.get_by_role("heading", name="tenant-123").wait_for()
    assert tab.overflow() == 0
    assert tab.faults == []
    page.context.close()
    assert shop.process.stop() == 0


PAGES = {
    "overview": "/",
    "subscriptions": "/dashboard/subscriptions",
    "subscription": "/dashboard/subscriptions/orders-to-crm",
    "events": "/dashboard/events",
    "event": "/dashboard/events/1",
    "delivery": "/dashboard/deliveries/1/orders-to-crm",
    "deliveries": "/dashboard/deliveries?state=pending",
    "dead-letters": "/dashboard/dead-letters",
    "schedules": "/dashboard/schedules",
    "schedule": "/dashboard/schedules/nightly",
    "trace": "/dashboard/traces/1",
    "audit": "/dashboard/audit",
    "publish": "/dashboard/publish",
}
"""Every page; a test holds that none is missing."""

ASIDE = {
    "nothing-found": "/dashboard/events?type=nobody.sends",
    "subscription-long": f"/dashboard/subscriptions/{LONG}",
    "event-long": "/dashboard/events/9",
    "login": "/dashboard/login",
}
"""Pages as they look where there is nothing, or too much."""

LOOKS = (("desktop", "light"), ("desktop", "dark"), ("phone", "light"))
FEWER = LOOKS[1:]  # of what is made of the same parts as other pages
COLORS = ("color-contrast",)  # the only rules of axe-core that depend on the theme


def ask_to_retry(tab: Tab) -> None:
    """Ask to retry all dead letters, without doing it."""
    tab.open(PAGES["dead-letters"])
    tab.page.get_by_role("button", name="Retry all").click()
    tab.page.get_by_text("Will retry").wait_for()


def publish_wrongly(tab: Tab) -> None:
    """Send a form with a fault in it."""
    tab.open(PAGES["publish"])
    tab.page.get_by_label("Type").fill("order.paid")
    tab.page.get_by_label("Data").fill('{"number": 4711,}')
    tab.page.get_by_role("button", name="Check").click()
    tab.page.get_by_role("alert").wait_for()


Looks = Sequence[tuple[str, str]]


def look_from_all_sides(tab: Tab, name: str, pictures: Path | None, looks: Looks = FEWER) -> list[str]:
    """Return what is wrong with the page at each size and in each theme, by one load of it."""
    found = []
    for size, theme in looks:
        tab.look(size, theme)
        faults = tab.barriers(*(COLORS if theme == "dark" else ()))
        if wide := tab.overflow():
            faults.append(f"{wide} pixels wider than the window")
        if size == "phone" and theme == "light":
            faults += tab.too_small()
        found += [f"{name} {size} {theme}: {each}" for each in faults]
        tab.keep(pictures, f"{name}-{size}-{theme}")
    return found


@pytest.mark.timeout(1200)  # some sixty looks at pages, each a second of CPU on a machine with much else to do
def test_every_page_is_readable_for_everybody_in_both_themes_and_on_a_phone(
    shop: Shop, tab: Tab, chromium: Browser, pictures: Path | None
) -> None:
    shop.publish(f"long.{'type' * 20}", "id" * 60, f'{{"text": "{"x" * 3000}"}}')
    found: list[str] = []
    for name, path in {**PAGES, **ASIDE}.items():
        tab.open(path)
        found += look_from_all_sides(tab, name, pictures, LOOKS if name in PAGES else FEWER)
    tab.open("/dashboard/events/4711", status=404)
    found += look_from_all_sides(tab, "fault", pictures)
    ask_to_retry(tab)
    found += look_from_all_sides(tab, "question", pictures)
    with tab.expecting(400):
        publish_wrongly(tab)
    found += look_from_all_sides(tab, "publish-fault", pictures)

    reader = open_tab(chromium, shop.address)
    reader.log_in(READER)
    for name in ("dead-letters", "publish"):
        reader.open(PAGES[name])
        assert reader.page.get_by_role("main").get_by_role("button", name=re.compile("Retry|Check")).count() == 0
        found += look_from_all_sides(reader, f"{name}-reader", pictures)
    assert found + reader.faults == []
    reader.page.context.close()


def test_no_page_is_left_out() -> None:
    from runner.dashboard.site import PAGES as KNOWN

    shown = {"/" if path == "/" else re.sub(r"^/dashboard|[?].*", "", path) for path in PAGES.values()}
    for page in KNOWN:
        pattern = re.sub(r"\\{\w+(:\w+)?\\}", ".+", re.escape(page.path))
        assert any(re.fullmatch(pattern, path) for path in shown), page.path
