"""The overview: how the deployment is, at a glance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..api.parameters import bad_parameter
from ..storage.contract.throughput import BUS
from .plots import RANGES, Range, plots
from .view import Page, View

if TYPE_CHECKING:
    from ..diagnosis.status import Snapshot, Subscribed

__all__ = ["PAGES", "figures", "hearing", "range_of", "worst"]

_SHOWN = 12  # subscriptions on the overview


async def _look(view: View) -> dict[str, Any]:
    chosen = range_of(view)
    if view.streamed:
        report = await view.glances.report()
        series = await view.glances.series(BUS, chosen) if report.snapshot else None
    else:
        report, series = await view.glances.first(chosen)
    seen = report.snapshot
    if seen is None or series is None:
        return {"report": report, "seen": None, "range": chosen, "ranges": RANGES}
    found = {"figures": figures(seen), "worst": worst(seen), "hearing": hearing(seen)}
    return {"report": report, "seen": seen, "range": chosen, "ranges": RANGES, "plots": plots(series, chosen), **found}


def range_of(view: View) -> Range:
    """Return how far back the plots of a page look. Raise a `Problem`."""
    name = view.query["range"] or "15m"
    if name not in RANGES:
        raise bad_parameter("range", f"expected one of: {', '.join(RANGES)}")
    return RANGES[name]


def figures(seen: Snapshot) -> dict[str, Any]:
    """Return the figures of the last minutes: rates per second, durations in seconds."""
    flow = seen.throughput.of(BUS)
    oldest = min((each.oldest_at for each in seen.subscriptions if each.oldest_at), default=seen.queue.oldest_at)
    return {
        "dispatched": seen.throughput.rate(flow.dispatched),
        "delivered": seen.throughput.rate(flow.delivered),
        "success": flow.success_ratio,
        "latency": {share: flow.latency.quantile(share / 100) for share in (50, 95, 99)},
        "backlog": seen.queue.queued + sum(each.load.open for each in seen.subscriptions),
        "dead": sum(each.load.dead for each in seen.subscriptions),
        "oldest": oldest,
        "scheduled": seen.queue.scheduled,
    }


def worst(seen: Snapshot) -> list[Subscribed]:
    """Return the subscriptions that need a look first: those that fail, then the longest backlogs."""

    def rank(each: Subscribed) -> tuple[bool, bool, int, int, str]:
        return (not each.ill, not each.load.dead, -each.backlog, -each.flow.delivered, each.name)

    return sorted((each for each in seen.subscriptions if each.active or each.backlog), key=rank)[:_SHOWN]


def hearing(seen: Snapshot) -> list[tuple[str, int, int, str]]:
    """Return each strategy with how many of its instances hear, of how many, and a detail of one that does not."""
    told = [each for instance in seen.live for each in instance.strategies or ()]
    found = []
    for name in dict.fromkeys(each.name for each in told):
        its = [each for each in told if each.name == name]
        detail = next((each.detail for each in its if each.hears is False and each.detail), its[0].detail)
        hears = -1 if all(each.hears is None for each in its) else sum(each.hears is True for each in its)
        found.append((name, hears, len(its), detail))
    return found


PAGES = (
    Page(
        path="/",
        template="overview.html",
        look=_look,
        query=("range",),
        parts={
            "verdict": "overview_verdict.html",
            "figures": "overview_figures.html",
            "plots": "plots.html",
            "subscriptions": "overview_subscriptions.html",
            "instances": "overview_instances.html",
        },
    ),
)
