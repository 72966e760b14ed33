"""The door: the HTTP interface of one runner, whose modules are imported only when it is used."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp

    from ..bus.bus import EventBus
    from ..config.api import Api
    from ..operations import Operations
    from ..service.background import Service
    from ..storage import Storage
    from .listener import Listener
    from .process import Process
    from .surface import Surface

__all__ = ["Door"]


class Door:
    """Serves the HTTP interface where the file asks for it, unless a program has mounted it."""

    def __init__(
        self,
        options: Api | None,
        deployment_id: str,
        bus: EventBus,
        operations: Operations,
        storage: Storage,
        process: Process,
        *,
        pages: Callable[[Surface], Sequence[BaseRoute]] = lambda _: (),
    ) -> None:
        """Args: options is the section `api` of the file, None without one; pages returns the routes for people."""
        self._options = options
        self._deployment_id = deployment_id
        self._bus = bus
        self._operations = operations
        self._storage = storage
        self._process = process
        self._pages = pages
        self._listener: Listener | None = None
        self._mounted = False
        self._surface: Surface | None = None

    @property
    def addresses(self) -> list[str]:
        """Where it listens."""
        return [] if self._listener is None else list(self._listener.addresses)

    def mount(self, runner: Service) -> ASGIApp:
        """Return the application for a program to serve, which starts and stops `runner` if it is told to."""
        from .lifespan import Lifespan

        self._mounted = True
        return Lifespan(self._application(), runner)

    def change(self, options: Api | None) -> None:
        """Apply what a running process can change of another section `api`: tokens and certificates."""
        if options is not None and self._options is not None:
            self._options = options
            if self._listener is not None:
                self._listener.change(options)
            if self._surface is not None:
                self._surface.change(options)

    async def start(self) -> None:
        """
        Listen, if the file says so.

        Raises:
            ListenError: the address is in use, or cannot be bound.
            ConfigError: a file of `api.tls` cannot be used.
        """
        if self._options is not None and not self._mounted and self._listener is None:
            from .sockets import listen

            sockets = await listen(self._options)  # a taken address is reported before anything else is loaded
            from .listener import Listener

            self._listener = Listener(self._options, self._process.watchdog, sockets)
            await self._listener.start(self._application())

    async def stop(self, grace: timedelta) -> None:
        """Take no more requests, and give those that run up to `grace` to finish. Idempotent."""
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.stop(grace)

    def _application(self) -> ASGIApp:
        from ..config.api import Api
        from .application import create
        from .surface import Surface

        options = self._options or Api()
        self._surface = surface = Surface.of(
            options, self._deployment_id, self._bus, self._operations, self._storage, self._process
        )
        return create(surface, self._pages(surface) if options.dashboard else ())
