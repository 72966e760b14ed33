"""`/deliveries`: one event for one subscription, with its attempts; retry, cancel and acknowledge."""

from __future__ import annotations

from typing import Any

from ..delivery import DeliveryState
from ..operations import DeliveryRef
from ..operations.shapes import attempt_json, delivery_json
from ..storage.contract.records import DeliveryQuery
from .endpoints import Call, Endpoint, Parameter, choice, cursor, flag, limit, page, past, rate, text
from .problems import Problem

__all__ = ["ENDPOINTS"]

_PATH = "/deliveries/{seq:path}/{subscription}"
_FILTERS: dict[str, Parameter] = {
    "subscription": text("Only of this subscription."),
    "type": text("Only of events of these types; `*` stands for any characters."),
    "since": past("Last changed at or after this time."),
    "until": past("Last changed before this time."),
}


def _which(call: Call) -> DeliveryRef:
    return DeliveryRef(call.path["seq"], call.path["subscription"])


async def _list(call: Call) -> dict[str, Any]:
    query = dict(call.query)
    size, cursor = query.pop("limit", 100), query.pop("cursor", None)
    event, sort = query.pop("event", None), query.pop("sort", "event")
    if cursor is not None and (len(cursor) != 2 or sort == "due"):
        raise Problem(400, "invalid-parameter", "cursor: expected the `next` of a page of this list")
    if state := query.pop("state", None):
        query["state"] = DeliveryState(state)
    before = None if cursor is None else (cursor[0], cursor[1])
    asked = DeliveryQuery(**query, limit=size, before=before, soonest_first=sort == "due")
    asked = await call.operations.query(asked, event=event)
    holds = await call.operations.holds()
    views = [view async for view in call.surface.storage.records.deliveries(asked)]
    more = len(views) == size and sort == "event"
    items = [delivery_json(view, holds.get(view.subscription)) for view in views]
    return page("deliveries", items, [views[-1].seq, views[-1].subscription] if more else None)


async def _show(call: Call) -> dict[str, Any]:
    view, tried = await call.operations.delivery(_which(call))
    holds = await call.operations.holds()
    shown = delivery_json(view, holds.get(view.subscription))
    return shown | {"tries": [attempt_json(each) for each in tried]}


async def _retry(call: Call) -> dict[str, Any]:
    return {"retried": await call.operations.retry(_which(call))}


async def _cancel(call: Call) -> dict[str, Any]:
    return {"cancelled": await call.operations.cancel(_which(call))}


async def _ack(call: Call) -> dict[str, Any]:
    which = _which(call)
    failure = call.query.get("failure")
    changed = await call.operations.ack(which.event, which.subscription, failure=failure)
    return {"changed": changed}


async def _retry_many(call: Call) -> dict[str, Any]:
    query = dict(call.query)
    dry_run, every = query.pop("dry_run", False), query.pop("rate", None)
    if state := query.pop("state", None):
        query["state"] = DeliveryState(state)
    if not query and not dry_run:
        names = ", ".join(("state", *_FILTERS))
        raise Problem(400, "invalid-parameter", f"say which to retry by one of: {names}; dry_run counts all")
    asked = DeliveryQuery(**query, limit=None)
    return {
        "retried": await call.operations.retry(asked, every=every, dry_run=dry_run),
        "dry_run": dry_run,
    }


ENDPOINTS = (
    Endpoint(
        method="GET",
        path="/deliveries",
        need="read",
        summary="List deliveries, those of the newest event first.",
        answer="DeliveryPage",
        handle=_list,
        query={
            "state": choice([each.value for each in DeliveryState], "Only in this state."),
            "event": text("Only of this event, by its seq or its id."),
            **_FILTERS,
            "sort": choice(("event", "due"), "The newest event first, or what is due soonest: then there is one page."),
            "limit": limit(),
            "cursor": cursor("deliveries"),
        },
        errors=(404,),
    ),
    Endpoint(
        method="POST",
        path="/deliveries/retry",
        need="admin",
        summary="Make dead or cancelled deliveries pending, with fresh attempts.",
        answer="RetriedMany",
        handle=_retry_many,
        query={
            "state": choice(("dead", "cancelled"), "Only in this state."),
            **_FILTERS,
            "rate": rate("Spread them over time."),
            "dry_run": flag("Say how many there are, and do nothing."),
        },
        errors=(404,),
    ),
    Endpoint(
        method="GET",
        path=_PATH,
        need="read",
        summary="One delivery with its attempts; the event by its seq or its id.",
        answer="DeliveryWithTries",
        handle=_show,
        errors=(404,),
    ),
    Endpoint(
        method="POST",
        path=f"{_PATH}/retry",
        need="admin",
        summary="Make a dead or cancelled delivery pending.",
        answer="Retried",
        handle=_retry,
        errors=(404, 409),
    ),
    Endpoint(
        method="POST",
        path=f"{_PATH}/cancel",
        need="admin",
        summary="Cancel a delivery that waits or runs.",
        answer="Cancelled",
        handle=_cancel,
        errors=(404, 409),
    ),
    Endpoint(
        method="POST",
        path=f"{_PATH}/ack",
        need="admin",
        summary="Acknowledge a delivery that its sink deferred.",
        answer="Changed",
        handle=_ack,
        query={"failure": text("The reason why it failed instead; the retry policy decides what follows.")},
        errors=(404, 409),
    ),
)
