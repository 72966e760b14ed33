"""Shares of the work: which sinks live instances have, and how many events each subscription matches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from ..event import Event
from ..storage.contract.claims import UNREADABLE
from ..storage.contract.records import InstanceView
from ..storage.contract.registry import Registered
from ..subscription import Matcher

__all__ = ["shares", "sinks_of"]


def sinks_of(instances: Iterable[InstanceView]) -> Set[str] | None:
    """Return the sinks that live instances have; None where none is alive, or one has not said."""
    said = [each.sinks for each in instances if each.alive]
    if not said or any(sinks is None for sinks in said):
        return None
    return {sink for sinks in said for sink in sinks or ()}


def shares(events: Iterable[Event], known: Iterable[Registered]) -> Mapping[int, int]:
    """Return how many of the events each subscription matches, by its id."""
    matcher = Matcher([(each.subscription, each.id) for each in known])
    counted: dict[int, int] = {}
    for event in events:
        try:
            matching = matcher.match(event)
        except UNREADABLE:
            continue  # reported with the dispatch
        for id in matching:
            counted[id] = counted.get(id, 0) + 1
    return counted
