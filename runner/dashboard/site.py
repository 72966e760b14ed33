"""The site: every page behind the guard, and every error as a page."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote

import structlog
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from ..api.bodies import Bodies, ClientGone
from ..api.problems import Problem, problem_of
from ..service.vitals import Phase
from . import (
    audit,
    deliveries,
    delivery_actions,
    events,
    overview,
    publishing,
    registry_actions,
    schedules,
    subscriptions,
    traces,
)
from .actions import Act, Action, Outcome
from .glances import Glances
from .guard import Guard, LoginNeeded, Visitor
from .live import Live
from .pages import BASE, HEADERS, Urls, page, static
from .view import Page, Query, View

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.routing import BaseRoute

    from ..api.surface import Surface

__all__ = ["PAGES", "Site", "routes"]

log = structlog.get_logger(__name__)

PAGES: tuple[Page, ...] = (
    *overview.PAGES,
    *subscriptions.PAGES,
    *events.PAGES,
    *deliveries.PAGES,
    *schedules.PAGES,
    *traces.PAGES,
    *audit.PAGES,
    *publishing.PAGES,
)

ACTIONS: tuple[Action, ...] = (*delivery_actions.ACTIONS, *registry_actions.ACTIONS, *publishing.ACTIONS)

_NOTICE = "runner-notice"  # the cookie that carries what was done to the next page
_FIELDS = 100  # of a form
_STREAM = {**HEADERS, "x-accel-buffering": "no"}

Handler = Callable[["Request"], Awaitable[Response]]


def routes(surface: Surface) -> Sequence[BaseRoute]:
    """Return the routes of the dashboard."""
    return Site(surface).routes()


class Site:
    """The pages of one runner."""

    def __init__(self, surface: Surface) -> None:
        """Show what `surface` has."""
        self._surface = surface
        self._guard = Guard(surface)
        self._glances = Glances(surface.storage)
        self._live = Live(surface.vitals.draining)
        self._bodies = Bodies(surface.options.limits.body)

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        fixed = [
            self._route("/static/{name}", self._static),
            self._route("/login", self._login),
            self._route("/login", self._log_in, method="POST"),
            self._route("/logout", self._log_out, method="POST"),
        ]
        acts = [self._route(each.path, self._acting(each), method="POST") for each in ACTIONS]
        live = [self._route(f"/live{each.path}", self._following(each)) for each in PAGES if each.parts]
        return [*fixed, *live, *acts, *[self._route(each.path, self._showing(each)) for each in PAGES]]

    def _route(self, path: str, handle: Handler, method: str = "GET") -> Route:
        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except ClientGone:
                raise
            except LoginNeeded:
                live = path.startswith("/live/")
                return self._fault(request, Problem(401, "unauthorized")) if live else self._to_login(request)
            except Exception as error:
                return self._fault(request, error)

        return Route("/" if path == "/" else BASE + path, answer, methods=[method])

    def _showing(self, shown: Page) -> Handler:
        async def show(request: Request) -> Response:
            visitor = self._guard.visitor(request)
            notice = unquote(request.cookies.get(_NOTICE, ""))
            view = View.of(request, self._surface, self._glances, visitor, shown.query, notice)
            if shown.parts and "before" not in view.query:
                view = replace(view, live=_live(request, view.url))
            context = view.context() | dict(await shown.look(view))
            answer = page(shown.template, **context)
            self._guard.keep(request, answer, visitor.cookie)
            if notice:
                answer.delete_cookie(_NOTICE, view.url.root or "/", httponly=True, samesite="strict")
            return answer

        return show

    def _following(self, shown: Page) -> Handler:
        async def follow(request: Request) -> Response:
            visitor = self._guard.visitor(request)
            self._live.check_room()
            everybody = visitor.unnamed()  # what is sent goes to all viewers of the same page
            view = View.of(request, self._surface, self._glances, everybody, shown.query, "")
            view = replace(view, streamed=True)
            asked = tuple(sorted(view.path.items())), tuple(sorted(view.query.items()))
            key = shown.path, *asked, view.url.root, visitor.scopes

            def admitted() -> bool:
                with contextlib.suppress(LoginNeeded, Problem):
                    return self._guard.visitor(request).scopes == visitor.scopes
                return False

            stream = self._live.stream(key, shown, view, admitted)
            return StreamingResponse(stream, headers=_STREAM, media_type="text/event-stream")

        return follow

    def _acting(self, action: Action) -> Handler:
        async def act(request: Request) -> Response:
            visitor = self._guard.visitor(request)
            form = await self._form(request)
            self._guard.check_form(request, visitor, form)
            if action.scopes.isdisjoint(visitor.scopes):
                needed = " or ".join(sorted(action.scopes))
                raise Problem(403, "forbidden", f"the token {visitor.name!r} does not have the scope {needed}")
            view = View.of(request, self._surface, self._glances, visitor, (), "")
            asked = Act(view=view, form=form)
            kept = {name: form[name] for name in action.fields if name in form}
            try:
                if action.again and form.get("edit"):
                    return page(action.again, **view.context() | {"query": Query(kept)})
                if action.ask is not None and not form.get("confirm"):
                    question = await action.ask(asked)
                    return page(
                        "question.html", **view.context(), question=question, action=request.url.path, kept=kept
                    )
                return self._done(await action.do(asked), view)
            except Exception as error:
                problem = problem_of(error)
                if not action.again or problem.status >= 500:
                    raise
                context = view.context() | {"query": Query(kept), "fault": problem.detail or problem.name}
                return page(action.again, problem.status, **context)

        return act

    def _done(self, outcome: Outcome, view: View) -> Response:
        answer = RedirectResponse(outcome.to, 303, headers=HEADERS)
        root = view.url.root or "/"
        answer.set_cookie(_NOTICE, quote(outcome.text), max_age=30, path=root, httponly=True, samesite="strict")
        return answer

    async def _form(self, request: Request) -> dict[str, str]:
        """Return the fields of a form. Raise a `Problem` for anything else."""
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
            raise Problem(415, "unsupported-media-type", "expected a form")
        content = await self._bodies.read(request.headers, request.receive)
        try:
            text = content.decode("ascii")
            return dict(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_FIELDS))
        except ValueError:
            raise Problem(400, "invalid-body", "expected a form in UTF-8") from None

    async def _static(self, request: Request) -> Response:
        return static(request.path_params["name"], fresh="v" not in request.query_params)

    async def _login(self, request: Request) -> Response:
        return self._login_page(request, request.query_params.get("next", ""))

    def _login_page(self, request: Request, after: str, status: int = 200, fault: str = "") -> Response:
        urls = Urls(request.scope.get("root_path") or "")
        context = {"deployment": self._surface.deployment_id, "url": urls, "after": after, "fault": fault}
        return page("login.html", status, **context)

    async def _log_in(self, request: Request) -> Response:
        form = await self._form(request)
        self._guard.check_origin(request)
        after = form.get("next", "")
        try:
            cookie = self._guard.log_in(request, form.get("token", "").strip())
        except Problem as problem:
            fault = _LOGIN_FAULTS.get(problem.status, problem.detail)
            answer = self._login_page(request, after, problem.status, fault)
            if "retry-after" in problem.headers:
                answer.headers["retry-after"] = problem.headers["retry-after"]
            return answer
        answer = RedirectResponse(_local(after, request) or Urls(_root(request))(), 303, headers=HEADERS)
        self._guard.keep(request, answer, cookie)
        return answer

    async def _log_out(self, request: Request) -> Response:
        visitor = self._guard.visitor(request)
        self._guard.check_form(request, visitor, await self._form(request))
        answer = RedirectResponse(Urls(_root(request))("login"), 303, headers=HEADERS)
        self._guard.keep(request, answer, "")
        return answer

    def _to_login(self, request: Request) -> Response:
        """Send a visitor to the form, and back afterwards."""
        urls = Urls(_root(request))
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        if request.headers.get("sec-fetch-site") == "cross-site" and request.method == "GET":
            # By a link of another site the cookie does not come along; from this page it does.
            return page("again.html", deployment=self._surface.deployment_id, url=urls, here=here)
        after = here if request.method == "GET" else ""
        return RedirectResponse(urls("login", next=after), 303, headers=HEADERS)

    def _fault(self, request: Request, error: Exception) -> Response:
        problem = problem_of(error, starting=self._surface.vitals.phase is Phase.STARTING)
        if problem.status == 500:
            log.error("request failed", path=request.url.path, error=type(error).__name__)
        urls = Urls(_root(request))
        visitor: Visitor | None = None
        with contextlib.suppress(LoginNeeded, Problem):
            visitor = self._guard.visitor(request)
        answer = page(
            "fault.html",
            problem.status,
            deployment=self._surface.deployment_id,
            url=urls,
            visitor=visitor,
            title=problem.name.replace("-", " "),
            detail=problem.detail,
            code=problem.status,
        )
        for name, value in problem.headers.items():
            answer.headers[name] = value
        return answer


_LOGIN_FAULTS = {
    401: "This token is unknown or has expired.",
    429: "Too many failed logins from this address. Wait a minute, then try again.",
}


def _live(request: Request, url: Urls) -> str:
    """Return the address of what changes on the page of a request."""
    path = request.url.path.removeprefix(url.root).removeprefix(BASE)
    query = request.url.query
    return f"{url.root}{BASE}/live{quote(path)}" + (f"?{query}" if query else "")


def _root(request: Request) -> str:
    return str(request.scope.get("root_path") or "")


def _local(after: str, request: Request) -> str | None:
    """Return an address of ours to go to; None for any other, which may be forged."""
    root = _root(request)
    inside = after.startswith(f"{root}{BASE}/") or after.partition("?")[0] == f"{root}/"
    if not inside or not after.isascii() or not after.isprintable() or "\\" in after or ".." in after:
        return None
    return None if after.startswith("//") else after
