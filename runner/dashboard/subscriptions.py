"""The pages of subscriptions: all of them, and one with its backlog, its errors and what it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..api.parameters import bad_parameter
from ..delivery import DeliveryState
from ..errors import NotFound
from ..storage.contract.records import DeliveryQuery
from .definitions import lines
from .overview import range_of
from .plots import RANGES, plots
from .view import Page, View

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..diagnosis.status import Snapshot, Subscribed

__all__ = ["PAGES", "ranked"]

SORTS: dict[str, str] = {"state": "what needs a look first", "name": "name", "waiting": "waiting", "dead": "dead"}

_PARTS = {"subscriptions": "subscriptions_table.html"}
_LISTED = 20  # deliveries on the page of one


async def _list(view: View) -> dict[str, Any]:
    report = await view.glances.report()
    sort = view.query["sort"] or "state"
    if sort not in SORTS:
        raise bad_parameter("sort", f"expected one of: {', '.join(SORTS)}")
    seen, wanted = report.snapshot, view.query["name"].lower()
    rows = [] if seen is None else [each for each in ranked(seen, sort) if wanted in each.name.lower()]
    return {"seen": seen, "rows": rows, "sorts": SORTS, "sort": sort}


def ranked(seen: Snapshot, sort: str) -> list[Subscribed]:
    """Return the subscriptions in an order; inactive ones are the last."""
    keys: dict[str, Callable[[Subscribed], Any]] = {
        "state": lambda each: (not each.ill, not each.load.dead, -each.backlog, each.name),
        "name": lambda each: each.name,
        "waiting": lambda each: (-each.backlog, each.name),
        "dead": lambda each: (-each.load.dead, each.name),
    }
    return sorted(seen.subscriptions, key=lambda each: (not each.active, keys[sort](each)))


async def _show(view: View) -> dict[str, Any]:
    name, records = view.path["name"], view.surface.operations.records
    report = await view.glances.report()
    seen = report.snapshot
    found = None if seen is None else next((each for each in seen.subscriptions if each.name == name), None)
    if found is None:
        await records.subscription(name)  # which raises, with the names there are
        raise NotFound(f"no such subscription: {name}")
    dead = DeliveryQuery(subscription=name, state=DeliveryState.DEAD, limit=_LISTED)
    due = DeliveryQuery(subscription=name, soonest_first=True, limit=_LISTED)
    chosen = range_of(view)
    return {
        "range": chosen,
        "ranges": RANGES,
        "plots": plots(await view.glances.series(found.registered.id, chosen), chosen, backlog=False),
        "seen": seen,
        "one": found,
        "findings": [each for each in report.findings if each.subject == name],
        "definition": definition(found),
        "dead": [each async for each in records.deliveries(dead)],
        "open": [each async for each in records.deliveries(due)],
    }


def definition(subscribed: Subscribed) -> list[tuple[str, str]]:
    """Return what a subscription says, one line for each key that is set."""
    registered = subscribed.registered
    return [("origin", registered.origin), *lines(registered.subscription)]


PAGES = (
    Page(path="/subscriptions", template="subscriptions.html", look=_list, query=("sort", "name"), parts=_PARTS),
    Page(
        path="/subscriptions/{name}",
        template="subscription.html",
        look=_show,
        query=("range",),
        parts={"one": "subscription_figures.html", "plots": "plots.html"},
    ),
)
