"""The pages of deliveries: dead letters with the reason, and one delivery with every attempt."""

from __future__ import annotations

import re
from typing import Any

from ..api.parameters import bad_parameter, moment
from ..delivery import DeliveryState
from ..operations import DeliveryRef
from ..storage.contract.records import DeliveryQuery
from .events import page_size, patience, ways_of
from .view import Page, View

__all__ = ["PAGES"]

_PLACE = re.compile(r"([0-9]{1,18})~(.{0,300})", re.ASCII | re.DOTALL)


async def _dead(view: View) -> dict[str, Any]:
    return await _listed(view, DeliveryState.DEAD)


async def _list(view: View) -> dict[str, Any]:
    state = view.query["state"] or "pending"
    if state not in list(DeliveryState):
        raise bad_parameter("state", f"expected one of: {', '.join(DeliveryState)}")
    return await _listed(view, DeliveryState(state))


async def _listed(view: View, state: DeliveryState) -> dict[str, Any]:
    operations = view.surface.operations
    asked: dict[str, Any] = {name: view.query[name] for name in ("subscription", "type") if name in view.query}
    asked |= {name: moment(name, view.query[name]) for name in ("since", "until") if name in view.query}
    query = DeliveryQuery(state=state, **asked, before=_before(view), limit=page_size + 1)
    found, reached = await operations.records.search_deliveries(await operations.query(query), patience)
    if len(found) > page_size:
        reached = found[page_size - 1].seq, found[page_size - 1].subscription
    return {
        "deliveries": found[:page_size],
        "following": None if reached is None else f"{reached[0]}~{reached[1]}",
        "broken_off": reached is not None and len(found) <= page_size,
        "filtered": bool(asked),
        "newest": {name: value for name, value in view.query.items() if name != "before"},
        "state_shown": state.value,
        "states": [each.value for each in DeliveryState],
    }


def _before(view: View) -> tuple[int, str] | None:
    """Return the delivery that the page goes on below; None for the first page. Raise a `Problem`."""
    if "before" not in view.query:
        return None
    found = _PLACE.fullmatch(view.query["before"])
    if found is None or "\0" in found[2]:
        raise bad_parameter("before", "expected the place of a delivery")
    return int(found[1]), found[2]


async def _show(view: View) -> dict[str, Any]:
    operations, name = view.surface.operations, view.path["subscription"]
    event = await operations.records.event(str(view.path["seq"]))
    query = DeliveryQuery(seq=event.seq, subscription=name)
    found = [each async for each in operations.records.deliveries(query)]
    if not found:
        # raises `NotFound`, which names what does not exist
        await operations.delivery(DeliveryRef(str(event.seq), name))
    return {"event": event, "ways": await ways_of(view, event, found), "more": False, "others": ()}


_FILTERS = ("subscription", "type", "since", "until", "before")

_WAYS = {"ways": "event_ways.html"}
_PARTS = {"deliveries": "dead_letters_table.html"}

PAGES = (
    Page(path="/dead-letters", template="dead_letters.html", look=_dead, query=_FILTERS, parts=_PARTS),
    Page(path="/deliveries", template="deliveries.html", look=_list, query=(*_FILTERS, "state")),
    Page(path="/deliveries/{seq:int}/{subscription}", template="delivery.html", look=_show, parts=_WAYS),
)
