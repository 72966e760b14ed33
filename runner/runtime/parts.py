"""Parts of a runner that are put together in a few lines: pages, and destinations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from ..api.surface import Surface
    from ..operations.destinations import Keeper
    from ..worker.worker import Worker
    from .revision import ConfigurationFile

__all__ = ["pages", "serve"]


def pages(surface: Surface) -> Sequence[BaseRoute]:
    """Return the routes of the dashboard, of which nothing is loaded before."""
    from ..dashboard.site import routes

    return routes(surface)


def serve(file: ConfigurationFile | None, worker: Worker, on_change: Callable[[], None]) -> Keeper | None:
    """Have the worker serve the destinations that subscriptions bring with them; return their keeper."""
    if file is None:
        return None
    destinations = file.destinations
    worker.roster.destinations, destinations.on_change = destinations, on_change
    return destinations.keeper
