"""The shapes in which records are printed: one JSON object, and one row of a table, for each kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orjson import Fragment

from ..breaker import Trip
from ..cloudevents import encode_json
from ..storage.base import Receipt, Registered
from ..storage.views import AttemptView, DeliveryView, EventView, InstanceView

__all__ = [
    "DELIVERY_COLUMNS",
    "DELIVERY_SPARE",
    "EVENT_COLUMNS",
    "EVENT_SPARE",
    "attempt_json",
    "counts",
    "delivery_json",
    "delivery_row",
    "event_json",
    "event_row",
    "instance_json",
    "receipt_json",
    "subscription_json",
]

EVENT_COLUMNS = ("seq", "type", "source", "id", "state", "created", "due", "deliveries")
EVENT_SPARE = ("source", "created", "deliveries", "due")
DELIVERY_COLUMNS = ("seq", "subscription", "type", "state", "attempts", "due", "updated", "error")
DELIVERY_SPARE = ("updated", "due", "type", "attempts")


def event_json(view: EventView) -> dict[str, Any]:
    """Return an event: what the store knows of it, and under `event` the CloudEvent in its JSON format."""
    return {
        "seq": view.seq,
        "state": view.state,
        "created_at": view.created_at,
        "due_at": view.due_at,
        "deliveries": dict(view.deliveries),
        "event": Fragment(encode_json(view.event)),
    }


def event_row(view: EventView) -> tuple[object, ...]:
    """Return an event as the cells of `EVENT_COLUMNS`."""
    event, deliveries = view.event, counts(view.deliveries)
    return (view.seq, event.type, event.source, event.id, view.state, view.created_at, view.due_at, deliveries)


def delivery_json(view: DeliveryView) -> dict[str, Any]:
    """Return a delivery; `seq`, `source`, `id` and `type` are those of its event."""
    return {
        "seq": view.seq,
        "subscription": view.subscription,
        "source": view.event_source,
        "id": view.event_id,
        "type": view.event_type,
        "state": view.state.value,
        "attempts": view.attempts,
        "due_at": view.due_at,
        "last_error": view.last_error,
        "updated_at": view.updated_at,
    }


def delivery_row(view: DeliveryView) -> tuple[object, ...]:
    """Return a delivery as the cells of `DELIVERY_COLUMNS`."""
    return (
        view.seq,
        view.subscription,
        view.event_type,
        view.state.value,
        view.attempts,
        view.due_at,
        view.updated_at,
        view.last_error,
    )


def attempt_json(view: AttemptView) -> dict[str, Any]:
    """Return an attempt; `duration` is in seconds."""
    return {
        "number": view.number,
        "at": view.at,
        "duration": view.duration.total_seconds(),
        "status": view.status,
        "error": view.error,
        "excerpt": view.excerpt,
    }


def subscription_json(registered: Registered, active: bool, open_deliveries: Mapping[str, int]) -> dict[str, Any]:
    """Return a subscription; `deliveries` counts those that are not delivered, by state."""
    return {
        "name": registered.subscription.name,
        "active": active,
        "paused": registered.paused,
        "origin": registered.origin,
        **registered.subscription.to_json(),
        **_breaker(registered.breaker),
        "deliveries": dict(open_deliveries),
    }


def _breaker(trip: Trip | None) -> dict[str, Any]:
    """Return how a breaker is; `breaker_left` is the seconds until a delivery may be tried."""
    left = None if trip is None else max(0.0, trip.left.total_seconds())
    state = "closed" if left is None else "open" if left else "half-open"
    return {"breaker_state": state, "breaker_left": left, "breaker_trips": 0 if trip is None else trip.number}


def instance_json(view: InstanceView) -> dict[str, Any]:
    """Return an instance; `lag` is in seconds."""
    return {
        "id": view.instance.id,
        "host": view.instance.host,
        "pid": view.instance.pid,
        "version": view.instance.version,
        "started_at": view.started_at,
        "heartbeat_at": view.heartbeat_at,
        "alive": view.alive,
        "state": view.state,
        "progress_at": view.progress_at,
        "lag": None if view.lag is None else view.lag.total_seconds(),
        "running": view.running,
        "sinks": view.sinks,
    }


def receipt_json(receipt: Receipt) -> dict[str, Any]:
    """Return a receipt in the shape the HTTP API answers with, too."""
    return {"id": receipt.id, "source": receipt.source, "seq": receipt.seq, "duplicate": receipt.duplicate}


def counts(states: Mapping[str, int]) -> str:
    """Return how many deliveries are in each state, such as `2 delivered, 1 dead`."""
    return ", ".join(f"{number} {state}" for state, number in states.items() if number)
