"""The JSON forms of records, the same for the command line and HTTP."""

from __future__ import annotations

from typing import Any

from orjson import Fragment

from ..cloudevents import encode_json
from ..policies.breaker import Trip
from ..policies.schedule import Schedule
from ..storage.contract.audit import ActionView
from ..storage.contract.corrections import Rescheduled
from ..storage.contract.events import Receipt
from ..storage.contract.records import AttemptView, DeliveryView, EventView, InstanceView, SubscriptionView
from ..storage.contract.schedules import ScheduleView
from ..subscription import Destination

__all__ = [
    "action_json",
    "attempt_json",
    "delivery_json",
    "event_json",
    "instance_json",
    "plan_json",
    "receipt_json",
    "rescheduled_json",
    "schedule_json",
    "subscription_json",
]


def event_json(view: EventView) -> dict[str, Any]:
    """Return an event: its record, and under `event` the CloudEvent in JSON format."""
    return {
        "seq": view.seq,
        "state": view.state,
        "created_at": view.created_at,
        "due_at": view.due_at,
        "deliveries": dict(view.deliveries),
        "event": Fragment(encode_json(view.event)),
    }


def delivery_json(view: DeliveryView, held_by: str | None) -> dict[str, Any]:
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
        "held_by": held_by,
        "last_error": view.last_error,
        "updated_at": view.updated_at,
    }


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


def subscription_json(view: SubscriptionView) -> dict[str, Any]:
    """Return a subscription; `deliveries` counts those that are not delivered, by state."""
    registered = view.registered
    return {
        "name": registered.subscription.name,
        "active": view.active,
        "paused": registered.paused,
        "paused_at": registered.paused_at,
        "paused_by": registered.paused_by,
        "origin": registered.origin,
        "expired": registered.expired,
        **registered.subscription.to_json(),
        "destination": _destination(registered.subscription.destination),
        "expires_at": registered.subscription.expires_at,
        **_breaker(registered.breaker),
        "deliveries": dict(view.deliveries),
    }


def _destination(destination: Destination | None) -> dict[str, Any] | None:
    """Return the destination that a subscription brought with it, `***` in place of what is secret."""
    return None if destination is None else {destination.kind: dict(destination.shown)}


def _breaker(trip: Trip | None) -> dict[str, Any]:
    """Return the state of a breaker; `breaker_left` is the seconds until a delivery may be tried."""
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
        "strategies": None if view.strategies is None else [each._asdict() for each in view.strategies],
        "configuration": None if view.configuration is None else view.configuration._asdict(),
    }


def action_json(view: ActionView) -> dict[str, Any]:
    """Return an action of the audit log."""
    return {
        "seq": view.seq,
        "at": view.at,
        "who": view.action.actor,
        "action": view.action.name,
        "target": view.action.target,
        "parameters": dict(view.action.parameters or {}),
        "outcome": view.outcome.value,
        "touched": view.touched,
        "detail": view.detail,
        "ended_at": view.ended_at,
    }


def rescheduled_json(seq: int, moved: Rescheduled) -> dict[str, Any]:
    """Return what was moved to another time: the event as a whole, or so many of its deliveries."""
    return {
        "seq": seq,
        "due_at": moved.due_at,
        "event": moved.whole,
        "deliveries": moved.deliveries,
        "running": moved.running,
    }


def schedule_json(view: ScheduleView) -> dict[str, Any]:
    """Return a schedule; durations are in seconds. `next_at` is the time of its next event, due at `due_at`."""
    plan = plan_json(view.schedule)
    return {
        "name": plan.pop("name"),
        "state": view.state,
        "active": view.active,
        "paused": view.paused,
        "paused_at": view.paused_at,
        "paused_by": view.paused_by,
        "origin": view.origin,
        **plan,
        "next_at": view.tick,
        "due_at": view.due_at,
        "last_at": view.last_tick,
        "missed": view.missed,
        "skipped": view.skipped,
        "updated_at": view.updated_at,
    }


def plan_json(schedule: Schedule) -> dict[str, Any]:
    """Return what a schedule says; durations are in seconds."""
    stored = schedule.to_json()
    data = stored["event"].pop("data")
    stored["event"]["data"] = None if data is None else Fragment(data)
    return {"name": schedule.name, **stored}


def receipt_json(receipt: Receipt) -> dict[str, Any]:
    """Return a receipt."""
    return {"id": receipt.id, "source": receipt.source, "seq": receipt.seq, "duplicate": receipt.duplicate}
