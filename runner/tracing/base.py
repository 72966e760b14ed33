"""The seam of tracing: spans around what the bus, the store and the sinks do. Without it there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from ..event import Event

__all__ = ["Tracing"]

T = TypeVar("T")


class Tracing(Protocol):
    """Make spans; the only interface to them for the bus, the store and the sinks."""

    def publishing(self, events: Sequence[Event]) -> AbstractContextManager[Sequence[Event]]:
        """
        Span the publishing of checked events; yield them with its trace, unless they carry one of their own.

        Its parent is the current span, or else the trace that the first event carries.
        """

    def incoming(self, headers: Mapping[str, str]) -> AbstractContextManager[None]:
        """
        Make the trace of a request the current one: what is published in this block continues it.

        Args:
            headers: with names in lower case; `traceparent` and `tracestate` are read.
        """

    def store(self, store: T) -> T:
        """Return the store with a span for each dispatch, from its claim to its settlement."""

    def sink(self, sink: T) -> T:
        """Return the sink with a span for each delivery, or batch of them, which is current while the sink works."""
