"""Access: which callers may use which routes. The seam that routes ask, and its form without tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from typing_extensions import override

from .problems import Problem

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

    from ..event import Event

__all__ = ["Access", "Anybody", "Caller", "Need", "is_foreign"]

Need = Literal["publish", "read", "events", "subscribe", "admin"]
"""The need of a route; `events` is to read events, of which a caller may see only some."""

_SAFE = ("GET", "HEAD")
_SENT_BY_BROWSERS = frozenset({b"sec-fetch-site", b"origin"})


class Caller(Protocol):
    """A caller that was admitted."""

    @property
    def name(self) -> str:
        """The name, for the log and for `paused_by`."""

    @property
    def bound(self) -> bool:
        """Whether there may be events that this caller does not see."""

    @property
    def reads_all(self) -> bool:
        """Whether this caller may read everything: subscriptions and their filters, instances, deliveries."""

    def admitted(self, event: Event) -> Event:
        """Return the event as this caller publishes it. Raise a `Problem` of status 403 where it may not."""

    def sees(self, event: Event) -> bool:
        """Return whether this caller may read `event`."""


class Access(Protocol):
    """The seam that every route but the probes asks before it reads a body or does anything else."""

    def admit(self, request: HTTPConnection, need: Need) -> Caller:
        """
        Return the caller of a request.

        Raises:
            Problem: 401 without a token that is known and live, 403 for one that does not allow what is needed.
        """


class Anybody(Access, Caller):
    """
    Admits everyone: where only this machine can connect, and the file has no tokens.

    A browser on this machine can connect, too, so a page of another origin may neither read nor change anything.
    """

    @property
    @override
    def name(self) -> str:
        return "anybody"

    @property
    @override
    def bound(self) -> bool:
        return False

    @property
    @override
    def reads_all(self) -> bool:
        return True

    @override
    def admit(self, request: HTTPConnection, need: Need) -> Caller:
        if request.scope["method"] not in _SAFE and is_foreign(request):
            raise Problem(403, "forbidden", "a page of another origin changes nothing here without a token")
        return self

    @override
    def admitted(self, event: Event) -> Event:
        return event

    @override
    def sees(self, event: Event) -> bool:
        return True


def is_foreign(request: HTTPConnection) -> bool:
    """Return whether a browser says that a page of another origin sends this (Fetch Metadata; RFC 6454 §7)."""
    if _SENT_BY_BROWSERS.isdisjoint([name for name, _ in request.scope["headers"]]):
        return False
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is not None and origin.partition("://")[2].lower() != request.headers.get("host", "").lower()
