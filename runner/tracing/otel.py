"""Spans by OpenTelemetry. Only this module and those beside it import that, and they are imported only on demand."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ..delivery import Accepted, Deferred, Delivery, Failed, Outcome, Rejected
from ..errors import described, text_of
from ..event import Event
from ..log.redaction import redacted
from ..service.version import __version__
from .carrier import OUTGOING
from .dispatches import Dispatches

__all__ = ["OpenTelemetry"]

T = TypeVar("T")

_W3C = TraceContextTextMapPropagator()
_TRACE = ("traceparent", "tracestate")


class OpenTelemetry:
    """
    `Tracing` by the tracer provider of the program; without one of its SDK all of this does nothing.

    publish (producer) -> dispatch (internal) -> deliver (consumer) -> publish of a handler, and so on. Retries follow
    from the publish, since the dispatch has ended.
    """

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = tracer or trace.get_tracer("runner", __version__)
        self._dispatches = Dispatches(self._dispatch)

    @contextmanager
    def publishing(self, events: Sequence[Event]) -> Iterator[Sequence[Event]]:
        """Span the publishing of events; yield them with its trace."""
        first = events[0]
        what = first.type if len(events) == 1 else f"{len(events)} events"
        parent = None if trace.get_current_span().get_span_context().is_valid else _context_of(first)
        fields: dict[str, Any] = {**_attributes(first), "messaging.batch.message_count": len(events)}
        with _current(self._tracer, f"publish {what}", parent, kind=SpanKind.PRODUCER, attributes=fields):
            carried: dict[str, str] = {}
            _W3C.inject(carried)
            yield [_with(event, carried) for event in events] if carried else events

    @contextmanager
    def incoming(self, headers: Mapping[str, str]) -> Iterator[None]:
        """Make the trace of a request the current one."""
        token = contexts.attach(_W3C.extract({name: headers[name] for name in _TRACE if name in headers}))
        try:
            yield
        finally:
            contexts.detach(token)

    def store(self, store: T) -> T:
        """Return the store with a span for each dispatch."""
        return cast("T", self._dispatches.around(store))

    def sink(self, sink: T) -> T:
        """Return the sink with a span for each delivery."""
        kind = _BatchSink if hasattr(sink, "deliver_batch") else _Sink
        return cast("T", kind(sink, self._tracer, self._parent))

    def _dispatch(self, event: Event) -> Span:
        return self._tracer.start_span(f"dispatch {event.type}", _context_of(event), attributes=_attributes(event))

    def _parent(self, event: Event) -> contexts.Context | None:
        """Return the context that a delivery follows from: the dispatch under way, or else the publishing."""
        span = self._dispatches.of(event)
        return _context_of(event) if span is None else trace.set_span_in_context(span, contexts.Context())


Parent = Callable[[Event], contexts.Context | None]


class _Sink:
    """A sink with a span around each delivery."""

    deliver_event = None

    def __init__(self, sink: Any, tracer: Tracer, parent: Parent) -> None:
        self._sink = sink
        self._tracer = tracer
        self._parent = parent

    async def start(self) -> None:
        """Start the sink."""
        await self._sink.start()

    async def stop(self) -> None:
        """Stop the sink."""
        await self._sink.stop()

    async def deliver(self, delivery: Delivery) -> Outcome:
        """Deliver within a span."""
        event = delivery.event
        fields = {**_attributes(event), **_subscription(delivery.subscription), "runner.attempt": delivery.attempt}
        with self._span(delivery.subscription, self._parent(event), fields) as span:
            outcome: Outcome = await self._sink.deliver(delivery)
            _set_status(span, outcome)
        return outcome

    @contextmanager
    def _span(
        self, name: str, parent: contexts.Context | None, fields: Mapping[str, Any], links: Sequence[Link] = ()
    ) -> Iterator[Span]:
        options: dict[str, Any] = {"kind": SpanKind.CONSUMER, "attributes": fields, "links": links}
        with _current(self._tracer, f"deliver {name}", parent or contexts.Context(), **options) as span:
            carried: dict[str, str] = {}
            _W3C.inject(carried)
            token = OUTGOING.set(carried or None)
            try:
                yield span
            finally:
                OUTGOING.reset(token)


class _BatchSink(_Sink):
    """The same for one that takes batches: a span for each batch, linked to those of its events."""

    async def deliver_batch(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        """Deliver within a span."""
        name = deliveries[0].subscription
        parents = [self._parent(each.event) for each in deliveries]
        spans = [trace.get_current_span(each).get_span_context() for each in parents if each is not None]
        alone = len(deliveries) == 1
        fields = {**_subscription(name), "messaging.batch.message_count": len(deliveries)}
        links = () if alone else [Link(each) for each in spans if each.is_valid]
        with self._span(name, parents[0] if alone else None, fields, links) as span:
            answer: Sequence[Outcome] = await self._sink.deliver_batch(deliveries)
            if isinstance(answer, list | tuple):
                _set_status(span, next((each for each in answer if not isinstance(each, Accepted | Deferred)), None))
        return answer


@contextmanager
def _current(tracer: Tracer, name: str, parent: contexts.Context | None, **options: Any) -> Iterator[Span]:
    """Start a span that is current in this block; what is raised in it is told without the secrets that are known."""
    options |= {"record_exception": False, "set_status_on_exception": False}
    with tracer.start_as_current_span(name, parent, **options) as span:
        try:
            yield span
        except Exception as error:
            span.record_exception(
                error,
                {
                    "exception.message": redacted(text_of(error)),
                    "exception.stacktrace": redacted("".join(traceback.format_exception(error))),
                },
            )
            span.set_status(Status(StatusCode.ERROR, redacted(described(error))))
            raise


def _set_status(span: Span, outcome: object) -> None:
    """Set the status of a span after the outcome of its delivery."""
    match outcome:
        case Failed(reason, _, status, _) | Rejected(reason, status, _):
            span.set_attribute("runner.outcome", "rejected" if isinstance(outcome, Rejected) else "failed")
            if status is not None:
                span.set_attribute("http.response.status_code", status)
            span.set_status(Status(StatusCode.ERROR, redacted(reason)))


def _context_of(event: Event) -> contexts.Context | None:
    """Return the context of the trace that an event carries; None without one."""
    carried = {name: value for name in _TRACE if isinstance(value := event.extensions.get(name), str)}
    found = _W3C.extract(carried, contexts.Context()) if carried else None
    return found if found is not None and trace.get_current_span(found).get_span_context().is_valid else None


def _with(event: Event, carried: Mapping[str, str]) -> Event:
    """Return the event with a trace, unless it carries one."""
    if "traceparent" in event.extensions:
        return event
    return event.replace(extensions={**event.extensions, **carried})


def _attributes(event: Event) -> dict[str, str]:
    """Return the attributes of a span about an event (semantic conventions for CloudEvents and messaging)."""
    fields = {
        "cloudevents.event_id": event.id,
        "cloudevents.event_source": event.source,
        "cloudevents.event_type": event.type,
        "messaging.system": "runner",
        "messaging.message.id": event.id,
    }
    return fields if event.subject is None else {**fields, "cloudevents.event_subject": event.subject}


def _subscription(name: str) -> dict[str, str]:
    return {"messaging.destination.subscription.name": name}
