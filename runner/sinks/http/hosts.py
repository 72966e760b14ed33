"""The hosts that posts go to, as far as the sinks of one process share them: connections, limits, tokens."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Protocol

from .address import Address
from .guard import ANYWHERE, Guard
from .oauth import TokenSource
from .pool import Pool

__all__ = ["Hosts", "TlsFiles"]


class TlsFiles(Protocol):
    """The files of TLS; equal ones make equal contexts."""

    def context(self) -> ssl.SSLContext:
        """Return the context."""


class Hosts:
    """
    One pool of connections for each origin, and one source of tokens for each client of an authorization server.

    Sinks are few, so what is shared is found by comparison.
    """

    def __init__(self, connections: int = 256) -> None:
        """Args: connections is the limit of each pool unless a smaller one is asked for."""
        self._connections = connections
        self._pools: list[tuple[tuple[object, ...], Pool]] = []
        self._tokens: list[tuple[object, TokenSource]] = []

    def pool(
        self,
        address: Address,
        *,
        connections: int | None = None,
        tls: TlsFiles | None = None,
        guard: Guard = ANYWHERE,
    ) -> Pool:
        """
        Return the connections to the origin of `address`; the smallest limit requested applies to all.

        Raises:
            SinkError: a file of `tls` cannot be used.
        """
        key = (address.secure, address.host.lower(), address.port, tls, guard)
        found = next((pool for known, pool in self._pools if known == key), None)
        if found is None:
            context = None if tls is None or not address.secure else tls.context()
            found = Pool(address, limit=self._connections, tls=context, guard=guard)
            self._pools.append((key, found))
        if connections is not None:
            found.at_most(connections)
        return found

    def sweep(self) -> None:
        """Forget the pools and sources of tokens that nothing uses any more."""
        self._pools = [each for each in self._pools if each[1].used]
        self._tokens = [each for each in self._tokens if each[1].used]

    def tokens(self, options: object, make: Callable[[], TokenSource]) -> TokenSource:
        """Return the source of tokens for `options`, made the first time that equal ones are asked for."""
        for known, source in self._tokens:
            if known == options:
                return source
        source = make()
        self._tokens.append((options, source))
        return source
