"""Explain why a delivery is not made: the match, what holds it, until when, and the cure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from ..delivery import DeliveryState
from ..storage.contract.overview import Hold
from ..storage.contract.records import EventView, InstanceView
from ..storage.tokens import holder_of
from .matching import Clause, mismatch
from .shares import sinks_of
from .status import unserved

__all__ = ["Answer", "Reason", "why"]


@dataclass(frozen=True, slots=True)
class Reason:
    """
    One reason that holds a delivery, or ended it.

    Attributes:
        kind: a stable name, such as `breaker`.
        until: when it ends by itself; None if it does not, or if that is unknown.
        cure: what ends it earlier; empty if nothing need be done.
    """

    kind: str
    cause: str
    until: datetime | None = None
    cure: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """
    Why one event is, or is not, delivered to one subscription.

    Attributes:
        state: of the delivery; of the event where none is recorded.
        failing: the clause that fails, as the subscription is now; None if the event matches.
        version: of the set of subscriptions.
        written_at: when the subscription was last changed.
        reasons: all that hold it, each by itself.
    """

    state: str
    attempts: int
    failing: Clause | None
    version: int
    written_at: datetime
    reasons: Sequence[Reason]


def why(event: EventView, hold: Hold, instances: Sequence[InstanceView]) -> Answer:
    """Return why `event` is not delivered to the subscription of `hold`, or that it is."""
    failing = mismatch(hold.registered.subscription, event.event)
    asked = _Question(event, hold, [each for each in instances if each.alive], failing)
    return Answer(
        state=event.state if hold.state is None else hold.state.value,
        attempts=hold.attempts,
        failing=failing,
        version=hold.version,
        written_at=hold.updated_at,
        reasons=list(asked.reasons()),
    )


@dataclass(frozen=True, slots=True)
class _Question:
    event: EventView
    hold: Hold
    live: Sequence[InstanceView]
    failing: Clause | None

    @property
    def name(self) -> str:
        return self.hold.registered.subscription.name

    def reasons(self) -> Iterator[Reason]:
        match self.hold.state:
            case None:
                yield from self._unrecorded()
            case DeliveryState.DELIVERED:
                yield Reason("delivered", "the sink has it")
            case DeliveryState.DEAD:
                tried = "one attempt" if self.hold.attempts == 1 else f"{self.hold.attempts} attempts"
                cause = f"given up after {tried}: {self.hold.last_error or 'no error recorded'}"
                yield Reason("dead", cause, cure=self._revival())
            case DeliveryState.CANCELLED:
                cure = f"runner deliveries retry {self.event.seq} {self.name}"
                yield Reason("cancelled", "somebody cancelled it", cure=cure)
            case _:
                found = list(self._of_delivery())
                yield from found or [Reason("due", "nothing holds it: a process takes it next")]

    def _revival(self) -> str:
        """Return the cure of a dead delivery."""
        expires_at = self.event.event.expires_at
        if expires_at is not None and expires_at <= self.hold.now:
            return "publish it anew, with another id: a retry would be too late as well"
        return f"runner deliveries retry {self.event.seq} {self.name}"

    def _unrecorded(self) -> Iterator[Reason]:
        """Yield the reasons of an event of which no delivery is recorded."""
        hold, waits = self.hold, self.hold.queued or self.hold.scheduled_at is not None
        if self.failing is not None:
            yield Reason("not_matched", str(self.failing))
        elif not waits:
            yield self._passed()
        if not waits or self.failing is not None:
            return
        if hold.scheduled_at is not None:
            yield Reason("scheduled", "the event is not due yet", hold.scheduled_at)
        elif hold.dispatch_until is not None and hold.dispatch_token is not None and hold.dispatch_until > hold.now:
            holder = self._holder(hold.dispatch_token)
            yield Reason("dispatching", f"{holder} is handing the event to its subscriptions", hold.dispatch_until)
        else:
            yield Reason("queued", "the event is not dispatched yet")
        yield from self._of_subscription()

    def _passed(self) -> Reason:
        """Return why a dispatched event that matches has no delivery for the subscription."""
        again = f"runner events replay --subscription {self.name} --missing"
        if self.event.state == "cancelled":
            return Reason("cancelled", "the event was cancelled")
        if self.hold.registered.expired:
            return Reason("expired", "the subscription has expired", cure="put it again, with another expires_at")
        if not self.hold.active:
            return Reason("inactive", "the subscription is in no file any more", cure="put it back")
        if self.hold.created_at > self.event.created_at:
            return Reason("newer", "the subscription is newer than the event", cure=again)
        if self.hold.updated_at > self.event.created_at:
            return Reason("changed", "the subscription was changed after the event was recorded", cure=again)
        return Reason("unrecorded", "it matches, and no delivery is recorded", cure=again)

    def _of_delivery(self) -> Iterator[Reason]:
        """Yield the reasons that hold a delivery which waits or runs."""
        hold = self.hold
        later = hold.due_at is not None and hold.due_at > hold.now
        if hold.state is DeliveryState.LEASED and hold.token is None:
            cure = f"runner deliveries ack {self.event.seq} {self.name}"
            yield Reason("deferred", "its sink deferred it: an acknowledgement is waited for", hold.due_at, cure)
            return
        if hold.state is DeliveryState.LEASED and later:
            assert hold.token is not None
            yield Reason("lease", f"it runs: {self._holder(hold.token)} holds its lease", hold.due_at)
            return
        yield from self._of_subscription()
        if hold.state is DeliveryState.LEASED:
            yield Reason("lease_ended", "the lease it ran under has ended without an answer: a process takes it next")
        elif later:
            cause = "it is not due yet" if hold.last_error is None else f"it waits to be retried: {hold.last_error}"
            yield Reason("retry" if hold.last_error else "later", cause, hold.due_at)
        yield from self._in_turn()

    def _of_subscription(self) -> Iterator[Reason]:
        """Yield the reasons that hold all deliveries of the subscription."""
        hold, subscription = self.hold, self.hold.registered.subscription
        if not hold.active:
            cure = "put it back into the file, or call subscribe() again"
            yield Reason("inactive", "the subscription is in no file any more", cure=cure)
        if hold.registered.paused:
            by, at = hold.registered.paused_by or "somebody", hold.registered.paused_at
            since = "" if at is None else f" at {at.isoformat(timespec='seconds').replace('+00:00', 'Z')}"
            cure = f"runner subscriptions resume {self.name}"
            yield Reason("paused", f"{by} paused the subscription{since}", cure=cure)
        trip = hold.registered.breaker
        if trip is not None:
            until = hold.now + trip.left
            how = "open" if until > hold.now else "half-open: one delivery at a time is tried"
            cure = f"runner subscriptions resume {self.name}"
            last = f"; its last error: {hold.last_error}" if hold.last_error else ""
            yield Reason("breaker", f"its breaker is {how}{last}", until if until > hold.now else None, cure)
        if not self.live:
            yield Reason("no_live_instance", "no live instance", cure="start one: runner start -c FILE")
        elif (there := sinks_of(self.live)) is not None and subscription.sink not in there:
            cause, cure = unserved(hold.registered)
            yield Reason("nobody_serves", cause, cure=cure)
        elif all(each.state == "stuck" for each in self.live):
            yield Reason("stuck", "every live instance is stuck", cure="read their logs: runner instances")

    def _in_turn(self) -> Iterator[Reason]:
        """Yield the reasons given by the order and the rate of the subscription."""
        hold, subscription = self.hold, self.hold.registered.subscription
        if hold.turn is not None and subscription.order_by is not None:
            key = f"{subscription.order_by} {hold.turn.key!r}"
            if hold.turn.first != self.event.seq:
                cure = f"runner why {hold.turn.first} {self.name}"
                yield Reason("order", f"event {hold.turn.first} of the same {key} goes first", cure=cure)
            elif hold.turn.earlier is not None:
                cause = f"event {hold.turn.earlier} was published earlier, and is not dispatched yet"
                yield Reason("order", cause, cure=f"runner why {hold.turn.earlier} {self.name}")
        rate = subscription.rate
        if rate is not None and hold.paced_until is not None:
            ahead = rate.believed(hold.paced_until - hold.now)
            if not rate.permits(ahead):
                yield Reason("rate", f"its rate of {rate} is used up", hold.now + rate.wait(ahead))

    def _holder(self, token: int) -> str:
        """Return the holder of a lease by its token."""
        for each in self.live:
            if each.holder == holder_of(token):
                return f"instance {each.instance.id} ({each.instance.host}:{each.instance.pid})"
        return "an instance that does not report any more"
