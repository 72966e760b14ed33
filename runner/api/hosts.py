"""The Host allow-list: a page in a browser must not reach the loopback under a name of its own."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from ..config.fields import is_near
from .problems import Problem, problem_response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from ..config.api import Api

__all__ = ["HostGuard", "host_of"]

# RFC 9110, section 7.2: uri-host, and a port that says nothing here.
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:/@\s]+)(?::[0-9]*)?", re.ASCII)
_OPEN = frozenset({"/healthz", "/readyz"})  # probes come by address, and learn nothing


class HostGuard:
    """
    Answer 421 to a request for a host that is not ours (DNS rebinding).

    With `hosts` only those, and `*.example.com` for every name below. Without, the names of the loopback; where the
    listener is open to other machines, and so has tokens, any name. Probes are answered under every name.
    """

    def __init__(self, app: ASGIApp, options: Api) -> None:
        self._app = app
        self._allowed = _rule(options)
        self._known: set[bytes] = set()  # values of the header that were accepted

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Handle one request."""
        if scope["type"] == "http":
            values = [value for name, value in scope["headers"] if name == b"host"]
            if (len(values) != 1 or values[0] not in self._known) and not self._learn(scope, values):
                problem = Problem(421, "host-not-allowed", "this host is not served here; add it to api.hosts")
                return problem_response(problem)(scope, receive, send)
        return self._app(scope, receive, send)

    def _learn(self, scope: Scope, values: list[bytes]) -> bool:
        host = host_of(values[0]) if len(values) == 1 else None
        good = host is not None and self._allowed(host)
        if good and len(self._known) < 100:
            self._known.add(values[0])
        return good or scope["path"].removeprefix(scope.get("root_path", "")) in _OPEN


def host_of(value: bytes) -> str | None:
    """Return the host in a Host header, in lower case and without its port; None for one that cannot be read."""
    found = _HOST.fullmatch(value.decode("latin-1"))
    return found[1].lower() if found else None


def _rule(options: Api) -> Callable[[str], bool]:
    if options.hosts:
        exact = {host for host in options.hosts if not host.startswith("*.")}
        below = tuple(host[1:] for host in options.hosts if host.startswith("*."))
        return lambda host: host in exact or host.endswith(below)
    if options.place.near:
        return lambda host: is_near(host.strip("[]"))
    return lambda host: True
