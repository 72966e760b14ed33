"""Acknowledgements of deferred deliveries, for both databases."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Row, insert, literal, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from ..delivery import DeliveryState
from ..errors import NotFound, StateConflict, StorageRefused
from ..subscription import Matcher
from .audit import record
from .contract.audit import Action, ActionOutcome
from .contract.records import EventView
from .encoding import storable
from .event_views import find_event
from .expressions import Now
from .lines import leave_lines
from .registry import named
from .subscription_rows import registered
from .tables import attempts, deliveries, delivery_states, dispatch
from .transactions import Transactions

__all__ = ["acknowledge"]

_MAX_REASON = 2000  # characters


async def acknowledge(
    transactions: Transactions,
    encoding: str,
    reference: str,
    subscription: str,
    failure: str | None,
    action: Action | None = None,
) -> bool:
    """Record an acknowledgement; see `Corrections.ack()`."""
    if failure is not None:
        failure = storable(failure[:_MAX_REASON], encoding)
    async with transactions.read() as connection:
        event = await find_event(connection, reference)
    for _ in range(3):  # a concurrent settlement may have moved the delivery to another table
        try:
            async with transactions.write() as connection:
                answered = await _answer(connection, event, subscription, failure)
                if answered is not None and action is not None:
                    await record(connection, action, encoding, ActionOutcome.DONE, int(answered))
        except StorageRefused as error:
            if not isinstance(error.__cause__, IntegrityError):
                raise
            continue
        if answered is not None:
            return answered
    raise NotFound(f"no delivery of event {event.seq} to subscription {subscription!r} is recorded")


async def _answer(connection: AsyncConnection, event: EventView, subscription: str, failure: str | None) -> bool | None:
    """Answer the delivery; return whether that changed anything, None if there is no such delivery."""
    known = await named(connection, subscription)
    key = (deliveries.c.event_seq == event.seq, deliveries.c.subscription_id == known.id)
    locked = select(deliveries, Now().label("now")).where(*key).with_for_update()
    row = (await connection.execute(locked)).one_or_none()
    if row is not None:
        return await (_succeed(connection, row) if failure is None else _fail(connection, row, failure))
    states = delivery_states.c
    in_run = select(states.state).where(states.event_seq == event.seq, states.subscription_id == known.id)
    if (state := await connection.scalar(in_run)) == DeliveryState.DELIVERED:
        if failure is not None:
            raise _not_waiting(event.seq, state)
        return False
    if failure is None and Matcher([(registered(known).subscription, True)]).match(event.event):
        return await _succeed_early(connection, event.seq, known.id)
    return None


async def _succeed(connection: AsyncConnection, row: Row[Any]) -> bool:
    if row.state == DeliveryState.DELIVERED:
        return False
    if row.state not in (DeliveryState.PENDING, DeliveryState.LEASED):
        raise StateConflict(
            f"the delivery of event {row.event_seq} is {row.state}, an acknowledgement comes too late; "
            "`runner deliveries retry` delivers it again"
        )
    done = {"state": DeliveryState.DELIVERED, "due_at": None, "lease_token": None, "last_error": None}
    await connection.execute(_of(row).values(**done, updated_at=Now()))
    await leave_lines(connection, row.subscription_id, [row.event_seq])
    if row.attempts > 1:  # the attempt that ended a delivery after failures
        took = row.now - row.updated_at if row.state == DeliveryState.LEASED else timedelta(0)
        await connection.execute(
            insert(attempts).values(
                event_seq=row.event_seq,
                subscription_id=row.subscription_id,
                number=row.attempts,
                at=Now(),
                duration_us=took // timedelta(microseconds=1),
            )
        )
    return True


async def _fail(connection: AsyncConnection, row: Row[Any], reason: str) -> bool:
    """End the wait now; the claim that follows applies the retry policy, with this as the reason."""
    if row.state != DeliveryState.LEASED or row.lease_token is not None:
        raise _not_waiting(row.event_seq, "running" if row.state == DeliveryState.LEASED else row.state)
    # `updated_at` stays: it is the time from which on the acknowledgement was waited for.
    await connection.execute(_of(row).values(due_at=Now(), last_error=reason))
    return True


def _not_waiting(seq: int, state: str) -> StateConflict:
    return StateConflict(
        f"the delivery of event {seq} is {state}; only one that waits for its acknowledgement can fail so"
    )


async def _succeed_early(connection: AsyncConnection, seq: int, id: int) -> bool | None:
    """Record the delivery of an event that is still being dispatched; the dispatch leaves the record alone."""
    columns = ["event_seq", "subscription_id", "state", "attempts", "updated_at"]
    delivered = literal(DeliveryState.DELIVERED.value)
    work = select(dispatch.c.event_seq, literal(id), delivered, dispatch.c.attempts, Now()).where(
        dispatch.c.event_seq == seq
    )
    put = insert(deliveries).from_select(columns, work).returning(deliveries.c.event_seq)
    return True if (await connection.execute(put)).all() else None


def _of(row: Row[Any]) -> Any:
    key = (deliveries.c.event_seq == row.event_seq, deliveries.c.subscription_id == row.subscription_id)
    return update(deliveries).where(*key)
