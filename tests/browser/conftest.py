"""A Chromium, the pages it opens, and what it may not do on them."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.eventually import PATIENCE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
CURE = "`make browser` installs it"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")  # its event loop runs until the end, and no test of another module could have one
def chromium() -> Iterator[Browser]:
    """The distribution's Chromium; without one the tests are skipped, and say so."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no Chromium on the path; {CURE}")
    playwright = pytest.importorskip("playwright.sync_api", reason=f"no playwright; {CURE}")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def pictures() -> Path | None:
    """The directory for pictures of the pages, `$PICTURES`; None where nobody wants any, for they take their time."""
    if "PICTURES" not in os.environ:
        return None
    directory = Path(os.environ["PICTURES"])
    directory.mkdir(parents=True, exist_ok=True)
    return directory


_SMALL = """() => [...document.querySelectorAll("button, .button, input:not([type=hidden]), select, nav a")]
  .filter(each => each.offsetParent && each.getBoundingClientRect().height < 24 && each.type !== "checkbox")
  .map(each => `${Math.round(each.getBoundingClientRect().height)} pixels high: ${each.outerHTML.slice(0, 120)}`)"""


def until(check: Callable[[], object]) -> None:
    """Wait until `check` returns something true."""
    deadline = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < deadline, "not so in time"
        time.sleep(0.1)


class Tab:
    """A tab of a browser: whatever goes wrong in it fails the test at the end."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.address = address
        self.faults: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", self._on_request)

    def _on_console(self, said: Any) -> None:
        if said.type in ("error", "warning"):
            self.faults.append(said.text)

    def _on_request(self, request: Any) -> None:
        if not request.url.startswith((f"{self.address}/", "data:")):
            self.faults.append(f"a request to {request.url}")

    def open(self, path: str, status: int = 200) -> None:
        """Open a path of the dashboard, which answers with a status."""
        with self.expecting(status) if status != 200 else contextlib.nullcontext():
            answer = self.page.goto(self.address + path)
        assert answer is not None
        assert answer.status == status, (path, answer.status)

    @contextlib.contextmanager
    def expecting(self, status: int) -> Iterator[None]:
        """Expect an answer with a status that the browser complains of."""
        before = len(self.faults)
        yield
        until(lambda: len(self.faults) > before or self.page.evaluate("0"))
        assert [f"status of {status}" in each for each in self.faults[before:]] == [True]
        del self.faults[before:]

    def look(self, size: str, theme: str) -> None:
        """Show the page that is open at a size and in a theme."""
        width, height = SIZES[size]
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.emulate_media(color_scheme=theme)

    def log_in(self, token: str) -> None:
        """Log in as a person does."""
        self.open("/dashboard/login")
        self.page.get_by_label("Token").fill(token)
        self.page.get_by_role("button", name="Log in").click()
        self.page.wait_for_url(f"{self.address}/")

    def barriers(self, *rules: str) -> list[str]:
        """
        Return what axe-core finds on the page that is serious or worse.

        Args:
            rules: only these; all without any.
        """
        if not self.page.evaluate("'axe' in window"):
            axe = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
            self.page.evaluate(axe)  # by the debugger, so that the page's own policy stays as it is
        options: dict[str, Any] = {"resultTypes": ["violations"]}
        if rules:
            options["runOnly"] = {"type": "rule", "values": list(rules)}
        found = self.page.evaluate("options => axe.run(options)", options)
        return [
            f"{each['id']}: {node['html'][:160]}"
            for each in found["violations"]
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]

    def keep(self, pictures: Path | None, name: str) -> None:
        """Keep a picture of the whole page, where somebody wants some."""
        if pictures is not None:
            self.page.screenshot(path=pictures / f"{name}.png", full_page=True)

    def too_small(self) -> list[str]:
        """Return the controls outside of text that a finger misses: lower than 24 pixels (WCAG 2.2, 2.5.8)."""
        found: list[str] = self.page.evaluate(_SMALL)
        return found

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than its window."""
        width: int = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return width


def open_tab(browser: Browser, address: str, size: str = "desktop", theme: str = "light", **options: Any) -> Tab:
    """Return a new tab, in a profile of its own."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=theme,
        reduced_motion="reduce",
        **options,
    )
    context.set_default_timeout(120_000)
    return Tab(context.new_page(), address)
