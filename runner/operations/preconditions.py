"""Preconditions of a change, by entity tags (RFC 9110 §13.1): the state that it requires."""

from __future__ import annotations

import hashlib
from collections.abc import Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from ..errors import ChangedMeanwhile

if TYPE_CHECKING:
    from ..storage.contract.registry import Registered
    from ..storage.contract.schedules import ScheduleView

__all__ = ["UNCONDITIONAL", "Precondition", "schedule_tag", "subscription_tag"]

_ANY = "*"


@dataclass(frozen=True, slots=True)
class Precondition:
    """
    The state that a change is meant for.

    Attributes:
        match: it has one of these tags; `*`: there is one. None: whatever it has.
        none_match: it has none of these tags; `*`: there is none.
    """

    match: Set[str] | None = None
    none_match: Set[str] = frozenset()

    def check(self, tag: str | None) -> None:
        """
        Check the tag of the current state; None if the object does not exist.

        Raises:
            ChangedMeanwhile: the change is meant for another state.
        """
        if self.match is not None and (tag is None or not self.match & {_ANY, tag}):
            raise ChangedMeanwhile("it is not what If-Match names; read it again")
        if tag is not None and self.none_match & {_ANY, tag}:
            raise ChangedMeanwhile("there is one already")

    def check_subscription(self, known: Registered | None) -> None:
        """Check a subscription, or that there is none; see `check()`."""
        self.check(None if known is None else subscription_tag(known))

    def check_schedule(self, known: ScheduleView | None) -> None:
        """Check a schedule, or that there is none; see `check()`."""
        self.check(None if known is None else schedule_tag(known))


UNCONDITIONAL = Precondition()
"""Allow any state."""


def subscription_tag(registered: Registered) -> str:
    """Return the entity tag of a subscription: it changes with what was put."""
    return _tag([registered.origin, registered.subscription.to_json()])


def schedule_tag(view: ScheduleView) -> str:
    """Return the entity tag of a schedule: it changes with what was put."""
    return _tag([view.origin, view.schedule.to_json()])


def _tag(content: Any) -> str:
    spec = orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
    return f'"{hashlib.sha256(spec).hexdigest()[:24]}"'
