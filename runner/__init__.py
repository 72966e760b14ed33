"""A durable event bus, built from one YAML file and run.

from runner import Event, load

runner = load("bus.yaml")
runner.subscribe("greeter", greet, types=["order.*"])
async with runner:
    await runner.publish(Event.new("order.created", {"n": 1}, source="/shop"))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .service.version import __version__

if TYPE_CHECKING:
    from .builder import load
    from .bus.bus import EventBus
    from .delivery import ACCEPTED, Accepted, Deferred, Delivery, Failed, Outcome, Rejected
    from .errors import (
        ConfigError,
        EventConflict,
        EventError,
        NotFound,
        RunnerError,
        StateConflict,
        StorageUnavailable,
    )
    from .event import Event
    from .policies.schedule import EventTemplate, Schedule
    from .runtime.runner import Runner
    from .sinks.base import Sink
    from .storage.contract.events import Publication, Receipt
    from .strategies.base import NotifyStrategy, PushStrategy
    from .strategies.stack import compose
    from .tracing.causation import caused_by

__all__ = [
    "ACCEPTED",
    "Accepted",
    "ConfigError",
    "Deferred",
    "Delivery",
    "Event",
    "EventBus",
    "EventConflict",
    "EventError",
    "EventTemplate",
    "Failed",
    "NotFound",
    "NotifyStrategy",
    "Outcome",
    "Publication",
    "PushStrategy",
    "Receipt",
    "Rejected",
    "Runner",
    "RunnerError",
    "Schedule",
    "Sink",
    "StateConflict",
    "StorageUnavailable",
    "__version__",
    "caused_by",
    "compose",
    "load",
]

# Where each name lives: imported when it is first asked for, so that the command line answers at once.
_HOMES = {
    "load": "builder",
    "EventBus": "bus.bus",
    **dict.fromkeys(("ACCEPTED", "Accepted", "Deferred", "Delivery", "Failed", "Outcome", "Rejected"), "delivery"),
    **dict.fromkeys(("ConfigError", "EventConflict", "EventError", "NotFound", "RunnerError"), "errors"),
    **dict.fromkeys(("StateConflict", "StorageUnavailable"), "errors"),
    "Event": "event",
    "Runner": "runtime.runner",
    **dict.fromkeys(("EventTemplate", "Schedule"), "policies.schedule"),
    "Sink": "sinks.base",
    **dict.fromkeys(("Publication", "Receipt"), "storage.contract.events"),
    **dict.fromkeys(("NotifyStrategy", "PushStrategy"), "strategies.base"),
    "caused_by": "tracing.causation",
    "compose": "strategies.stack",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
