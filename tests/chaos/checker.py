"""What must hold after a case, from the journals and the tables alone: pure, and the same for every fault."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf

from .journals import Publishing, Sighting

__all__ = ["Row", "Tables", "Verdict", "judge"]

Pair = tuple[str, str]  # id of an event, name of a subscription


@dataclass(frozen=True, slots=True)
class Row:
    """A delivery as the store has it."""

    state: str
    attempts: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Tables:
    """
    What the store holds at the end.

    Attributes:
        recorded: how often each id is there.
        work: rows of work (dispatch and scheduled) that are left.
        leases: rows that are still leased.
        rewritten: deliveries that were changed after they had been final.
    """

    recorded: Counter[str]
    deliveries: Mapping[Pair, Row]
    work: int = 0
    leases: int = 0
    rewritten: Sequence[Pair] = ()


@dataclass(slots=True)
class Verdict:
    """
    What became of every event.

    Attributes:
        published: acknowledged, or found in the store although the publisher got no answer.
        unknown: never answered; they may be in the store or not.
        delivered: pairs that their subscriber accepted.
        lost: pairs that were due to be accepted and were neither that nor dead with a reason.
        unexpected: what was seen or stored and should not have been, each with its reason.
        duplicated: deliveries begun beyond the first one of a pair, those after a failure left aside.
        untrue: final rows that do not tell of the last delivery, or were written twice: a stale writer won.
        recovered: seconds from the worst fault until all whose publishing had begun before it had been accepted.
        shares: how many deliveries each process accepted.
    """

    published: int = 0
    unknown: int = 0
    delivered: int = 0
    lost: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    duplicated: int = 0
    untrue: list[str] = field(default_factory=list)
    recovered: float = 0.0
    shares: Counter[int] = field(default_factory=Counter)


def judge(
    publishings: Sequence[Publishing],
    sightings: Sequence[Sighting],
    tables: Tables,
    subscriptions: Mapping[str, str],
    *,
    faults: Sequence[float] = (),
    series: float = 0.0,
    least_wait: Callable[[int], float] = lambda attempt: 0.0,
    max_attempts: int = 20,
) -> Verdict:
    """
    Hold what was seen against what was published.

    Args:
        subscriptions: the prefix of the types that each one takes.
        faults: the moments from which recovery counts: the end of each fault, or the fault where it has none.
        series: faults no further apart than so many seconds count as one, from the last of them.
        least_wait: the shortest wait in seconds after an attempt that failed.
    """
    invoked = {line.id: line for line in publishings if line.step == "invoke"}
    answers: dict[str, Publishing] = {}
    for line in publishings:
        if line.step != "invoke" and (line.id not in answers or line.step == "ok"):
            answers[line.id] = line
    verdict = Verdict()
    acknowledged = {id for id, line in answers.items() if line.step == "ok"}
    verdict.published = len(acknowledged | (invoked.keys() & tables.recorded.keys()))
    verdict.unknown = sum(id not in answers or answers[id].step == "unknown" for id in invoked)
    _check_records(verdict, invoked, answers, tables)

    seen: dict[Pair, list[Sighting]] = defaultdict(list)
    for sighting in sorted(sightings, key=lambda each: each.at):
        seen[sighting.id, sighting.subscription].append(sighting)
    for id in sorted(acknowledged | (invoked.keys() & tables.recorded.keys())):
        for name, prefix in subscriptions.items():
            if invoked[id].type.startswith(prefix):
                _check_pair(verdict, (id, name), seen.get((id, name), []), tables.deliveries.get((id, name)))
    _check_matches(verdict, invoked, tables, subscriptions)
    for pair, steps in seen.items():
        _check_sightings(verdict, pair, steps, invoked, subscriptions)
        _check_retries(verdict, pair, steps, least_wait, max_attempts)
    verdict.untrue += [f"{id} for {name}: changed after it was final" for id, name in tables.rewritten]
    if tables.work or tables.leases:
        verdict.lost.append(f"{tables.work} rows of work and {tables.leases} leases are left")
    verdict.shares = Counter(each.pid for each in sightings if each.step == "accepted")
    invoked_at = {id: line.at for id, line in invoked.items()}
    ends = [moment for moment, after in pairwise([*sorted(faults), inf]) if after - moment > series]
    verdict.recovered = max((_recovery(moment, invoked_at, seen) for moment in ends), default=0.0)
    return verdict


def _check_records(
    verdict: Verdict, invoked: Mapping[str, Publishing], answers: Mapping[str, Publishing], tables: Tables
) -> None:
    for id, answer in answers.items():
        if answer.step == "ok" and not tables.recorded[id]:
            verdict.lost.append(f"{id}: acknowledged, but not recorded")
        if answer.step == "fail" and tables.recorded[id]:
            verdict.unexpected.append(f"{id}: refused, but recorded")
    for id, count in tables.recorded.items():
        if id not in invoked:
            verdict.unexpected.append(f"{id}: recorded, but never published")
        if count > 1:
            verdict.unexpected.append(f"{id}: recorded {count} times")


def _check_matches(
    verdict: Verdict, invoked: Mapping[str, Publishing], tables: Tables, subscriptions: Mapping[str, str]
) -> None:
    """Check that nothing is on record for a subscription that does not take it."""
    for (id, name), row in tables.deliveries.items():
        if id in invoked and not invoked[id].type.startswith(subscriptions.get(name, "")):
            verdict.unexpected.append(f"{id} for {name}: {row.state} on record, but does not match")


def _check_pair(verdict: Verdict, pair: Pair, steps: Sequence[Sighting], row: Row | None) -> None:
    """Check one delivery that is owed."""
    id, name = pair
    accepted = any(step.step == "accepted" for step in steps)
    verdict.delivered += accepted
    if row is not None and row.state == "dead" and row.error:
        return
    if not accepted:
        verdict.lost.append(f"{id} for {name}: never accepted; the store says {row.state if row else 'nothing'}")
    elif row is None or row.state != "delivered":
        verdict.lost.append(f"{id} for {name}: accepted, but the store says {row.state if row else 'nothing'}")
    else:
        begun = [step for step in steps if step.step == "begun"]
        last = max(begun, key=lambda step: step.at)
        # A worker that was paused may begin the first attempt after the others have ended the second. The count begins
        # anew for what waits, so that the last one need not be the highest either.
        if row.attempts not in (last.attempt, max(step.attempt for step in begun)):
            verdict.untrue.append(f"{id} for {name}: attempt {last.attempt} came last, the store says {row.attempts}")


def _check_sightings(
    verdict: Verdict,
    pair: Pair,
    steps: Sequence[Sighting],
    invoked: Mapping[str, Publishing],
    subscriptions: Mapping[str, str],
) -> None:
    """Check what a subscriber saw of one event, whether or not that was owed."""
    id, name = pair
    event = invoked.get(id)
    if event is None:
        verdict.unexpected.append(f"{id} for {name}: never published")
    elif name not in subscriptions or not event.type.startswith(subscriptions[name]):
        verdict.unexpected.append(f"{id} for {name}: does not match")
    elif any(step.hash != event.hash for step in steps):
        verdict.unexpected.append(f"{id} for {name}: another body than was published")
    counts = Counter(step.step for step in steps)
    verdict.duplicated += max(0, counts["begun"] - counts["failed"] - 1)


def _check_retries(
    verdict: Verdict, pair: Pair, steps: Sequence[Sighting], least_wait: Callable[[int], float], max_attempts: int
) -> None:
    """Check what came after each attempt that failed."""
    id, name = pair
    if any(step.attempt > max_attempts for step in steps):
        verdict.unexpected.append(f"{id} for {name}: more than {max_attempts} attempts")
    for failed, then in pairwise(steps):
        if failed.step != "failed":
            continue
        if then.attempt <= failed.attempt:
            verdict.unexpected.append(f"{id} for {name}: attempt {then.attempt} after {failed.attempt} had failed")
        elif then.at - failed.at < least_wait(failed.attempt):
            verdict.unexpected.append(f"{id} for {name}: tried again {then.at - failed.at:.3f} s after a failure")


def _recovery(moment: float, invoked_at: Mapping[str, float], seen: Mapping[Pair, Sequence[Sighting]]) -> float:
    """Return the seconds from `moment` until all whose publishing had begun by then had been accepted."""
    last = moment
    for (id, _), steps in seen.items():
        if invoked_at.get(id, moment) < moment:
            last = max(last, min((step.at for step in steps if step.step == "accepted"), default=moment))
    return last - moment
