"""The page of a trace: which event led to which."""

from __future__ import annotations

from typing import Any

from ..operations.trace import branches, walk
from ..tracing.causation import CAUSATION
from .view import Page, View

__all__ = ["PAGES"]

_MOST = 500  # events, and deliveries


async def _show(view: View) -> dict[str, Any]:
    records = view.surface.operations.records
    event = await records.event(view.path["ref"])
    trace = await records.trace(str(event.seq), _MOST)
    return {"event": event, "trace": trace, "rows": list(walk(branches(trace))), "causation": CAUSATION}


PAGES = (Page(path="/traces/{ref:path}", template="trace.html", look=_show),)
