"""The verdict on a deployment: from a snapshot of the store to findings, each with its cause and its cure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum
from math import ceil
from typing import Literal, get_args

from ..config.duration import format_duration
from ..event import Event
from ..storage.contract.overview import MOST, RECENT, SAMPLE, Load, Queue, Recent
from ..storage.contract.records import InstanceView
from ..storage.contract.registry import Registered
from ..storage.contract.throughput import BUS, Flow, Throughput
from .figures import age, number
from .shares import shares, sinks_of

__all__ = [
    "STATES",
    "Finding",
    "Report",
    "Snapshot",
    "Subscribed",
    "Verdict",
    "judge",
    "snapshot",
    "unreachable",
    "unserved",
]

LATE = timedelta(minutes=1)
"""How long an event may wait to be dispatched, or a subscription fail, before the deployment counts as degraded."""

State = Literal[
    "nobody serves it", "breaker open", "breaker half-open", "failing", "paused", "active", "inactive", "expired"
]
STATES: Sequence[State] = get_args(State)
"""The states of subscriptions, the most urgent first."""

_WELL = STATES[STATES.index("active") :]
_HELD: Sequence[State] = ("nobody serves it", "breaker open", "paused", "inactive")  # nothing is delivered meanwhile
_ORDINARY = Recent()


class Verdict(IntEnum):
    """How a deployment is; its value is the exit code."""

    HEALTHY = 0
    DEGRADED = 1
    DOWN = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One finding for an operator. With the verdict `HEALTHY` it is a note.

    Attributes:
        kind: a stable name, such as `dead_letters`.
        subject: the subscription or the strategy; empty for the whole deployment.
    """

    verdict: Verdict
    kind: str
    subject: str
    cause: str
    cure: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribed:
    """
    One subscription and its workload.

    Attributes:
        undispatched: how many events that are not dispatched yet it matches; an estimate unless `exact`.
        served: whether a live instance has its sink; None where that is not known.
        oldest_at: when the oldest event that waits for it was recorded.
        rate_in: events recorded per second in the last minute that it matches; None where these were not looked at.
        flow: what the instances have counted for it in the last minutes.
        counted_rate: deliveries per second in these, where the last deliveries on record are of less than a minute.
    """

    registered: Registered
    active: bool
    load: Load = field(default_factory=Load)
    recent: Recent = _ORDINARY
    undispatched: int = 0
    exact: bool = True
    served: bool | None = None
    oldest_at: datetime | None = None
    rate_in: float | None = None
    flow: Flow = field(default_factory=Flow)
    counted_rate: float | None = None

    @property
    def name(self) -> str:
        """Its name."""
        return self.registered.subscription.name

    @property
    def backlog(self) -> int:
        """How many events wait for it or run, those that are not dispatched yet included."""
        return self.load.open + self.undispatched

    @property
    def failing_since(self) -> datetime | None:
        """The time of the first failure since the last success; None if no failed delivery waits."""
        start, success, failure = self.load.failing_from, self.recent.last_success, self.recent.last_failure
        if start is None or success is None or success < start:
            return start
        return failure if failure is not None and failure > success else None

    @property
    def state(self) -> State:
        """The state in a few words."""
        if self.registered.expired:
            return "expired"
        if not self.active:
            return "inactive"
        if self.registered.paused:
            return "paused"
        if self.served is False:
            return "nobody serves it"
        trip = self.registered.breaker
        if trip is not None:
            return "breaker open" if trip.left > timedelta(0) else "breaker half-open"
        return "active" if self.failing_since is None else "failing"

    @property
    def ill(self) -> bool:
        """Whether it needs a look: something keeps its deliveries back."""
        return self.state not in _WELL

    def rate(self, now: datetime) -> float:
        """Return the deliveries per second of the last minute, or of the last minutes that were counted."""
        if self.counted_rate is not None:
            return self.counted_rate
        window = RECENT if self.recent.since is None else min(RECENT, now - self.recent.since)
        return self.recent.delivered / max(window.total_seconds(), 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state of the store at one moment, by its own clock."""

    queue: Queue
    instances: Sequence[InstanceView]
    subscriptions: Sequence[Subscribed]
    throughput: Throughput = field(default_factory=Throughput)

    @property
    def now(self) -> datetime:
        """The moment."""
        return self.queue.now

    @property
    def live(self) -> Sequence[InstanceView]:
        """The instances that report."""
        return [each for each in self.instances if each.alive]

    @property
    def rate_in(self) -> float:
        """The events per second recorded in the last minute."""
        return _rate_in(self.queue)

    @property
    def rate_published(self) -> float:
        """The events per second that the instances have published in the last minutes."""
        return self.throughput.rate(self.throughput.of(BUS).published)

    def drain(self, each: Subscribed) -> timedelta | None:
        """Return the time to the end of a backlog at the rate of the last minute; None if that is never, or held."""
        rate = each.rate(self.now)
        drains = self.live and rate > 0 and each.backlog and each.state not in _HELD
        return timedelta(seconds=each.backlog / rate) if drains else None


@dataclass(frozen=True, slots=True)
class Report:
    """The verdict, what it rests on (the worst first), and the snapshot; None where the store cannot be asked."""

    verdict: Verdict
    findings: Sequence[Finding]
    snapshot: Snapshot | None


def snapshot(
    queue: Queue,
    undispatched: Sequence[Event],
    instances: Sequence[InstanceView],
    known: Sequence[tuple[Registered, bool]],
    loads: Mapping[int, Load],
    recent: Mapping[int, Recent],
    throughput: Throughput | None = None,
    recorded: Sequence[Event] | None = None,
) -> Snapshot:
    """
    Return the snapshot made of the parts.

    Args:
        undispatched: the first of the queue.
        recorded: the last of those recorded within a minute; None if they were not read.
    """
    counted = throughput or Throughput()
    since = min((each.since for each in recent.values() if each.since is not None), default=None)
    # then deliveries of a busy subscription may have crowded out those of a slow one
    short = since is not None and queue.now - since < RECENT
    active_ones = [each for each, active in known if active]
    share, incoming = shares(undispatched, active_ones), shares(recorded or (), active_ones)
    rate_in = _rate_in(queue) / max(len(recorded or ()), 1)
    scale = queue.queued / len(undispatched) if len(undispatched) < queue.queued and undispatched else 1.0
    there = sinks_of(instances)
    made = []
    for each, active in known:
        load, matching = loads.get(each.id, Load()), share.get(each.id, 0)
        flow = counted.of(each.id)
        oldest = [at for at in (load.oldest_at, queue.oldest_at if matching else None) if at is not None]
        made.append(
            Subscribed(
                registered=each,
                active=active,
                load=load,
                recent=recent.get(each.id, _ORDINARY),
                undispatched=ceil(matching * scale),
                exact=scale == 1.0 and load.open <= MOST,
                served=None if there is None else each.subscription.sink in there,
                oldest_at=min(oldest, default=None),
                rate_in=None if recorded is None else rate_in * incoming.get(each.id, 0),
                flow=flow,
                counted_rate=counted.rate(flow.delivered) if short and flow.delivered else None,
            )
        )
    return Snapshot(queue=queue, instances=instances, subscriptions=made, throughput=counted)


def _rate_in(queue: Queue) -> float:
    window = RECENT
    if queue.recorded >= SAMPLE and queue.recorded_since is not None:
        window = min(RECENT, queue.now - queue.recorded_since)
    return queue.recorded / max(window.total_seconds(), 1.0)


def judge(seen: Snapshot) -> Report:
    """Return the verdict on a snapshot."""
    found = [*_instances(seen), *_strategies(seen), *_queue(seen)]
    for each in seen.subscriptions:
        found += _subscription(each, seen.now)
    found.sort(key=lambda finding: -finding.verdict)  # stable: equal verdicts keep their order
    return Report(max((each.verdict for each in found), default=Verdict.HEALTHY), found, seen)


def unreachable(reason: str, cure: str, kind: str = "store_away") -> Report:
    """Return the verdict for a store that cannot be reached."""
    return Report(Verdict.DOWN, [Finding(Verdict.DOWN, kind, "", reason, cure)], None)


def _instances(seen: Snapshot) -> Iterable[Finding]:
    live = seen.live
    if not live:
        waiting = seen.queue.queued + sum(each.load.open for each in seen.subscriptions)
        last = max((each.heartbeat_at for each in seen.instances), default=None)
        heard = "" if last is None else f"; the last report is {age(last, seen.now)} old"
        cause = f"no live instance: nothing is delivered{heard}; {number(waiting)} waiting"
        yield Finding(Verdict.DOWN, "no_live_instance", "", cause, "start one: runner start -c FILE")
        return
    stuck = [each for each in live if each.state == "stuck"]
    if stuck:
        verdict = Verdict.DOWN if len(stuck) == len(live) else Verdict.DEGRADED
        cause = f"{len(stuck)} of {len(live)} instances look for no work ({_places(stuck)})"
        yield Finding(verdict, "stuck_instance", "", cause, "read their logs; if they say nothing, restart them")
    yield from _kept(live)
    silent = [each for each in seen.instances if not each.alive]
    if silent:
        cause = f"{len(silent)} instances ended without a word or cannot report ({_places(silent)})"
        cure = "look at the process and its log; one that is gone is forgotten after a day"
        yield Finding(Verdict.HEALTHY, "silent_instance", "", cause, cure)


def _kept(live: Sequence[InstanceView]) -> Iterable[Finding]:
    """Yield the instances that could not take the current file."""
    kept = [each for each in live if each.configuration is not None and each.configuration.kept]
    if kept:
        faults = [fault for each in kept if each.configuration is not None for fault in each.configuration.faults]
        first = f": {faults[0]}" if faults else ""
        cause = f"{len(kept)} of {len(live)} instances go on with the file they had ({_places(kept)}){first}"
        yield Finding(Verdict.HEALTHY, "not_reloaded", "", cause, "mend the file and reload, or restart them")


def _strategies(seen: Snapshot) -> Iterable[Finding]:
    told = [(instance, each) for instance in seen.live for each in instance.strategies or ()]
    for name in dict.fromkeys(each.name for _, each in told):
        deaf = [(instance, each) for instance, each in told if each.name == name and each.hears is False]
        if not deaf:
            continue
        all_of_it = sum(each.name == name for _, each in told)
        detail = next((each.detail for _, each in deaf if each.detail), "")
        there = [instance for instance, _ in deaf]
        polling = next((f", {each.detail}" for at, each in told if each.name == "polling" and at in there), "")
        cause = (
            f"{name} is deaf on {len(deaf)} of {all_of_it} instances ({_places(there)})"
            f"{': ' + detail if detail else ''}; events are found by polling there{polling}"
        )
        cure = "see that its server runs and can be reached: runner check -c FILE --online"
        yield Finding(Verdict.DEGRADED, "deaf", name, cause, cure)


def _queue(seen: Snapshot) -> Iterable[Finding]:
    oldest = seen.queue.oldest_at
    if seen.live and oldest is not None and seen.now - oldest >= LATE:
        cause = f"{number(seen.queue.queued)} events are not dispatched, the oldest for {age(oldest, seen.now)}"
        yield Finding(
            Verdict.DEGRADED, "late_queue", "", cause, "start more instances, or read the logs of those that run"
        )


def _subscription(each: Subscribed, now: datetime) -> Iterable[Finding]:
    name, backlog = each.name, f"{number(each.backlog, exact=each.exact)} waiting"
    if each.load.dead:
        why = f"; the last error: {each.recent.last_error}" if each.recent.last_error else ""
        late = f", {number(each.load.expired)} of them expired undelivered" if each.load.expired else ""
        cause = f"{number(each.load.dead)} dead deliveries{late}{why}"
        look, again = f"runner deliveries list --state dead --subscription {name}", each.load.dead - each.load.expired
        late = "those that expired would be late again: publish what is still wanted anew, with another id"
        retry = f"once the cause is mended runner deliveries retry --subscription {name}"
        cure = "; ".join([look, *([retry] if again else []), *([late] if each.load.expired else [])])
        yield Finding(Verdict.DEGRADED, "dead_letters", name, cause, cure)
    if not each.active and not each.registered.expired:
        if each.load.open:
            cause = f"it is in no file any more; {backlog}"
            cure = f"put it back, or runner deliveries cancel --subscription {name}"
            yield Finding(Verdict.HEALTHY, "inactive", name, cause, cure)
        return
    if each.registered.paused:
        registered = each.registered
        since = "" if registered.paused_at is None else f" {age(registered.paused_at, now)} ago"
        cause = f"{registered.paused_by or 'somebody'} paused it{since}; {backlog}"
        yield Finding(Verdict.HEALTHY, "paused", name, cause, f"runner subscriptions resume {name}")
        return
    if each.served is False:
        yield _unserved(each, backlog)
        return
    yield from _failing(each, backlog, now)


def _unserved(each: Subscribed, backlog: str) -> Finding:
    cause, cure = unserved(each.registered)
    return Finding(Verdict.DEGRADED, "nobody_serves", each.name, f"{cause}; {backlog}", cure)


def unserved(registered: Registered) -> tuple[str, str]:
    """Return cause and cure of a subscription that nobody serves."""
    subscription = registered.subscription
    if registered.origin == "file":
        cure = "start an instance whose file has the sink"
    elif subscription.destination is not None:
        cure = "read the logs of those that run: they say why they cannot open its destination (sealing.keys)"
    else:
        cure = f"start the program that subscribes it, or end it: runner subscriptions remove {subscription.name}"
    return f"nobody serves it: no live instance has the sink {subscription.sink!r}", cure


def _failing(each: Subscribed, backlog: str, now: datetime) -> Iterable[Finding]:
    since, trip = each.failing_since, each.registered.breaker
    how_long = "" if since is None else f"; failing for {age(since, now)}"
    why = f"; the last error: {each.recent.last_error}" if each.recent.last_error else ""
    cure = f"mend the receiver; it is tried again by itself, or at once: runner subscriptions resume {each.name}"
    if trip is not None:
        left = format_duration(timedelta(seconds=ceil(trip.left.total_seconds())))
        how = f"open, tried again in {left}" if trip.left > timedelta(0) else "half-open, being tried"
        yield Finding(
            Verdict.DEGRADED, "breaker_open", each.name, f"its breaker is {how}{how_long}; {backlog}{why}", cure
        )
    elif since is not None and now - since >= LATE:
        cause = f"nothing has succeeded for {age(since, now)}; {backlog}{why}"
        cure = "mend the receiver; what failed is tried again by itself"
        yield Finding(Verdict.DEGRADED, "failing", each.name, cause, cure)


def _places(instances: Iterable[InstanceView]) -> str:
    """Return where instances run, the first three of them."""
    places = [f"{each.instance.host}:{each.instance.pid}" for each in instances]
    return ", ".join(places[:3]) + (", …" if len(places) > 3 else "")
