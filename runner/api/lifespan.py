"""The lifespan of the application where a server runs it by itself: the runner starts and stops with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..service.background import Service

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["Lifespan"]


class Lifespan:
    """Start a runner before the first request, and stop it after the last one, where the server says when that is."""

    def __init__(self, app: ASGIApp, runner: Service) -> None:
        self._app = app
        self._runner = runner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or the lifespan."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        await receive()
        try:
            await self._runner.start()
        except Exception as error:
            await self._runner.stop()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._runner.stop()
        await send({"type": "lifespan.shutdown.complete"})
