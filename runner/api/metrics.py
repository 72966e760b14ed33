"""The metrics: plain counts, and one look at the store, in the form that Prometheus reads; and their route."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from math import inf
from typing import TYPE_CHECKING, TypeVar

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector as Collecting
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import override

from ..service.tally import Outcomes, Tries
from ..service.version import __version__

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.routing import BaseRoute

    from ..service.histogram import Histogram
    from ..storage.contract.depths import Depths
    from .surface import Surface

__all__ = ["routes"]

_RESULTS = ("accepted", "failed", "rejected", "deferred", "lost", "withheld")

_Counts = TypeVar("_Counts")


def routes(surface: Surface) -> list[BaseRoute]:
    """Return the route; none with `api.metrics: false`."""
    if not surface.options.metrics:
        return []
    registry = CollectorRegistry(auto_describe=False)
    collector = _Collector(surface)
    registry.register(collector)
    ProcessCollector(registry=registry)  # memory, CPU, open files: what every process has, under its usual names
    free = surface.options.place.near

    async def metrics(request: Request) -> Response:
        """Answer in the format that is asked for; the text format unless that is OpenMetrics."""
        if not free:
            surface.access.admit(request, "read")
        await collector.refresh()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": content_type, "cache-control": "no-store"})

    return [Route("/metrics", metrics)]


class _Collector(Collecting):
    """
    Makes the metrics of one process at the moment of a scrape.

    Labels hold names of subscriptions, strategies, loops and schedules, whose number a deployment bounds, and the first
    hundred sources. A counter is exported from zero for every known name: a scraper sees no increase in a counter that
    did not exist before, so the first dead delivery would go unnoticed.
    """

    def __init__(self, surface: Surface) -> None:
        self._surface = surface
        self._depths: Depths | None = None

    async def refresh(self) -> None:
        """Read the store, unless that was done a moment ago."""
        self._depths = await self._surface.depths.look()

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the metrics are known only at a scrape."""
        return ()

    @override
    def collect(self) -> Iterator[Metric]:
        yield from self._process()
        yield from self._publishing()
        yield from self._delivering()
        yield from self._waiting()

    def _process(self) -> Iterator[Metric]:
        surface, tally = self._surface, self._surface.tally
        yield _gauge(
            "build_info",
            "The version that runs.",
            ("version", "python"),
            [((__version__, platform.python_version()), 1.0)],
        )
        yield GaugeMetricFamily(
            "runner_loop_lag_seconds",
            "The longest the event loop was held up in the last half minute.",
            value=surface.process.watchdog.recent_lag.total_seconds(),
        )
        yield _gauge(
            "loop_stalled_seconds",
            "For how long a loop has hung, or failed again and again.",
            ("loop",),
            [((name,), seconds) for name, seconds in surface.vitals.stalls().items()],
        )
        hears = [((each.name,), float(each.hears)) for each in surface.process.strategies() if each.hears is not None]
        yield _gauge("strategy_hears", "Whether a strategy is proven to hear.", ("strategy",), hears)
        wakes = {**{each.name: 0 for each in surface.process.strategies()}, **surface.process.wakes}
        yield _counter("wakes", "Wakes of the worker.", ("strategy",), [((k,), v) for k, v in wakes.items()])
        yield CounterMetricFamily("runner_claims", "Claims of events.", value=tally.claims)
        yield CounterMetricFamily(
            "runner_leases_lost", "Deliveries whose lease ended before they did.", value=tally.leases_lost
        )
        yield from self._reloading()
        missed = [((name,), count) for name, count in tally.schedules_missed.items()]
        yield _counter("schedule_missed", "Ticks of schedules for which nothing was published.", ("schedule",), missed)

    def _reloading(self) -> Iterator[Metric]:
        reloading = self._surface.process.reloading
        counts = [((outcome,), count) for outcome, count in reloading.counts.items()]
        yield _counter("config_reloads", "Reloads of the configuration file.", ("outcome",), counts)
        yield GaugeMetricFamily(
            "runner_config_last_reload_successful",
            "Whether the last reload took the file; 1 before the first one.",
            value=float(not reloading.state.kept),
        )
        yield GaugeMetricFamily(
            "runner_config_last_reload_success_timestamp_seconds",
            "When the file that is in use was read, since the epoch.",
            value=reloading.state.loaded_at.timestamp(),
        )

    def _publishing(self) -> Iterator[Metric]:
        tally = self._surface.tally
        published = [((source,), count) for source, count in tally.published.items()]
        yield _counter("events_published", "Events recorded by this process.", ("source",), published)
        waits = HistogramMetricFamily("runner_publish_seconds", "How long publishers waited until it was durable.")
        _add(waits, (), tally.publish)
        yield waits

    def _delivering(self) -> Iterator[Metric]:
        tally = self._surface.tally
        ended = [
            ((name, outcome), count)
            for name, each in _named(tally.names, tally.outcomes, Outcomes())
            for outcome, count in (("delivered", each.delivered), ("dead", each.dead))
        ]
        yield _counter("deliveries", "Deliveries that have ended.", ("subscription", "outcome"), ended)
        tried = [
            ((name, result), count)
            for name, each in _named(tally.names, tally.tries, Tries())
            for result, count in (dict.fromkeys(_RESULTS, 0) | each.results).items()
        ]
        yield _counter("attempts", "Attempts to deliver.", ("subscription", "result"), tried)
        spent = HistogramMetricFamily(
            "runner_delivery_seconds", "How long the sink took for an attempt.", labels=("subscription",)
        )
        for name, tries in _named(tally.names, tally.tries):
            _add(spent, (name,), tries.seconds)
        yield spent
        latency = HistogramMetricFamily(
            "runner_latency_seconds", "From the publish to the end of a delivery.", labels=("subscription",)
        )
        for name, outcomes in _named(tally.names, tally.outcomes):
            _add(latency, (name,), outcomes.latency)
        yield latency
        opened = [((name,), float(is_open)) for name, is_open in self._surface.process.breakers().items()]
        yield _gauge("breaker_open", "Whether its breaker keeps deliveries back.", ("subscription",), opened)

    def _waiting(self) -> Iterator[Metric]:
        depths = self._depths
        yield GaugeMetricFamily("runner_store_up", "Whether the store answers.", value=float(depths is not None))
        if depths is None:
            return
        yield GaugeMetricFamily(
            "runner_queue_events", "Events that are not dispatched; an estimate above 10,000.", value=depths.queued
        )
        yield GaugeMetricFamily(
            "runner_oldest_queued_seconds", "Age of the oldest of them.", value=depths.oldest_queued.total_seconds()
        )
        yield GaugeMetricFamily(
            "runner_scheduled_events", "Events that are due later, up to 10,001.", value=depths.scheduled
        )
        backlog = [
            ((each.name, state), float(count))
            for each in depths.subscriptions
            for state, count in (("pending", each.pending), ("leased", each.leased), ("dead", each.dead))
        ]
        yield _gauge(
            "backlog", "Deliveries that wait, run or are dead, each up to 10,001.", ("subscription", "state"), backlog
        )
        due = [((each.name,), each.oldest_due.total_seconds()) for each in depths.subscriptions]
        yield _gauge("oldest_due_seconds", "For how long the first of them has been due.", ("subscription",), due)


def _named(
    names: Mapping[int, str], counts: Mapping[int, _Counts], nothing: _Counts | None = None
) -> Iterator[tuple[str, _Counts]]:
    """Yield the counts of each subscription that there is, by its name; those of one without any are `nothing`."""
    for id, name in names.items():
        found = counts.get(id, nothing)
        if found is not None:
            yield name, found


Labelled = Iterable[tuple[tuple[str, ...], float]]


def _counter(name: str, what: str, labels: tuple[str, ...], values: Labelled) -> Metric:
    family = CounterMetricFamily(f"runner_{name}", what, labels=labels)
    for each, value in values:
        family.add_metric(each, value)
    return family


def _gauge(name: str, what: str, labels: tuple[str, ...], values: Labelled) -> Metric:
    family = GaugeMetricFamily(f"runner_{name}", what, labels=labels)
    for each, value in values:
        family.add_metric(each, value)
    return family


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Histogram) -> None:
    buckets = [("+Inf" if bound == inf else f"{bound:g}", count) for bound, count in histogram.octaves()]
    family.add_metric(labels, buckets, histogram.total)
