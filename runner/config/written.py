"""Definitions made at run time: read by the schema of the file, with the same faults."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, Field, ValidationError

from ..errors import ConfigError
from ..policies.schedule import Schedule
from ..subscription import DESTINATION_PREFIX, Subscription
from .breaker import Breaker
from .errors import Fault, limited_effort
from .fields import Context, Model
from .keys import known_keys
from .kinds import SINKS
from .messages import describe, narrowed
from .plugin import Plugin, PluginField
from .retry import Retry
from .schedules import Moment, ScheduleEntry
from .subscriptions import SubscriptionEntry

__all__ = ["Defaults", "Own", "Written", "read_options", "read_schedule", "read_subscription"]

M = TypeVar("M", bound=BaseModel)

_NO_SINK = "sink: this key is required"
_DESTINATIONS = SINKS.only("webhook")


def read_schedule(name: str, content: Mapping[str, Any]) -> Schedule:
    """Return the schedule in `content`, with the keys of the file. Raise `ConfigError`, one fault per line."""
    return _read(ScheduleEntry, _named(content, name), Context(base=Path())).to_schedule()


class Defaults(NamedTuple):
    """The sections of the file that have the defaults of subscriptions; those of a file without them, unless given."""

    retry: Retry = Retry()
    breaker: Breaker | None = Breaker()


class Own(Model):
    """Keys of a subscription that the file does not allow."""

    destination: Annotated[Plugin, PluginField(_DESTINATIONS)] | None = Field(
        default=None, description="Its own sink, in place of `sink`: `{webhook: {url: …}}`."
    )
    expires_at: Moment | None = Field(default=None, description="From then on it matches no event; null: never.")


class Written(NamedTuple):
    """
    A subscription as it was defined.

    Attributes:
        subscription: it, without its destination.
        destination: its own destination, checked by the schema.
        given: the options of the destination as they were written.
    """

    subscription: Subscription
    destination: Plugin | None
    given: Any


def read_subscription(
    name: str, content: Mapping[str, Any], sinks: Iterable[str], defaults: Defaults | None = None
) -> Written:
    """
    Return the subscription that `content` describes, with the keys of the file.

    Args:
        sinks: names of those there are.
        defaults: those of the file; None: those of a file without any.

    Raises:
        ConfigError: with a fault in each line.
    """
    content = _named(content, name)
    own = {key: content.pop(key) for key in Own.model_fields if key in content}
    faults: list[str] = []
    read = _gathering(Own, own, Context(base=Path()), faults)
    known = dict.fromkeys(sinks, "")
    if own.get("destination") is not None:
        if content.get("sink") is not None:
            faults.append("destination: it takes the place of sink; leave one of them out")
        content["sink"] = f"{DESTINATION_PREFIX}{name}"
        known[content["sink"]] = "webhook" if read is None or read.destination is None else read.destination.kind
    entry = _gathering(SubscriptionEntry, content, Context(base=Path(), sinks=known), faults)
    if faults or read is None or entry is None:
        raise ConfigError(*[f"{each}, or a destination" if each == _NO_SINK else each for each in faults])
    subscription = replace(entry.to_subscription(*(defaults or Defaults())), expires_at=read.expires_at)
    given = None if read.destination is None else next(iter(_options(own["destination"])))
    return Written(subscription, read.destination, given)


def read_options(name: str, sink: str, options: Mapping[str, Any], defaults: Defaults | None = None) -> Subscription:
    """
    Return the subscription that a program describes by `options`, with the keys of the file.

    Args:
        defaults: those of the file; None: those of a file without any.

    Raises:
        ConfigError: with a fault in each line.
    """
    content = {**options, "name": name, "sink": sink}
    return _read(SubscriptionEntry, content, Context(base=Path())).to_subscription(*(defaults or Defaults()))


def _options(destination: object) -> Iterator[Any]:
    """Yield the options of a destination as they were written; nothing for a kind without any."""
    if isinstance(destination, Mapping):
        yield from destination.values()
    else:
        yield {}


def _named(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the content with `name`, that of the path. Raise `ConfigError` if the content has another name."""
    if content.get("name", name) != name:
        raise ConfigError(f"name: expected {name!r}, as in the path, or none")
    return {**content, "name": name}


def _read(model: type[M], content: dict[str, Any], context: Context) -> M:
    faults: list[str] = []
    read = _gathering(model, content, context, faults)
    if read is None:
        raise ConfigError(*faults)
    return read


def _gathering(model: type[M], content: dict[str, Any], context: Context, faults: list[str]) -> M | None:
    """Return the part that `content` describes; None and the faults, one line each, if it is invalid."""
    try:
        with limited_effort():
            return model.model_validate(content, context=context)
    except ValidationError as error:
        for item in map(narrowed, error.errors(include_url=False)):
            place = tuple(step for step in item["loc"] if step != "[key]")
            fault = Fault(describe(item, known_keys(model, item["loc"][:-1])), place)
            faults.append(fault.line("").lstrip(": "))
        return None
