"""The stand-in: answers in place of an event loop that is blocked."""

from __future__ import annotations

import contextlib
import re
import socket

import orjson

from .problems import MEDIA_TYPE, Problem

__all__ = ["StandIn"]

_MOST = 64  # connections answered at one look
_PATIENCE = 0.2  # seconds that one of them may take
_PROBES = re.compile(rb"[A-Z]+ \S*/(?:healthz|readyz)(?:\?\S*)? ")
_FAILING = "application/json", b'{"status":"failing"}'
_BLOCKED = Problem(503, "blocked", "code of the program keeps this process from answering; try again")


class StandIn:
    """
    Take the connections that wait for a blocked event loop, and answer each with 503.

    Without it a probe would learn nothing before its own timeout, and a publisher would wait for an answer that may be
    minutes away. `answer()` is for another thread than that of the loop; code that never releases the interpreter's
    lock stops it, too.
    """

    def __init__(self, listening: socket.socket, *, tls: bool) -> None:
        """Args: with tls no answer in clear can be given, so connections are closed."""
        self._listening = listening.dup()
        self._listening.setblocking(False)
        self._tls = tls

    def answer(self) -> None:
        """Answer what waits."""
        for _ in range(_MOST):
            try:
                connection, _ = self._listening.accept()
            except OSError:  # none waits, or the listener is closed
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(_PATIENCE)
                if not self._tls:
                    connection.sendall(_answer(connection.recv(65536)))

    def close(self) -> None:
        """Take no more connections. Idempotent."""
        self._listening.close()


def _answer(request: bytes) -> bytes:
    """Return the answer to a request that begins so: that of a probe, or a problem."""
    problem = MEDIA_TYPE, orjson.dumps(_BLOCKED.content())
    media_type, body = _FAILING if _PROBES.match(request) else problem
    head = (
        f"HTTP/1.1 503 Service Unavailable\r\ncontent-type: {media_type}\r\ncache-control: no-store\r\n"
        f"retry-after: 1\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode()
    return head if request.startswith(b"HEAD ") else head + body
