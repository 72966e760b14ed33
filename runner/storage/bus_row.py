"""The row of the bus: the lock of changes that every instance reads, and the version that tells them to."""

from __future__ import annotations

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from .tables import bus

__all__ = ["bump_version", "lock_bus"]


async def lock_bus(connection: AsyncConnection) -> None:
    """Lock the row until the transaction ends, so that changes of subscriptions and schedules follow each other."""
    await connection.execute(select(bus.c.one).where(bus.c.one == 1).with_for_update())


async def bump_version(connection: AsyncConnection) -> None:
    """Make every instance read subscriptions and schedules again after its next claim."""
    await connection.execute(update(bus).values(subscriptions_version=bus.c.subscriptions_version + 1))
