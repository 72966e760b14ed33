"""The contract of the audit log: one row for each action by a person or a program on the bus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol

__all__ = ["Action", "ActionOutcome", "ActionQuery", "ActionView", "Audit"]


class ActionOutcome(StrEnum):
    """
    The state of an action in the audit log.

    `BEGUN` is one that still runs, or whose process died in its middle: what it had done by then stays done.
    """

    BEGUN = "begun"
    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Action:
    """
    One action on the bus.

    Attributes:
        actor: who does it: `cli:USER@HOST`, `api:TOKEN`, `dashboard:TOKEN`, `library` or `runner`.
        name: what is done, such as `deliveries.retry`.
        target: what it is done to: the name of a subscription or schedule, an event, a delivery; None for a selection.
        parameters: values JSON can hold, none of them a secret.
    """

    actor: str
    name: str
    target: str | None = None
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ActionView:
    """
    An action on record.

    Attributes:
        seq: its number; a later action has a higher one.
        at: when it began, by the clock of the store.
        ended_at: when it ended; None for one that is `BEGUN`.
        touched: how many deliveries, events, subscriptions or schedules it changed.
        detail: why it was refused, failed or interrupted.
    """

    seq: int
    at: datetime
    action: Action
    outcome: ActionOutcome
    ended_at: datetime | None
    touched: int
    detail: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionQuery:
    """
    Selection of actions; all conditions hold.

    `actor` and `name` are patterns (`*`), `since` and `until` bound the time at which they began.
    """

    actor: str | None = None
    name: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    before_seq: int | None = None
    limit: int = 100


class Audit(Protocol):
    """The seam of the audit log. Not on the hot path."""

    async def begin(self, action: Action) -> int:
        """Record that an action begins, committed when this returns; return its number."""

    async def end(self, seq: int, outcome: ActionOutcome, touched: int, detail: str | None = None) -> None:
        """Record the end of an action. Does nothing for one that has ended."""

    async def actions(self, query: ActionQuery) -> Sequence[ActionView]:
        """Return the actions that match, the newest first."""

    async def prune(self, keep: timedelta, limit: int) -> int:
        """Delete, of the oldest `limit` actions, those that began longer ago; return how many."""
