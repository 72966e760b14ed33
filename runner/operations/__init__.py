"""Operations on a bus other than publishing, the same for the command line, the library and HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from ..bus.checks import check_due
from ..delivery import DeliveryState
from ..errors import EventError, NotFound, StateConflict
from ..storage.contract.corrections import nobody
from ..storage.contract.records import DeliveryQuery
from ..subscription import Matcher
from .audit import LIBRARY, AuditLog, Entry, conditions_of
from .holds import hold_of
from .schedules import ScheduleOperations
from .subscriptions import SubscriptionOperations

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..storage import Storage
    from ..storage.contract.archive import Retention
    from ..storage.contract.corrections import ReplayQuery, Rescheduled
    from ..storage.contract.records import AttemptView, DeliveryView, EventView, Records
    from ..subscription import Subscription
    from .destinations import Keeper

__all__ = ["CANCELLABLE", "RETRYABLE", "DeliveryRef", "Operations"]

RETRYABLE = (DeliveryState.DEAD, DeliveryState.CANCELLED)
CANCELLABLE = (DeliveryState.PENDING, DeliveryState.LEASED)


class DeliveryRef(NamedTuple):
    """One delivery: an event, by its seq or its id, and the name of a subscription."""

    event: str
    subscription: str


class Operations:
    """
    Read the state of a bus, and correct it.

    Workers, in this process and others, are signalled after every change that makes work for them. Every change is in
    the audit log.

    Attributes:
        audit: records the actions.
        schedules: the operations on schedules.
        subscriptions: those that make, pause and remove subscriptions.
    """

    def __init__(
        self,
        storage: Storage,
        announce: Callable[[], object],
        *,
        in_order: Callable[[str], bool] = lambda _: True,
        actor: str = LIBRARY,
        keeper: Keeper | None = None,
    ) -> None:
        """
        Work on `storage`.

        Args:
            announce: wakes the worker of this process and notifies the others.
            in_order: whether deliveries of a subscription may wait for each other.
            actor: who acts, for the audit log.
            keeper: checks and keeps the destinations that subscriptions bring with them; None: one without keys.
        """
        self._storage = storage
        self.audit = AuditLog(storage, actor)
        self.schedules = ScheduleOperations(storage, announce, self.audit)
        self.subscriptions = SubscriptionOperations(storage, announce, self.audit, keeper)
        self._keeper = keeper
        self._announce = announce
        self._in_order = in_order

    def by(self, actor: str) -> Operations:
        """Return the same operations for another actor, such as `api:ops`."""
        storage, announce = self._storage, self._announce
        return Operations(storage, announce, in_order=self._in_order, actor=actor, keeper=self._keeper)

    @property
    def records(self) -> Records:
        """The records to look at."""
        return self._storage.records

    async def retry(
        self,
        which: DeliveryQuery | DeliveryRef,
        *,
        every: timedelta | None = None,
        dry_run: bool = False,
        advance: Callable[[int], object] = nobody,
    ) -> int:
        """
        Make dead or cancelled deliveries pending, with fresh attempts; return how many. See `Corrections.retry()`.

        Raises:
            NotFound: there is no such event, subscription or delivery.
            StateConflict: the one that was asked for is neither dead nor cancelled.
        """
        async with self.audit.selection("deliveries.retry", which, every, recorded=not dry_run) as entry:
            advance = _counting(advance, entry, self._announce, dry_run=dry_run)
            change = partial(self._storage.corrections.retry, every=every, dry_run=dry_run, advance=advance)
            return await self._change(which, change, RETRYABLE, "retried")

    async def cancel(
        self,
        which: DeliveryQuery | DeliveryRef,
        *,
        dry_run: bool = False,
        advance: Callable[[int], object] = nobody,
    ) -> int:
        """
        Cancel deliveries that wait or run; return how many. See `Corrections.cancel()`.

        Raises:
            NotFound: there is no such event, subscription or delivery.
            StateConflict: the one that was asked for has ended.
        """
        async with self.audit.selection("deliveries.cancel", which, recorded=not dry_run) as entry:
            advance = _counting(advance, entry, self._announce, dry_run=dry_run)
            change = partial(self._storage.corrections.cancel, dry_run=dry_run, advance=advance)
            return await self._change(which, change, CANCELLABLE, "cancelled")

    async def ack(self, reference: str, subscription: str, *, failure: str | None = None) -> bool:
        """
        Acknowledge a deferred delivery; see `Corrections.ack()`.

        In the audit log unless a program of the library does it: there it is the answer of a handler, one per delivery.
        """
        said = self.audit.entry("deliveries.ack", f"{reference} {subscription}", {"failure": failure})
        action = None if self.audit.actor == LIBRARY else said
        changed = await self._storage.corrections.ack(reference, subscription, failure=failure, action=action)
        if changed and (failure is not None or self._in_order(subscription)):
            self._announce()  # a failure can be claimed at once; after a success the next one in its line
        return changed

    async def cancel_event(self, reference: str) -> tuple[EventView, int]:
        """
        Cancel the open deliveries of an event; return the event as it was, and their number.

        Raises:
            NotFound: there is no such event.
            StateConflict: nothing of it is still to come.
        """
        async with self.audit.action("events.cancel", reference) as entry:
            view = await self.records.event(reference)
            number = await self._storage.corrections.cancel_event(view.seq)
            if number is None:
                raise StateConflict(f"event {view.seq} is {view.state}; nothing of it is still to come")
            entry.touched = 1
            self._announce()  # deliveries behind it in a line may start
            return view, number

    async def reschedule(
        self,
        reference: str,
        *,
        delay: timedelta | None = None,
        deliver_at: datetime | None = None,
        subscription: str | None = None,
    ) -> tuple[EventView, Rescheduled]:
        """
        Change the due time of an event, or of its deliveries that wait.

        Args:
            delay: from now, on the store's clock, until it is due.
            deliver_at: the time at which it is due instead; aware. A past one is due at once.
            subscription: only the delivery to this one.

        Returns:
            the event as it was, and what was moved.

        Raises:
            EventError: not one of the two is given, or it is no time, or too far away.
            NotFound: there is no such event, subscription or delivery.
            StateConflict: nothing of it waits (it is delivered, dead or cancelled, or runs at this moment), or it would
                expire before it is due.
        """
        check_due(delay, deliver_at)
        due = delay if deliver_at is None else deliver_at
        if due is None:
            raise EventError("give delay or deliver_at")
        when = {"delay": delay, "deliver_at": deliver_at, "subscription": subscription}
        async with self.audit.action("events.reschedule", reference, when) as entry:
            view = await self.records.event(reference)
            expiry = view.event.expires_at
            moved = await self._storage.corrections.reschedule(view.seq, due, subscription=subscription, before=expiry)
            if not moved.whole and not moved.deliveries:
                await self._refuse_reschedule(DeliveryRef(str(view.seq), subscription or ""), running=moved.running)
            entry.touched = 1 if moved.whole else moved.deliveries
            self._announce()
            return view, moved

    async def _refuse_reschedule(self, which: DeliveryRef, *, running: int) -> NoReturn:
        """Raise the error that says why nothing could be moved."""
        if which.subscription:
            delivery, _ = await self.delivery(which)
            what, state = f"the delivery of event {delivery.seq} to {delivery.subscription}", delivery.state.value
            ended = delivery.state not in CANCELLABLE
            back = f"runner deliveries retry {delivery.seq} {delivery.subscription}"
        else:
            view = await self.records.event(which.event)
            counted = ", ".join(f"{number} {state}" for state, number in view.deliveries.items())
            what, state = f"event {view.seq}", view.state + (f" ({counted})" if counted else "")
            ended = view.state in ("settled", "cancelled")
            back = f"runner deliveries retry {view.seq} SUBSCRIPTION"
        if ended:
            raise StateConflict(
                f"{what} is {state}; nothing of it waits. `{back}` brings back what is dead or cancelled, "
                "`runner events replay` what was delivered"
            )
        raise StateConflict(f"{what} is being {'delivered' if running else 'dispatched'} at this moment; try again")

    async def replay(
        self,
        query: ReplayQuery,
        *,
        every: timedelta | None = None,
        dry_run: bool = False,
        advance: Callable[[int], object] = nobody,
    ) -> int:
        """Make recorded events pending for a subscription; return how many. See `Corrections.replay()`."""
        given = conditions_of(query, every)
        name = given.pop("subscription")
        async with self.audit.action("subscriptions.replay", name, given, recorded=not dry_run) as entry:
            advance = _counting(advance, entry, self._announce, dry_run=dry_run)
            return await self._storage.corrections.replay(query, every=every, dry_run=dry_run, advance=advance)

    async def prune(
        self, retention: Retention, *, dry_run: bool = False, report: Callable[[int], object] = nobody
    ) -> int:
        """Delete the events past retention; return how many. Workers need no signal."""
        from ..periodic.pruner import Pruner  # not needed to publish

        kept = {"delivered": retention.delivered, "dead": retention.dead}
        async with self.audit.action("events.prune", None, kept, recorded=not dry_run) as entry:

            def count(number: int) -> None:
                entry.touched += number
                report(number)

            return await Pruner(self._storage.archive, retention).run(dry_run=dry_run, report=count)

    async def matcher(self, file: Sequence[Subscription]) -> Matcher[str]:
        """Return the matcher of the active subscriptions and those of a file, which may not be in the store yet."""
        _, known = await self._storage.subscriptions()
        wanted = [*(each.subscription for each in known if not each.expired), *file]
        return Matcher((each, each.name) for each in wanted)

    async def delivery(self, which: DeliveryRef) -> tuple[DeliveryView, Sequence[AttemptView]]:
        """Return one delivery and its attempts. Raise `NotFound`, which names what does not exist."""
        event = await self.records.event(which.event)
        await self.records.subscription(which.subscription)
        try:
            return await self.records.delivery(event.seq, which.subscription)
        except NotFound as error:
            raise NotFound(f"{error}; the event is {event.state}") from error

    async def holds(self) -> Mapping[str, str]:
        """Return, by name, the reason why each held subscription is not delivered to."""
        known = await self.records.registered()
        return {
            each.registered.subscription.name: hold for each in known if (hold := hold_of(each.registered, each.active))
        }

    async def query(self, query: DeliveryQuery, *, event: str | None = None) -> DeliveryQuery:
        """
        Return the query with the event, given by its seq or its id, as a condition.

        Raises:
            NotFound: there is no such event or subscription, where an empty answer would look like "nothing to do".
        """
        if query.subscription is not None:
            await self.records.subscription(query.subscription)
        return query if event is None else replace(query, seq=(await self.records.event(event)).seq)

    async def _change(
        self,
        which: DeliveryQuery | DeliveryRef,
        change: Callable[[DeliveryQuery], Awaitable[int]],
        fitting: Sequence[DeliveryState],
        done: str,
    ) -> int:
        if isinstance(which, DeliveryQuery):
            return await change(await self.query(which))
        number = await change(await self.query(DeliveryQuery(subscription=which.subscription), event=which.event))
        if number == 0:
            view, _ = await self.delivery(which)
            raise StateConflict(
                f"the delivery of event {view.seq} to {view.subscription} is {view.state.value}; "
                f"only {' or '.join(fitting)} ones can be {done}"
            )
        return number


def _counting(
    advance: Callable[[int], object], entry: Entry, announce: Callable[[], object], *, dry_run: bool
) -> Callable[[int], object]:
    """Return an `advance` that counts each batch, and signals the workers after it."""

    def count(number: int) -> None:
        entry.touched += number
        if number and not dry_run:
            announce()
        advance(number)

    return count
