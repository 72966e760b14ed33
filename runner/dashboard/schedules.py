"""The pages of schedules: all of them, and one with its next runs and its last ones."""

from __future__ import annotations

from typing import Any

from ..storage.contract.records import EventQuery
from .definitions import lines
from .view import Page, View

__all__ = ["PAGES"]

_NEXT = 10
_LAST = 20
_LOOKED = 200  # events of the source of a schedule, of which others may have the same


async def _list(view: View) -> dict[str, Any]:
    return {"schedules": await view.surface.operations.schedules.all()}


async def _show(view: View) -> dict[str, Any]:
    name, operations = view.path["name"], view.surface.operations
    one = await operations.schedules.one(name)
    event = one.schedule.event
    query = EventQuery(type=event.type, source=one.schedule.source, limit=_LOOKED, data=False)
    mine = [each async for each in operations.records.events(query) if each.event.id.startswith(f"{name}/")]
    return {
        "one": one,
        "upcoming": await operations.schedules.upcoming(name, _NEXT),
        "events": mine[:_LAST],
        "plan": [each for each in lines(one.schedule) if not (one.schedule.cron and each[0] == "anchor")],  # of `every`
    }


PAGES = (
    Page(path="/schedules", template="schedules.html", look=_list),
    Page(path="/schedules/{name}", template="schedule.html", look=_show),
)
