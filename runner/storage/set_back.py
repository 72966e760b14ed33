"""A clock that was set back: move stored times back with it, on both databases."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import BigInteger, and_, func, literal, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ..delivery import DeliveryState
from .contract.registry import Beat
from .expressions import After, Now
from .selection import OPEN, in_state
from .tables import deliveries, dispatch, events, instances

__all__ = ["set_back"]

_NOTABLE = timedelta(minutes=1)  # shorter delays are simply waited for
_MICROSECOND = timedelta(microseconds=1)


async def set_back(connection: AsyncConnection, instance_id: str) -> Beat:
    """
    Return by how much the clock has been set back since the last beat of any instance, and what time it is.

    At the first beat of this one, the last event counts as well. Deliveries written with a wait, and held leases, are
    moved back, because they would otherwise be due that much later. Scheduled events stay: they may be meant for a time
    of day. The operation is idempotent.
    """
    known = select(instances.c.id).where(instances.c.id == instance_id).exists()
    last = select(events.c.created_at).order_by(events.c.seq.desc()).limit(1).scalar_subquery()
    told = select(func.max(instances.c.heartbeat_at).label("beat"), last.label("event"), known, Now().label("now"))
    beat, event, beaten, now = (await connection.execute(told)).one()
    by_beat, by_event = (timedelta(0) if each is None else each - now for each in (beat, event))
    back = by_beat if beaten else max(by_beat, by_event)
    if back < _NOTABLE:
        return Beat(timedelta(0), now)
    await _move_waits(connection)
    if by_beat >= _NOTABLE:  # else no instance was there that could have held a lease
        await _move_leases(connection, beat, by_beat)
    return Beat(back, now)


async def _move_waits(connection: AsyncConnection) -> None:
    """Move due times written in the future, so that their waits keep their lengths."""
    waits = or_(deliveries.c.state == DeliveryState.PENDING, deliveries.c.lease_token.is_(None))
    since, due = deliveries.c.updated_at, deliveries.c.due_at
    moved = update(deliveries).where(in_state(OPEN), waits, since > Now(), due >= since)
    await connection.execute(moved.values(due_at=due - (since - Now()), updated_at=Now()))


async def _move_leases(connection: AsyncConnection, beat: datetime, by: timedelta) -> None:
    """
    Shorten leases taken before the clock was set back, and correct heartbeats in the future.

    That ends after the last `beat`; what was leased since, or renewed, before it.
    """
    shift = literal(-(by // _MICROSECOND), BigInteger)
    held = and_(deliveries.c.state == DeliveryState.LEASED, deliveries.c.lease_token.is_not(None))
    leases = update(deliveries).where(held, deliveries.c.due_at > beat)
    await connection.execute(leases.values(due_at=After(deliveries.c.due_at, shift)))
    claims = update(dispatch).where(dispatch.c.lease_until > beat)
    await connection.execute(claims.values(lease_until=After(dispatch.c.lease_until, shift)))
    for told in (instances.c.heartbeat_at, instances.c.started_at, instances.c.progress_at):
        await connection.execute(update(instances).where(told > Now()).values({told.key: Now()}))
