"""The probes: `/healthz` says whether the loops of the process run, `/readyz` whether it can take work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..service.vitals import Phase

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.routing import BaseRoute

    from .surface import Surface

__all__ = ["routes"]

_NO_STORE = {"cache-control": "no-store"}


def routes(surface: Surface) -> list[BaseRoute]:
    """Return the routes of the probes, which need no token."""

    async def healthz(request: Request) -> Response:
        """Report whether every loop runs; reveal nothing else."""
        well = not surface.vitals.faults()
        return JSONResponse({"status": "ok" if well else "failing"}, 200 if well else 503, headers=_NO_STORE)

    async def readyz(request: Request) -> Response:
        """Report whether this process can take work; a strategy that does not hear does not count."""
        readiness, phase = surface.readiness, surface.vitals.phase
        await readiness.refresh()
        ready = phase is Phase.RUNNING and readiness.store and readiness.tables is True
        return JSONResponse(
            {
                "ready": ready,
                "phase": phase.value,
                "store": readiness.store,
                "tables": readiness.tables,
                "strategies": [{"name": each.name, "hears": each.hears} for each in surface.process.strategies()],
            },
            200 if ready else 503,
            headers=_NO_STORE,
        )

    return [Route("/healthz", healthz), Route("/readyz", readyz)]
