"""Pages: templates rendered as answers, with a policy that allows no foreign scripts."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from ..api.problems import Problem
from ..diagnosis.figures import number
from ..service.version import __version__
from . import wording

__all__ = ["BASE", "HEADERS", "Urls", "page", "rendered", "static"]

BASE = "/dashboard"
"""Everything but the overview is below it, where no path of the API is."""

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}

_STATIC = Path(__file__).parent / "static"
_FILES = {"dashboard.css": "text/css", "dashboard.js": "text/javascript", "icon.svg": "image/svg+xml"}


class Urls:
    """The addresses of pages, below the path under which a proxy or a program shows the bus."""

    def __init__(self, root: str) -> None:
        self.root = root

    def __call__(self, *parts: object, **query: object) -> str:
        """Return the address of a page: its path in parts, and a query of those values that are set."""
        path = "".join(f"/{quote(str(part), safe='')}" for part in parts)
        given = "&".join(
            f"{name}={quote(str(value), safe='')}" for name, value in query.items() if value not in (None, "")
        )
        return (f"{self.root}{BASE}{path}" if parts else f"{self.root}/") + (f"?{given}" if given else "")

    def file(self, name: str) -> str:
        """Return the address of a static file, which changes with what is in it."""
        return f"{self.root}{BASE}/static/{name}?v={_digest(name)}"


@cache
def _content(name: str) -> bytes:
    return (_STATIC / name).read_bytes()


@cache
def _digest(name: str) -> str:
    return sha256(_content(name)).hexdigest()[:12]


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("runner.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: wording.visible(value) if type(value) is str else value,
    )
    for name in ("ago", "commands", "count", "duration", "moment", "percent", "rate", "size"):
        made.filters[name] = getattr(wording, name)
    made.filters["depth"] = number
    made.globals["version"] = __version__
    return made


def rendered(template: str, **context: Any) -> str:
    """Return a template as HTML; everything that is put into it is escaped."""
    return _environment().get_template(template).render(context)


def page(template: str, status: int = 200, **context: Any) -> Response:
    """Return a template as an answer."""
    return HTMLResponse(rendered(template, **context), status, headers=HEADERS)


def static(name: str, *, fresh: bool) -> Response:
    """Return a static file; where the address has its digest, browsers may keep it for ever. Raise a `Problem`."""
    if name not in _FILES:
        raise Problem(404, "no-such-path")
    kept = "no-cache" if fresh else "public, max-age=31536000, immutable"
    return Response(_content(name), media_type=_FILES[name], headers={**HEADERS, "cache-control": kept})
