"""Check publications before anything is recorded, and link them to the event that led to them."""

from __future__ import annotations

from datetime import datetime, timedelta

from ..errors import EventError
from ..event import EXPIRY, Event, write_timestamp
from ..service.clock import utcnow
from ..service.uri import check_references
from ..storage.contract.events import Publication
from ..tracing.causation import HANDLED, caused

__all__ = ["MAX_DELAY", "check", "check_due", "expiring", "linked"]

MAX_DELAY = timedelta(days=366)  # how far ahead an event may be scheduled
MAX_LIFE = timedelta(days=3660)  # the longest `expires_in`


def check(publication: Publication) -> None:
    """Raise `EventError` for an event that breaks CloudEvents 1.0 or a limit, or for an invalid due time."""
    if not isinstance(publication.event, Event):
        raise EventError(f"expected an Event, got {type(publication.event).__name__}; Event.new() makes one")
    event = publication.event
    event.validate()
    if not publication.exported:
        check_references(event.source, event.dataschema)
    if publication.expires_in is not None:
        _check_expiry(event, publication.expires_in)
    if publication.delay is not None or publication.deliver_at is not None:
        check_due(publication.delay, publication.deliver_at)


def linked(publications: list[Publication]) -> list[Publication]:
    """Return checked publications with the attributes that name their cause, where an event is being handled."""
    cause = HANDLED.get()
    if cause is None:
        return publications
    return [each._replace(event=caused(each.event, cause)) for each in publications]


def expiring(publication: Publication, now: datetime) -> Publication:
    """Return a checked publication with its `expirytime` counted from `now`."""
    if publication.expires_in is None:
        return publication
    expiry = {EXPIRY: write_timestamp(now + publication.expires_in)}
    event = publication.event
    return publication._replace(event=event.replace(extensions={**event.extensions, **expiry}), expires_in=None)


def _check_expiry(event: Event, expires_in: timedelta) -> None:
    if not isinstance(expires_in, timedelta):
        raise EventError(f"expires_in: expected a timedelta, got {expires_in!r}")
    if not timedelta(0) < expires_in <= MAX_LIFE:
        raise EventError(f"expires_in: expected more than zero and at most {MAX_LIFE.days} days, got {expires_in}")
    if EXPIRY in event.extensions:
        raise EventError("give either expires_in or the extension expirytime, not both", attribute=EXPIRY)


def check_due(delay: timedelta | None, deliver_at: datetime | None) -> None:
    """Raise `EventError` if both are given, or the one given is no valid due time."""
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
