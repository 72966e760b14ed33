"""Move the due time of an event or its waiting deliveries, on both databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, delete, func, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ..delivery import DeliveryState
from ..errors import StateConflict
from .contract.corrections import Rescheduled
from .expressions import Instant, Later, Now
from .selection import OPEN, in_state
from .tables import deliveries, dispatch, scheduled, subscriptions
from .transactions import Transactions

__all__ = ["reschedule"]

_MICROSECOND = timedelta(microseconds=1)


async def reschedule(
    transactions: Transactions,
    seq: int,
    due: timedelta | datetime,
    subscription: str | None,
    before: datetime | None = None,
) -> Rescheduled:
    """Move the event while it waits to be dispatched, or else its deliveries that wait; in one transaction."""
    async with transactions.write() as connection:
        at = await _due_at(connection, due)
        if before is not None and at >= before:
            raise StateConflict(f"event {seq} expires at {_written(before)}, which is not after {_written(at)}")
        # Work moves from `scheduled` to `dispatch` to `deliveries`: in that order it is found in any of them.
        if subscription is None and await _move_event(connection, seq, at):
            return Rescheduled(at, whole=True)
        conditions = _theirs(seq, subscription)
        pending = update(deliveries).where(*conditions, in_state(OPEN), in_state((DeliveryState.PENDING,)))
        moved = (await connection.execute(pending.values(due_at=at, updated_at=Now()))).rowcount
        running = select(func.count()).select_from(deliveries)
        running = running.where(*conditions, in_state(OPEN), in_state((DeliveryState.LEASED,)))
        return Rescheduled(at, deliveries=moved, running=await connection.scalar(running) or 0)


async def _due_at(connection: AsyncConnection, due: timedelta | datetime) -> datetime:
    """Return the due time, which counts from now on the clock of the store and lies no earlier."""
    later = Later(literal(max(due, timedelta(0)) // _MICROSECOND if isinstance(due, timedelta) else 0, BigInteger))
    at: datetime = (await connection.execute(select(later))).scalar_one()
    return max(at, due) if isinstance(due, datetime) else at


async def _move_event(connection: AsyncConnection, seq: int, at: datetime) -> bool:
    """Return whether the event was waiting to be dispatched, and is now scheduled for then."""
    later = update(scheduled).where(scheduled.c.event_seq == seq).values(due_at=at)
    if (await connection.execute(later)).rowcount:
        return True
    # A delivery that is leased, or was, may have reached its receiver.
    untried = (dispatch.c.lease_until.is_(None), dispatch.c.attempts == 0)
    queued = delete(dispatch).where(dispatch.c.event_seq == seq, *untried)
    if not (await connection.execute(queued)).rowcount:
        return False
    await connection.execute(insert(scheduled).values(event_seq=seq, due_at=literal(at, Instant)))
    return True


def _theirs(seq: int, subscription: str | None) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[Any]] = [deliveries.c.event_seq == seq]
    if subscription is not None:
        named = select(subscriptions.c.id).where(subscriptions.c.name == subscription)
        conditions.append(deliveries.c.subscription_id == named.scalar_subquery())
    return conditions


def _written(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
