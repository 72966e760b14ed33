"""
An exchange: a request that has come whole, and its answer in one piece.

ASGI passes bodies and answers in messages, which may be many, each awaited. Our own listener offers this beside it, as
an extension of the scope; where another server runs the application, there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast
from weakref import ref

if TYPE_CHECKING:
    from starlette.types import Scope
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

__all__ = ["Exchange", "exchange_of", "offer"]

_NAME = "runner.exchange"


class Exchange:
    """
    One request of a connection of ours, and the answer to it.

    It is a part of the scope, which the request holds, and so keeps no hold of the request itself.
    """

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = ref(cycle)

    def body(self) -> bytes | None:
        """Return the body if all of it has come; None where it must be received."""
        cycle = self._cycle()
        if cycle is None or cycle.more_body or cycle.disconnected:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        return body

    def answer(self, head: bytes, body: bytes) -> bool:
        """
        Send the whole answer; return whether that was possible, or else it must be sent in messages.

        Args:
            head: the status line, and the lines of all headers but those of the server, each with its end.
        """
        cycle = self._cycle()
        if cycle is None or cycle.response_started or cycle.disconnected:
            return False
        if cycle.flow.write_paused or not cycle.keep_alive:
            return False
        own = b"".join([b"%s: %s\r\n" % line for line in cycle.default_headers])
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.transport.write(b"".join((head, own, b"\r\n", body)))
        cycle.message_event.set()
        cycle.on_response()
        return True


def offer(cycle: RequestResponseCycle) -> None:
    """Add the exchange of a request to its scope."""
    scope: Scope = cast("Scope", cycle.scope)
    scope["extensions"] = {_NAME: Exchange(cycle)}


def exchange_of(scope: Scope) -> Exchange | None:
    """Return the exchange of a request; None where another server runs the application."""
    extensions = scope.get("extensions")
    return None if extensions is None else extensions.get(_NAME)
