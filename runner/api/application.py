"""The application: every route behind the Host allow-list, and every error as a problem."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Match, Route, Router

from ..service.vitals import Phase
from . import (
    audit_records,
    delivery_records,
    event_records,
    health,
    metrics,
    openapi,
    publishing,
    registry_records,
    reloading,
    stream,
)
from .bodies import ClientGone, refuse
from .hosts import HostGuard
from .problems import Problem, problem_of, problem_response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Collection, Sequence

    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from ..service.vitals import Vitals
    from .surface import Surface

__all__ = ["create"]

ENDPOINTS = (
    *delivery_records.ENDPOINTS,
    *registry_records.ENDPOINTS,
    *event_records.ENDPOINTS,
    *audit_records.ENDPOINTS,
    *reloading.ENDPOINTS,
)

log = structlog.get_logger(__name__)


def create(surface: Surface, pages: Sequence[BaseRoute] = ()) -> ASGIApp:
    """Return the ASGI application of one runner; `pages` are the routes for people."""
    publish = publishing.route(surface)
    routes = [
        publish,
        *health.routes(surface),
        *metrics.routes(surface),
        *stream.routes(surface),
        *[each.route(surface) for each in ENDPOINTS],
        *openapi.routes(surface, ENDPOINTS),
        *pages,
    ]
    router = Shortcut(publishing.PATH, publishing.METHODS, publish.app, Router(routes, redirect_slashes=False))
    inner = ProblemAnswers(router, routes, surface.vitals)
    return RootPath(HostGuard(inner, surface.options), surface.options.root_path)


class ProblemAnswers:
    """Answer every error as a problem; the text of an unexpected one may carry a payload, and is not shown."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute], vitals: Vitals) -> None:
        self._app = app
        self._routes = routes
        self._vitals = vitals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        # so that the router raises for an unknown path, instead of answering in plain text
        scope.setdefault("app", self)
        try:
            if "\0" in scope["path"]:
                raise Problem(404, "not-found", "no name has a NUL")  # PostgreSQL refuses it as a parameter
            await self._app(scope, receive, sending)
        except ClientGone:
            return  # the client is gone
        except Exception as error:
            problem = problem_of(error, starting=self._vitals.phase is Phase.STARTING)
            if isinstance(error, HTTPException) and error.status_code == 405:
                # of all routes of the path, not of the first alone
                problem.headers = {"allow": ", ".join(self._methods(scope))}
            if problem.status == 500 or started:
                log.error("request failed", path=Request(scope).url.path, error=type(error).__name__)
            if started:
                return  # the server closes the connection in the middle of the answer
            if problem.headers.get("connection") == "close":
                await refuse(problem, receive, send)
            else:
                await problem_response(problem)(scope, receive, send)

    def _methods(self, scope: Scope) -> list[str]:
        """Return the methods of a path, over all of its routes (RFC 9110 §10.2.1)."""
        found = [each for each in self._routes if isinstance(each, Route) and each.matches(scope)[0] is not Match.NONE]
        return sorted({method for each in found for method in each.methods or ()})


class Shortcut:
    """Take requests for one path past the router, which costs more than the rest of the way of most of them."""

    def __init__(self, path: str, methods: Collection[str], app: ASGIApp, router: ASGIApp) -> None:
        """Args: app handles requests with `methods` for `path`, as the router would have it."""
        self._path = path
        self._methods = methods
        self._app = app
        self._router = router

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Handle one request."""
        ours = scope["type"] == "http" and scope["path"] == self._path and scope["method"] in self._methods
        if ours and not scope.get("root_path"):
            return self._app(scope, receive, send)
        return self._router(scope, receive, send)


class RootPath:
    """Take requests under the path of a proxy, whether it cuts that path off or not (`api.root_path`)."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Handle one request."""
        root = self._root_path
        # otherwise a program has mounted this application
        if root and scope["type"] == "http" and not scope.get("root_path"):
            path = scope["path"]
            if path != root and not path.startswith(f"{root}/"):
                path = root + path
            scope = {**scope, "root_path": root, "path": path}
        return self._app(scope, receive, send)
