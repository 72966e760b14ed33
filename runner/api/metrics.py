"""The route `/metrics`: what this process has counted, and how much waits, as Prometheus reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response
from starlette.routing import Route

from .collector import Collector

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.routing import BaseRoute

    from .surface import Surface

__all__ = ["routes"]


def routes(surface: Surface) -> list[BaseRoute]:
    """Return the route; none with `api.metrics: false`."""
    if not surface.options.metrics:
        return []
    registry = CollectorRegistry(auto_describe=False)
    collector = Collector(surface)
    registry.register(collector)
    free = surface.options.place.near

    async def metrics(request: Request) -> Response:
        """Answer in the format that is asked for; the text format unless that is OpenMetrics."""
        if not free:
            surface.access.admit(request, "read")
        await collector.refresh()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": content_type, "cache-control": "no-store"})

    return [Route("/metrics", metrics)]
