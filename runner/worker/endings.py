"""Which claimed events are not to be delivered any more, and why."""

from __future__ import annotations

from collections.abc import Mapping

from ..event import NO_EXTENSIONS
from ..storage.contract.claims import Claim
from ..tracing.causation import hops_of

__all__ = ["endings"]


def endings(claim: Claim, max_hops: int) -> Mapping[int, str]:
    """Return the reasons for which events of `claim` end undelivered, by their positions."""
    told = [work for work in claim.works if work.event.extensions is not NO_EXTENSIONS]
    reasons = {}
    for work in told:
        hops = hops_of(work.event)
        if hops > max_hops:
            reasons[work.position] = (
                f"{hops} events led to this one, each published by a handler of the one before, and worker.max_hops is"
                f" {max_hops}: handlers that go round in a circle"
            )
    return reasons
