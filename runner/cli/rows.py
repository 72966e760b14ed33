"""The tables in which records are printed: one row for each kind."""

from __future__ import annotations

from collections.abc import Mapping

from ..storage.contract.records import DeliveryView, EventView

__all__ = [
    "DELIVERY_COLUMNS",
    "DELIVERY_SPARE",
    "EVENT_COLUMNS",
    "EVENT_SPARE",
    "counts",
    "delivery_row",
    "event_row",
]

EVENT_COLUMNS = ("seq", "type", "source", "id", "state", "created", "due", "deliveries")
EVENT_SPARE = ("source", "created", "deliveries", "due")
DELIVERY_COLUMNS = ("seq", "subscription", "type", "state", "attempts", "due", "held by", "updated", "error")
DELIVERY_SPARE = ("updated", "due", "type", "attempts")


def event_row(view: EventView) -> tuple[object, ...]:
    """Return an event as the cells of `EVENT_COLUMNS`."""
    event, deliveries = view.event, counts(view.deliveries)
    return (view.seq, event.type, event.source, event.id, view.state, view.created_at, view.due_at, deliveries)


def delivery_row(view: DeliveryView, held_by: str | None) -> tuple[object, ...]:
    """Return a delivery as the cells of `DELIVERY_COLUMNS`."""
    return (
        view.seq,
        view.subscription,
        view.event_type,
        view.state.value,
        view.attempts,
        view.due_at,
        held_by,
        view.updated_at,
        view.last_error,
    )


def counts(states: Mapping[str, int]) -> str:
    """Return how many deliveries are in each state, such as `2 delivered, 1 dead`."""
    return ", ".join(f"{number} {state}" for state, number in states.items() if number)
