"""
The table of sinks: one factory for each kind a configuration can name.

A factory imports its sink when it is called, so that a runner without webhooks never loads an HTTP client.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import SinkError
from .base import Sink

if TYPE_CHECKING:  # nats-py is loaded by those who use it
    from ..broker import Broker

__all__ = ["SINKS", "SinkContext", "SinkFactory", "build_sink"]

_METHODS = ("start", "deliver", "stop")


@dataclass(frozen=True, slots=True)
class SinkContext:
    """
    What a sink may need besides its options.

    Attributes:
        deployment_id: fills `{deployment_id}` in templates.
        broker: returns the connection to NATS for the given options of a sink; equal ones share it.
        concurrency: how many deliveries run at once in this process.
    """

    deployment_id: str
    broker: Callable[[Mapping[str, Any]], Broker]
    concurrency: int = 256


SinkFactory = Callable[[Mapping[str, Any], SinkContext], Sink]


def build_sink(kind: str, options: Mapping[str, Any], context: SinkContext) -> Sink:
    """
    Return a new sink that has not been started.

    Args:
        kind: a key of `SINKS`, or `module:factory` of anybody's own, which is called with the options.
        options: plain values, secrets revealed, every default filled in.

    Raises:
        SinkError: the kind is unknown, the options do not fit it, or what was built is no sink.
    """
    if kind in SINKS:
        return SINKS[kind](options, context)
    if ":" not in kind:
        raise SinkError(f"unknown kind {kind!r}, expected one of: {', '.join(sorted(SINKS))}, or 'module:factory'")
    return _third_party(kind, options)


def _third_party(kind: str, options: Mapping[str, Any]) -> Sink:
    from ..config.callables import import_callable

    try:
        factory = import_callable(kind)
        arguments = inspect.signature(factory).bind(**options)
    except (TypeError, ValueError) as error:
        raise SinkError(f"{kind}: {error}") from error
    try:
        sink: Sink = factory(*arguments.args, **arguments.kwargs)
    except SinkError as error:  # written for the one who configures it, as docs/writing-a-sink.md asks
        raise SinkError(f"{kind}: {error}") from error
    except (Exception, SystemExit) as error:
        # Its text may repeat an option, and nobody here knows which of them are secret.
        raise SinkError(f"{kind}: cannot be built, it raised {type(error).__name__}") from error
    if not all(callable(getattr(sink, method, None)) for method in _METHODS):
        raise SinkError(f"{kind}: expected a sink with start, deliver and stop, got {type(sink).__name__!r}")
    return sink


def _nats(options: Mapping[str, Any], context: SinkContext) -> Sink:
    from .nats import NatsSink

    return NatsSink(context.broker(options), options["subject"], deployment_id=context.deployment_id)


def _python(options: Mapping[str, Any], context: SinkContext) -> Sink:
    from .python import PythonSink

    return PythonSink(options["target"], permanent=options["permanent"])


def _stdout(options: Mapping[str, Any], context: SinkContext) -> Sink:
    from .stdout import StdoutSink

    return StdoutSink(format=options["format"])


def _webhook(options: Mapping[str, Any], context: SinkContext) -> Sink:
    from .webhook import WebhookSink

    return WebhookSink(
        options["url"],
        timeout=options["timeout"],
        headers=options["headers"],
        permanent=options["permanent"],
        deferred=options["deferred"],
        structured=options["mode"] == "structured",
        connections=context.concurrency,
    )


SINKS: Mapping[str, SinkFactory] = {"nats": _nats, "python": _python, "stdout": _stdout, "webhook": _webhook}
