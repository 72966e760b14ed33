"""
The event that is being handled, and the attributes that events published meanwhile get from it.

The attributes are those of the CloudEvents extension Correlation, and `runnerhops`, which counts how many events
stand between an event and the first one of its chain.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..event import Event

__all__ = ["CAUSATION", "CORRELATION", "HANDLED", "HOPS", "caused", "caused_by", "hops_of"]

CORRELATION, CAUSATION, HOPS = "correlationid", "causationid", "runnerhops"

HANDLED: ContextVar[Event | None] = ContextVar("runner_handled", default=None)
"""The event that the current task or thread handles; None outside of handlers, and for a batch of several events."""

_LONGEST = 1024  # characters of an id that is passed on: a longer one could make the next event too large
_MOST = 2**31 - 1  # the largest integer of CloudEvents 1.0 §3.1


@contextmanager
def caused_by(event: Event) -> Iterator[None]:
    """
    Have every event that is published in this block be caused by `event`.

    A handler needs this only for one event of a batch; around single events it is in effect already.
    """
    token = HANDLED.set(event)
    try:
        yield
    finally:
        HANDLED.reset(token)


def caused(event: Event, cause: Event) -> Event:
    """
    Return `event` with the attributes that name `cause` as its cause.

    `causationid` is the id of the cause, `correlationid` its correlation or, without one, its id; either is kept where
    the publisher has given it. `runnerhops` is one more than that of the cause, whatever the publisher has given, so
    that a handler which copies all attributes of its event cannot hide a circle.
    """
    given = event.extensions
    correlation = cause.attribute(CORRELATION) or cause.id
    links = {CORRELATION: correlation, CAUSATION: cause.id}
    hops = max(hops_of(event), min(hops_of(cause) + 1, _MOST))
    short = {name: id for name, id in links.items() if len(id) <= _LONGEST}
    return event.replace(extensions={**short, **given, HOPS: hops})


def hops_of(event: Event) -> int:
    """Return how many events led to this one, one after the other; 0 where nothing is known of that."""
    hops = event.attribute(HOPS)  # text, where it came through a header
    return min(int(hops), _MOST) if hops is not None and hops.isascii() and hops.isdigit() and len(hops) < 12 else 0
