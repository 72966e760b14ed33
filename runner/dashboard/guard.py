"""The guard: admits visitors, and checks that a form comes from a page of the dashboard."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..api.access import Anybody, Caller, is_foreign
from ..api.problems import Problem
from ..api.tokens import TokenCaller, Tokens
from .session import Session, open_cookie, seal_cookie

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import HTTPConnection
    from starlette.responses import Response

    from ..api.surface import Surface
    from ..config.api import TokenEntry

__all__ = ["CSRF", "PUBLISHING", "Guard", "LoginNeeded", "Visitor"]

CSRF = "csrf"
"""The field of a form that says which session it was made for."""

PUBLISHING = frozenset(("publish", "admin"))
"""The scopes of which a token needs one to publish a test event."""

_ALL = frozenset(("read", "admin", "publish"))


class LoginNeeded(Exception):
    """The visitor has to log in first."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """
    A person who looks at a page.

    Attributes:
        caller: the token as the API knows it.
        scopes: that the token has.
        nonce: of the session, secret.
        logged_in: whether there is a session to end.
        cookie: to be set with the answer; None for none.
    """

    caller: Caller
    scopes: frozenset[str]
    nonce: str
    logged_in: bool
    cookie: str | None = None

    @property
    def name(self) -> str:
        """The name of the token."""
        return self.caller.name

    @property
    def acts(self) -> bool:
        """Whether the visitor may change anything."""
        return "admin" in self.scopes

    @property
    def publishes(self) -> bool:
        """Whether the visitor may publish a test event, which is one of the acts of `admin`."""
        return not self.scopes.isdisjoint(PUBLISHING)

    @property
    def rights(self) -> str:
        """The rights of the token, in words."""
        named = {"read": "look", "admin": "act", "publish": "publish"}
        *others, last = [words for scope, words in named.items() if scope in self.scopes]
        return f"may {', '.join(others)} and {last}" if others else f"may {last}"

    def unnamed(self) -> Visitor:
        """Return any visitor who is shown the same."""
        return replace(self, caller=Anybody(), nonce="", logged_in=False, cookie=None)

    @property
    def csrf(self) -> str:
        """The value of the field `CSRF` in the forms of this visitor."""
        return hmac.digest(self.nonce.encode(), b"form", "sha256").hex()


class Guard:
    """
    Admit visitors: by the session of a token with the scope `read`, or everybody if the API has no tokens.

    The token is checked at each request, so a session ends with its token.
    """

    def __init__(self, surface: Surface) -> None:
        self._surface = surface
        self.cookie = f"runner-{surface.deployment_id}"

    def visitor(self, request: HTTPConnection) -> Visitor:
        """Return the visitor. Raise `LoginNeeded`."""
        access, cookie = self._surface.access, request.cookies.get(self.cookie, "")
        if not isinstance(access, Tokens):
            new = not _is_nonce(cookie)
            nonce = secrets.token_hex(16) if new else cookie
            return Visitor(access.admit(request, "read"), _ALL, nonce, False, nonce if new else None)
        session = open_cookie(cookie, access.live(), self._surface.deployment_id)
        if session is None or not _sees(session.entry):
            raise LoginNeeded
        return _visitor(session)

    def log_in(self, request: HTTPConnection, token: str) -> str:
        """Return the cookie of a new session. Raise a `Problem`: 401, 403, or 429 after too many failures."""
        access = self._surface.access
        if not isinstance(access, Tokens):
            return secrets.token_hex(16)
        entry = access.check(token.encode(), request)
        if not _sees(entry):
            raise Problem(403, "forbidden", "this token does not allow it: the scope read, without types or attributes")
        made = seal_cookie(token, access.live(), self._surface.deployment_id)
        if made is None:
            raise Problem(401, "unauthorized")  # it has ended since
        return made[1]

    def check_origin(self, request: HTTPConnection) -> None:
        """Raise a `Problem` of status 403 for a form that a page of another origin sends."""
        if is_foreign(request):
            raise Problem(403, "forbidden", "this form came from a page of another origin")

    def check_form(self, request: HTTPConnection, visitor: Visitor, form: Mapping[str, str]) -> None:
        """Raise a `Problem` of status 403 for a form that was not made for this session, or by another origin."""
        self.check_origin(request)
        if not hmac.compare_digest(form.get(CSRF, "").encode(), visitor.csrf.encode()):
            raise Problem(403, "forbidden", "this form is of another session; load its page again")

    def keep(self, request: HTTPConnection, response: Response, cookie: str | None) -> None:
        """Have the browser keep a cookie with the answer, where there is one; an empty one ends the session."""
        if cookie is None:
            return
        response.set_cookie(
            self.cookie,
            cookie,
            max_age=None if cookie else 0,
            path=request.scope.get("root_path") or "/",
            secure=_is_secure(request),
            httponly=True,
            samesite="strict",
        )


def _visitor(session: Session) -> Visitor:
    return Visitor(TokenCaller(session.entry), frozenset(session.entry.scopes), session.nonce, True)


def _sees(entry: TokenEntry) -> bool:
    return "read" in entry.scopes and not TokenCaller(entry).bound


def _is_nonce(cookie: str) -> bool:
    return len(cookie) == 32 and all(each in "0123456789abcdef" for each in cookie)


def _is_secure(request: HTTPConnection) -> bool:
    """Return whether the browser is connected by TLS, as far as it or a proxy says so."""
    said: Sequence[str | None] = (
        request.scope.get("scheme"),
        request.headers.get("x-forwarded-proto"),
        (request.headers.get("origin") or "").partition(":")[0],
    )
    return "https" in said
