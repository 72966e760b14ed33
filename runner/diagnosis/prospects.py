"""Prospects of an unpublished event: the subscriptions that would get it, and why the others would not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..event import Event
from ..storage.contract.records import SubscriptionView
from ..storage.contract.registry import Registered
from ..subscription import Subscription
from .matching import Clause, mismatch
from .shapes import clause_json

__all__ = ["Prospect", "prospects", "prospects_json"]


@dataclass(frozen=True, slots=True)
class Prospect:
    """
    The prospect of an event for one subscription.

    Attributes:
        failing: the clause that fails; None if the event matches.
        held: what would hold the delivery back at first; None for nothing.
    """

    subscription: str
    failing: Clause | None
    held: str | None = None

    def __str__(self) -> str:
        if self.failing is not None:
            return f"no: {self.failing}"
        return "yes" if self.held is None else f"yes, later: {self.held}"


def prospects(event: Event, known: Sequence[SubscriptionView], file: Sequence[Subscription] = ()) -> list[Prospect]:
    """
    Return a prospect for each subscription that takes events, in the order of their names.

    Args:
        known: those in the store.
        file: those of a file, which may be newer than the store.
    """
    held = {each.registered.subscription.name: _held(each.registered) for each in known}
    active = [each.registered.subscription for each in known if each.active]
    current = {each.name: each for each in active}
    current |= {each.name: each for each in file}
    return [
        Prospect(name, failing := mismatch(subscription, event), held.get(name) if failing is None else None)
        for name, subscription in sorted(current.items())
        if subscription.dead_letter_of is None
    ]


def prospects_json(event: Event, found: Sequence[Prospect], due_at: datetime | None) -> dict[str, Any]:
    """Return the outcome of a dry run."""
    return {
        "dry_run": True,
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "due_at": due_at,
        "subscriptions": [
            {
                "name": each.subscription,
                "matched": each.failing is None,
                "failing": clause_json(each.failing),
                "held": each.held,
            }
            for each in found
        ],
    }


def _held(registered: Registered) -> str | None:
    if registered.paused:
        return "the subscription is paused"
    return None if registered.breaker is None else "its breaker is open"
