"""`/events`: what was published, and what is still to come of it."""

from __future__ import annotations

import contextlib
from typing import Any

from ..errors import NotFound
from ..operations.shapes import event_json, rescheduled_json
from ..storage.contract.records import EventQuery
from .endpoints import Call, Endpoint, choice, cursor, duration, limit, moment, page, past, text
from .problems import Problem

__all__ = ["ENDPOINTS"]

_LOOKED_THROUGH = 10_000  # events that are examined for one page
_HEAVIEST = 16 * 1024 * 1024  # bytes of data, above which a page ends
_STATES = ("scheduled", "queued", "settled", "cancelled")


async def _list(call: Call) -> dict[str, Any]:
    query = dict(call.query)
    size = query.pop("limit", 100)
    cursor = query.pop("cursor", None)
    # A caller that may see only some events gets a page of those found among this many.
    most = _LOOKED_THROUGH if call.caller.bound else size
    asked = EventQuery(**query, limit=most, before_seq=None if cursor is None else cursor[0])
    seen: list[dict[str, Any]] = []
    count = weight = 0
    # it is a generator
    async with contextlib.aclosing(call.surface.storage.records.events(asked)) as views:  # type: ignore[type-var]
        async for view in views:
            count += 1
            if call.caller.sees(view.event):
                seen.append(event_json(view))
                weight += len(view.event.data or b"")
            if len(seen) == size or count == most or weight >= _HEAVIEST:
                return page("events", seen, [view.seq])
    return page("events", seen, None)


async def _show(call: Call) -> dict[str, Any]:
    try:
        view = await call.surface.storage.records.event(call.path["ref"])
        if call.caller.sees(view.event):
            return event_json(view)
    except NotFound:
        if not call.caller.bound:
            raise
    # the same answer for an unknown event and for one that this caller may not see
    raise Problem(404, "not-found", "no such event")


async def _cancel(call: Call) -> dict[str, Any]:
    view, number = await call.operations.cancel_event(call.path["ref"])
    return {"seq": view.seq, "cancelled": True, "was": view.state, "deliveries": number}


async def _reschedule(call: Call) -> dict[str, Any]:
    asked = {name: value for name, value in call.query.items() if name != "subscription"}
    if len(asked) != 1:
        raise Problem(400, "invalid-parameter", "expected either delay or deliver_at")
    view, moved = await call.operations.reschedule(
        call.path["ref"], subscription=call.query.get("subscription"), **asked
    )
    return rescheduled_json(view.seq, moved)


ENDPOINTS = (
    Endpoint(
        method="GET",
        path="/events",
        need="events",
        summary="List events, the newest first.",
        answer="EventPage",
        handle=_list,
        query={
            "type": text("Only these types; `*` stands for any characters."),
            "source": text("Only these sources; `*` stands for any characters."),
            "subject": text("Only about these subjects; `*` stands for any characters."),
            "id": text("Only with this id, of any source."),
            "state": choice(_STATES, "Only in this state."),
            "since": past("Recorded at or after this time."),
            "until": past("Recorded before this time."),
            "limit": limit(),
            "cursor": cursor("events"),
        },
    ),
    Endpoint(
        method="POST",
        path="/events/{ref:path}/cancel",
        need="admin",
        summary="Cancel what of an event is still to come.",
        answer="EventCancelled",
        handle=_cancel,
        errors=(404, 409),
    ),
    Endpoint(
        method="POST",
        path="/events/{ref:path}/reschedule",
        need="admin",
        summary="Have an event, or those of its deliveries that wait, be due at another time.",
        answer="Rescheduled",
        handle=_reschedule,
        query={
            "delay": duration("From now on, until it is due."),
            "deliver_at": moment("The time at which it is due instead."),
            "subscription": text("Only the delivery to this one."),
        },
        errors=(404, 409),
    ),
    Endpoint(
        method="GET",
        path="/events/{ref:path}",
        need="events",
        summary="One event, by its seq or its id.",
        answer="Event",
        handle=_show,
        errors=(404,),
    ),
)
