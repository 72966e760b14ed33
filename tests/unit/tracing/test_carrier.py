"""The headers of a trace that a sink sends."""

from __future__ import annotations

import pytest

from runner.event import Event
from runner.tracing.carrier import OUTGOING, trace_headers

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b9c7c989f97918e1-01"


def headers(**extensions: str | int) -> dict[str, str]:
    return dict(trace_headers(Event(type="t", source="/s", extensions=extensions)))


def test_the_trace_of_the_event_is_passed_on() -> None:
    assert headers() == {}
    assert headers(traceparent=PARENT) == {"traceparent": PARENT}
    assert headers(traceparent=PARENT, tracestate="a=1,b=2") == {"traceparent": PARENT, "tracestate": "a=1,b=2"}
    assert headers(tracestate="a=1") == {}


@pytest.mark.parametrize("parent", ["", "x", PARENT.upper(), PARENT + "\n", PARENT + "x", 5, "é" * 55])
def test_what_is_no_trace_becomes_no_header(parent: str | int) -> None:
    assert headers(traceparent=parent) == {}


@pytest.mark.parametrize("state", ["", "é", "a" * 513, 5])
def test_nor_does_what_is_no_state(state: str | int) -> None:
    assert headers(traceparent=PARENT, tracestate=state) == {"traceparent": PARENT}


def test_the_span_of_the_delivery_comes_first() -> None:
    token = OUTGOING.set({"traceparent": "ours"})
    try:
        assert headers(traceparent=PARENT, tracestate="a=1") == {"traceparent": "ours"}
    finally:
        OUTGOING.reset(token)
