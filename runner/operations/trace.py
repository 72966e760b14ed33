"""The tree of a trace: which event led to which, in the order in which they were recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..tracing.causation import CAUSATION, hops_of

if TYPE_CHECKING:
    from ..storage.contract.records import DeliveryView, EventView, TraceView

__all__ = ["Branch", "branches", "trace_json", "walk"]


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """One event of a trace, and the events it led to."""

    view: EventView
    deliveries: Sequence[DeliveryView]
    children: list[Branch] = field(default_factory=list)


def branches(trace: TraceView) -> Sequence[Branch]:
    """
    Return the events that no other one of the trace led to, each with what followed from it.

    An event names its cause by the id alone. Of several events of that id, each of another source, it is the last one
    that was recorded before, for an effect has a higher seq than its cause.
    """
    roots: list[Branch] = []
    by_id: dict[str, Branch] = {}
    for view in trace.events:
        branch = Branch(view, trace.deliveries.get(view.seq, ()))
        parent = by_id.get(view.event.attribute(CAUSATION) or "")
        (roots if parent is None else parent.children).append(branch)
        by_id[view.event.id] = branch
    return roots


def walk(roots: Sequence[Branch]) -> Iterator[tuple[Branch, Branch | None, int]]:
    """Yield every branch with the one it grows from and its depth, each before those that grow from it."""
    left: list[tuple[Branch, Branch | None, int]] = [(root, None, 0) for root in reversed(roots)]
    while left:
        branch, parent, depth = left.pop()
        yield branch, parent, depth
        left += [(child, branch, depth + 1) for child in reversed(branch.children)]


def trace_json(trace: TraceView) -> Mapping[str, Any]:
    """Return a trace as one object; `parent` is the seq of the event that led to another, `hops` what it carries."""
    return {
        "correlationid": trace.correlation,
        "complete": trace.complete,
        "events": [
            {
                "seq": branch.view.seq,
                "parent": None if parent is None else parent.view.seq,
                "depth": depth,
                "id": branch.view.event.id,
                "source": branch.view.event.source,
                "type": branch.view.event.type,
                "subject": branch.view.event.subject,
                "causationid": branch.view.event.attribute(CAUSATION),
                "hops": hops_of(branch.view.event),
                "state": branch.view.state,
                "created_at": branch.view.created_at,
                "due_at": branch.view.due_at,
                "deliveries": [
                    {
                        "subscription": each.subscription,
                        "state": each.state.value,
                        "attempts": each.attempts,
                        "due_at": each.due_at,
                        "updated_at": each.updated_at,
                        "last_error": each.last_error,
                    }
                    for each in branch.deliveries
                ],
            }
            for branch, parent, depth in walk(branches(trace))
        ],
    }
