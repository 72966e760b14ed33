"""Views: a page that is looked at, and all that is made of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..api.parameters import parameters
from ..service.clock import utcnow
from .guard import CSRF
from .pages import Urls

if TYPE_CHECKING:
    from datetime import datetime

    from starlette.requests import Request

    from ..api.surface import Surface
    from .glances import Glances
    from .guard import Visitor

__all__ = ["Page", "Query", "View"]


class Query(dict[str, str]):
    """The parameters of a page; one that is not set is empty."""

    def __missing__(self, name: str) -> str:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """
    One look at a page.

    Attributes:
        query: the parameters that are set.
        now: the clock of this process, for relative times.
        streamed: whether it is for those who follow the page, not for one who opens it.
        live: the address of what changes on the page; empty where nothing does.
    """

    surface: Surface
    glances: Glances
    visitor: Visitor
    url: Urls
    path: Mapping[str, Any]
    query: Query = field(default_factory=Query)
    now: datetime = field(default_factory=utcnow)
    notice: str = ""
    live: str = ""
    streamed: bool = False

    @classmethod
    def of(
        cls, request: Request, surface: Surface, glances: Glances, visitor: Visitor, known: tuple[str, ...], notice: str
    ) -> View:
        """Return the view of a request; raise a `Problem` for a parameter that is not known."""
        given = parameters(request.scope["query_string"], known)
        return cls(
            surface=surface,
            glances=glances,
            visitor=visitor,
            url=Urls(request.scope.get("root_path") or ""),
            path=request.path_params,
            query=Query((name, value.strip()) for name, [value] in given.items() if value.strip()),
            notice=notice,
        )

    def context(self) -> dict[str, Any]:
        """Return what every template is given."""
        return {
            "deployment": self.surface.deployment_id,
            "visitor": self.visitor,
            "url": self.url,
            "now": self.now,
            "csrf_field": CSRF,
            "csrf": self.visitor.csrf,
            "notice": self.notice,
            "live": self.live,
            "query": self.query,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """
    A page.

    Attributes:
        path: of its route; what follows `BASE`, or `/` alone.
        template: made with what `look` returns.
        look: reads what is on it. Raise `NotFound`, or a `Problem`.
        query: the parameters that it knows.
        parts: templates of the elements, by their ids, that change while the page is open.
    """

    path: str
    template: str
    look: Callable[[View], Awaitable[Mapping[str, Any]]]
    query: tuple[str, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)
