"""
The table of sinks: one factory for each kind a configuration can name.

A factory imports its sink when it is called, so that a runner without webhooks never loads an HTTP client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import SinkError
from .base import Sink

if TYPE_CHECKING:  # nats-py is loaded by those who use it
    from ..broker import Broker

__all__ = ["SINKS", "SinkContext", "SinkFactory", "build_sink"]


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
        SinkError: the kind is unknown, or the options do not fit it.
    """
    if kind in SINKS:
        return SINKS[kind](options, context)
    if ":" not in kind:
        raise SinkError(f"unknown kind {kind!r}, expected one of: {', '.join(sorted(SINKS))}, or 'module:factory'")
    from ..config.callables import import_callable

    try:
        sink: Sink = import_callable(kind)(**options)
    except (TypeError, ValueError) as error:
        raise SinkError(f"{kind}: {error}") from error
    return sink


def _nats(options: Mapping[str, Any], context: SinkContext) -> Sink:
    from .nats import NatsSink

    return NatsSink(context.broker(options), options["subject"], deployment_id=context.deployment_id)


def _python(options: Mapping[str, Any], context: SinkContext) -> Sink:
    from .python import PythonSink

    return PythonSink(options["target"])


def _stdout(options: Mapping[str, Any], context: SinkContext) -> Sink:
    from .stdout import StdoutSink

    return StdoutSink(format=options["format"])


def _webhook(options: Mapping[str, Any], context: SinkContext) -> Sink:
    from .webhook import WebhookSink

    return WebhookSink(
        options["url"], timeout=options["timeout"], headers=options["headers"], connections=context.concurrency
    )


SINKS: Mapping[str, SinkFactory] = {"nats": _nats, "python": _python, "stdout": _stdout, "webhook": _webhook}
