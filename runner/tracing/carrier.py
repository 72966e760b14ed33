"""The trace that a sink passes on: that of the delivery's own span, or else the one that its event carries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextvars import ContextVar

from ..event import Event

__all__ = ["OUTGOING", "trace_headers"]

OUTGOING: ContextVar[Mapping[str, str] | None] = ContextVar("runner_outgoing", default=None)
"""The headers of W3C Trace Context for what the current delivery sends; None without a span."""

# W3C Trace Context 1, §3.2.2 and §3.3.1: a value of another form does not become a header.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")
_TRACESTATE = re.compile(r"[ -~]{1,512}\Z")


def trace_headers(event: Event) -> Mapping[str, str]:
    """
    Return the headers `traceparent` and `tracestate` for the delivery of an event; none without a trace.

    The attributes of the event itself, `ce-traceparent` say, stay those of its publisher (CloudEvents, extension
    Distributed Tracing).
    """
    headers = OUTGOING.get()
    if headers is not None:
        return headers
    parent, state = event.extensions.get("traceparent"), event.extensions.get("tracestate")
    if not isinstance(parent, str) or not _TRACEPARENT.match(parent):
        return {}
    carried = {"traceparent": parent}
    if isinstance(state, str) and _TRACESTATE.match(state):
        carried["tracestate"] = state
    return carried
