"""The pages of events: a list to search in, and one event with the whole way of each delivery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ..api.parameters import bad_parameter, moment
from ..delivery import DeliveryState
from ..diagnosis.matching import Clause, mismatch
from ..diagnosis.why import Answer
from ..diagnosis.why import why as explained
from ..storage.contract.records import DeliveryQuery, EventQuery
from ..subscription import DEAD_LETTER_SUFFIX
from .data import shown
from .view import Page, View
from .wording import moment as moment_of

if TYPE_CHECKING:
    from ..storage.contract.records import AttemptView, DeliveryView, EventView

__all__ = ["PAGES", "Way", "page_size", "patience", "seq_of", "ways_of"]

STATES = ("scheduled", "queued", "settled", "cancelled")
page_size = 50

_DELIVERIES = 200  # of one event that are listed
_WAYS = 20  # of them that are shown with every attempt
patience = timedelta(seconds=2)  # for a search; what it has not looked at by then the visitor may go on with
_PATTERNS = ("type", "source", "subject", "id")


@dataclass(frozen=True, slots=True)
class Way:
    """One delivery with its attempts, and why it is as it is; both None where there are too many."""

    delivery: DeliveryView
    attempts: Sequence[AttemptView] | None
    why: Answer | None


async def _list(view: View) -> dict[str, Any]:
    asked: dict[str, Any] = {name: value for name, value in view.query.items() if name in (*_PATTERNS, "state")}
    if asked.get("state", "queued") not in STATES:
        raise bad_parameter("state", f"expected one of: {', '.join(STATES)}")
    asked |= {name: moment(name, view.query[name]) for name in ("since", "until") if name in view.query}
    query = EventQuery(**asked, before_seq=seq_of(view), limit=page_size + 1, data=False)
    found, reached = await view.surface.operations.records.search(query, patience)
    more = len(found) > page_size
    return {
        "events": found[:page_size],
        "following": found[page_size - 1].seq if more else reached,
        "reached": reached,
        "filtered": bool(asked),
        "newest": {name: value for name, value in view.query.items() if name != "before"},
        "states": STATES,
    }


def seq_of(view: View) -> int | None:
    """Return the seq that the page goes on below; None for the first page. Raise a `Problem`."""
    text = view.query.get("before")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise bad_parameter("before", "expected the seq of an event")
    return int(text)


async def _show(view: View) -> dict[str, Any]:
    records = view.surface.operations.records
    event = await records.event(view.path["ref"])
    deliveries = [each async for each in records.deliveries(DeliveryQuery(seq=event.seq, limit=_DELIVERIES))]
    deliveries.sort(key=lambda each: (_RANKS.get(each.state, 9), each.subscription))
    ways = await ways_of(view, event, deliveries[:_WAYS])
    ways += [Way(each, None, None) for each in deliveries[_WAYS:]]
    return {
        "event": event,
        "data": shown(event.event),
        "attributes": _attributes(event),
        "ways": ways,
        "more": len(deliveries) == _DELIVERIES,
        "others": await _others(view, event, {each.subscription for each in deliveries}),
    }


_RANKS = {DeliveryState.DEAD: 0, DeliveryState.LEASED: 1, DeliveryState.PENDING: 2, DeliveryState.CANCELLED: 3}


async def ways_of(view: View, event: EventView, deliveries: Sequence[DeliveryView]) -> list[Way]:
    """Return deliveries of an event, each with its attempts and why it is as it is, by three statements."""
    if not deliveries:
        return []
    records, names = view.surface.operations.records, [each.subscription for each in deliveries]
    attempts = await records.attempts(event.seq, names)
    holds = await view.surface.storage.overview.holds(event.seq, names)
    instances = await records.instances()
    return [
        Way(each, attempts[name], explained(event, holds[name], instances) if name in holds else None)
        for name, each in zip(names, deliveries, strict=True)
    ]


async def _others(view: View, event: EventView, having: set[str]) -> list[tuple[str, Clause | None]]:
    """Return the active subscriptions without a delivery of the event, and the clause of each that fails."""
    return [
        (each.subscription.name, mismatch(each.subscription, event.event))
        for each, active in await view.surface.storage.overview.subscribed()
        if active and each.subscription.name not in having and not each.subscription.name.endswith(DEAD_LETTER_SUFFIX)
    ]


def _attributes(event: EventView) -> list[tuple[str, object]]:
    """Return the attributes of an event that it has, in the order in which people look for them."""
    of = event.event
    core = ("type", "source", "subject", "id", "time", "datacontenttype", "dataschema")
    found = [(name, getattr(of, name)) for name in core]
    found += sorted(of.extensions.items())
    return [
        (name, moment_of(value) if isinstance(value, datetime) else value) for name, value in found if value is not None
    ]


PAGES = (
    Page(
        path="/events",
        template="events.html",
        look=_list,
        query=(*_PATTERNS, "state", "since", "until", "before"),
        parts={"events": "events_table.html"},
    ),
    Page(path="/events/{ref:path}", template="event.html", look=_show, parts={"ways": "event_ways.html"}),
)
