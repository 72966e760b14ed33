"""The listener: serves the HTTP interface in the event loop of the worker."""

from __future__ import annotations

import asyncio
import logging
import resource
import ssl
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import structlog
import uvicorn

from ..errors import ConfigError
from ..service.background import spawn
from .connection import Connection
from .sockets import address_of, unlink
from .stand_in import StandIn

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from starlette.types import ASGIApp

    from ..config.api import Api, ApiTls
    from ..service.watchdog import Watchdog

__all__ = ["Listener"]

log = structlog.get_logger(__name__)

_KEEP_ALIVE = 75  # seconds between two requests of a connection
_MOST = 20_000  # connections, unless the file says otherwise


class Listener:
    """
    Serve an ASGI application on sockets that listen where the file says.

    While the event loop is blocked, a thread answers in its place (`StandIn`).
    """

    def __init__(self, options: Api, watchdog: Watchdog, sockets: Sequence[socket.socket]) -> None:
        """Args: sockets are closed by `stop()`; see `listen()`."""
        self._options = options
        self._watchdog = watchdog
        self._sockets = list(sockets)
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._stand_ins: list[StandIn] = []
        self._tls: ssl.SSLContext | None = None
        self._inode = options.place.path.stat().st_ino if options.place.path is not None else 0
        self.addresses: list[str] = []

    async def start(self, app: ASGIApp) -> None:
        """Serve in the background from now on. Raise `ConfigError` if a file of `api.tls` cannot be used."""
        options = self._options
        server = uvicorn.Server(self._config(app))
        self._stand_ins = [StandIn(each, tls=options.tls is not None) for each in self._sockets]
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup(sockets=self._sockets)
        self._server = server
        self._serving = spawn(server.main_loop(), "serve http")
        self._watchdog.on_blocked = self._answer
        self.addresses = [address_of(each, tls=options.tls is not None) for each in self._sockets]
        log.info("listening", addresses=self.addresses)

    def change(self, options: Api) -> None:
        """Present the certificate of `options` from the next handshake on."""
        if options.tls is not None and options.tls != self._options.tls:
            try:
                self._tls = options.tls.context()
            except ConfigError as error:  # replaced again since it was checked
                log.error("certificate not replaced", fault=str(error))
        self._options = options

    async def stop(self, grace: timedelta = timedelta(seconds=5)) -> None:
        """Take no more connections, and give the requests that run up to `grace` to finish. Idempotent."""
        server, self._server = self._server, None
        self._watchdog.on_blocked = None
        for each in self._stand_ins:
            each.close()
        if server is not None and self._serving is not None:
            server.should_exit = True
            await asyncio.wait({self._serving})
            server.config.timeout_graceful_shutdown = max(1, round(grace.total_seconds()))
            await server.shutdown(sockets=self._sockets)
        for listening in self._sockets:
            listening.close()
        if self._options.place.path is not None:
            unlink(self._options.place.path, self._inode)

    def _config(self, app: ASGIApp) -> uvicorn.Config:
        options = self._options
        # uvicorn's `info` lines add nothing to ours, and a traceback of its may hold a payload.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        tls = options.tls
        config = uvicorn.Config(
            app,
            http=cast(Any, partial(Connection, most=_most(options.limits.connections))),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            ssl_context_factory=None if tls is None else lambda _config, _default: self._renewable(tls),
        )
        config.load()
        return config

    def _renewable(self, tls: ApiTls) -> ssl.SSLContext:
        """Return the context of the listener, whose handshakes present the certificate that `change()` gave last."""

        def present(handshake: ssl.SSLObject, _host: str | None, _context: ssl.SSLContext) -> None:
            assert self._tls is not None
            handshake.context = self._tls

        self._tls = tls.context()
        context = tls.context()
        context.sni_callback = present
        return context

    def _answer(self) -> None:
        for each in self._stand_ins:
            each.answer()


def _most(limit: int | None) -> int:
    """Return how many connections are taken: by default half of the files that may be open, and 20,000 at most."""
    if limit is not None:
        return limit
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else min(_MOST, soft // 2)
