"""Check publications before anything is recorded, and link them to the event that led to them."""

from __future__ import annotations

from datetime import datetime, timedelta

from ..errors import EventError
from ..event import Event
from ..service.clock import utcnow
from ..storage.contract.events import Publication
from ..tracing.causation import HANDLED, caused

__all__ = ["MAX_DELAY", "check", "check_due", "linked"]

MAX_DELAY = timedelta(days=366)  # how far ahead an event may be scheduled


def check(publication: Publication) -> None:
    """Raise `EventError` for an event that breaks CloudEvents 1.0 or a limit, or for an invalid due time."""
    if not isinstance(publication.event, Event):
        raise EventError(f"expected an Event, got {type(publication.event).__name__}; Event.new() makes one")
    publication.event.validate()
    if publication.delay is not None or publication.deliver_at is not None:
        check_due(publication.delay, publication.deliver_at)


def linked(publications: list[Publication]) -> list[Publication]:
    """Return checked publications with the attributes that name their cause, where an event is being handled."""
    cause = HANDLED.get()
    if cause is None:
        return publications
    return [each._replace(event=caused(each.event, cause)) for each in publications]


def check_due(delay: timedelta | None, deliver_at: datetime | None) -> None:
    """Raise `EventError` unless at most one of the two is given, and is a time that something can be due at."""
    if delay is not None and deliver_at is not None:
        raise EventError("give either delay or deliver_at, not both")
    if deliver_at is not None:
        if not isinstance(deliver_at, datetime) or deliver_at.utcoffset() is None:  # type: ignore[redundant-expr]  # callers need not check their types
            raise EventError(f"deliver_at: expected a datetime with an offset, got {deliver_at!r}")
        if deliver_at - utcnow() > MAX_DELAY:
            raise EventError(f"deliver_at: at most {MAX_DELAY.days} days from now, got {deliver_at}")
    if delay is not None:
        if not isinstance(delay, timedelta):
            raise EventError(f"delay: expected a timedelta, got {delay!r}")
        if not timedelta(0) <= delay <= MAX_DELAY:
            raise EventError(f"delay: expected 0 to {MAX_DELAY.days} days, got {delay}")
