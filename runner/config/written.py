"""Parts of a configuration that come by the HTTP interface: read by the schema of the file, and refused as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..errors import ConfigError
from ..policies.schedule import Schedule
from ..subscription import Subscription
from .breaker import Breaker
from .errors import Fault, limited_effort
from .fields import Context
from .keys import known_keys
from .messages import describe
from .retry import Retry
from .schedules import ScheduleEntry
from .schema import SubscriptionEntry

__all__ = ["read_schedule", "read_subscription"]

M = TypeVar("M", bound=BaseModel)


def read_schedule(name: str, content: Mapping[str, Any]) -> Schedule:
    """Return the schedule that `content` describes, with the keys of the file. Raise `ConfigError`, a fault a line."""
    return _read(ScheduleEntry, _named(content, name), Context(base=Path())).to_schedule()


def read_subscription(name: str, content: Mapping[str, Any], sinks: Iterable[str]) -> Subscription:
    """
    Return the subscription that `content` describes, with the keys of the file and the defaults of a file without any.

    Args:
        sinks: names of those there are.

    Raises:
        ConfigError: with a fault in each line.
    """
    if "destination" in content:
        raise ConfigError(
            "destination: not supported; put the webhook under `sinks` of the file, and name it as `sink`"
        )
    context = Context(base=Path(), sinks=dict.fromkeys(sinks, ""))
    return _read(SubscriptionEntry, _named(content, name), context).to_subscription(Retry(), Breaker())


def _named(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the content with its name, which comes from its path. Raise `ConfigError` for another one in it."""
    if content.get("name", name) != name:
        raise ConfigError(f"name: expected {name!r}, as in the path, or none")
    return {**content, "name": name}


def _read(model: type[M], content: dict[str, Any], context: Context) -> M:
    try:
        with limited_effort():
            return model.model_validate(content, context=context)
    except ValidationError as error:
        faults = [
            Fault(describe(item, known_keys(model, item["loc"][:-1])), tuple(s for s in item["loc"] if s != "[key]"))
            for item in error.errors(include_url=False)
        ]
        raise ConfigError(*(fault.line("").lstrip(": ") for fault in faults)) from None
