"""Access: who may call what. The seam that the routes ask, and its two plainest forms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from typing_extensions import override

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

    from ..event import Event

__all__ = ["Access", "Anybody", "Caller", "Need"]

Need = Literal["publish", "read", "events", "subscribe", "admin"]
"""The need of a route; `events` is to read events, of which a caller may see only some."""


class Caller(Protocol):
    """One who was admitted."""

    @property
    def name(self) -> str:
        """The name, for the log and for `paused_by`."""

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
    """Admits everyone: where only this machine can connect, and the file has no tokens."""

    @property
    @override
    def name(self) -> str:
        return "anybody"

    @override
    def admit(self, request: HTTPConnection, need: Need) -> Caller:
        return self

    @override
    def admitted(self, event: Event) -> Event:
        return event

    @override
    def sees(self, event: Event) -> bool:
        return True
