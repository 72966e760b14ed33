"""Schedules, for both databases; the statements of every tick are each database's own."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

import structlog
from sqlalchemy import Row, Select, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from typing_extensions import override

from ..errors import NotFound, StateConflict, described
from ..policies.schedule import Schedule
from .bus_row import bump_version, lock_bus
from .contract.schedules import Check, Due, Fired, Firing, PutSchedule, Schedules, ScheduleView, unchecked
from .expressions import Now
from .registry import put_subscriptions
from .tables import occurrences, schedules
from .transactions import Transactions

if TYPE_CHECKING:
    from ..subscription import Subscription

__all__ = ["SqlSchedules", "Ticks"]

log = structlog.get_logger(__name__)

_STOPPED = {"tick": None, "next_at": None, "queued_until": None}


class Ticks(Protocol):
    """The two methods of `Schedules` that run all the time, as each database has them."""

    async def due_schedules(self, limit: int) -> Due:
        """Return at most `limit` schedules that are due."""

    async def fire_schedules(self, firings: Sequence[Firing]) -> Fired:
        """Record occurrences with their events."""


class SqlSchedules(Schedules):
    """`Schedules` on SQLAlchemy Core; the statements of every tick are each database's own."""

    def __init__(self, engine: AsyncEngine, ticks: Ticks) -> None:
        """Args: ticks has the statements of every tick, on driver connections."""
        self._ticks = ticks
        self._transactions = Transactions(engine)

    @override
    async def due(self, limit: int) -> Due:
        return await self._ticks.due_schedules(limit)

    @override
    async def fire(self, firings: Sequence[Firing]) -> Fired:
        return await self._ticks.fire_schedules(firings)

    @override
    async def put_file(self, subscriptions: Sequence[Subscription], wanted: Sequence[Schedule]) -> None:
        async with self._transactions.write() as connection:
            await lock_bus(connection)  # so that instances that start together do not race
            changed = await put_subscriptions(connection, subscriptions, "file")
            if await _put_file(connection, wanted) or changed:
                await bump_version(connection)

    @override
    async def put(self, schedule: Schedule, origin: str, check: Check = unchecked) -> PutSchedule:
        async with self._transactions.write() as connection:
            await lock_bus(connection)
            one = _all().where(schedules.c.name == schedule.name)
            known = (await connection.execute(one.with_for_update(of=schedules))).one_or_none()
            check(None if known is None else _view(known))
            if known is not None and known.active and known.origin != origin:
                raise _belongs(known)
            changed = await _put(connection, known, schedule, origin, await _clock(connection))
            if changed:
                await bump_version(connection)
            return PutSchedule(_readable(await _named(connection, schedule.name)), known is None, changed)

    @override
    async def all(self) -> Sequence[ScheduleView]:
        async with self._transactions.read() as connection:
            rows = (await connection.execute(_all().order_by(schedules.c.name))).all()
        return [view for row in rows if (view := _view(row)) is not None]

    @override
    async def one(self, name: str) -> ScheduleView:
        async with self._transactions.read() as connection:
            return _readable(await _named(connection, name))

    @override
    async def set_paused(self, name: str, paused: bool, by: str | None = None) -> bool:
        async with self._transactions.write() as connection:
            await lock_bus(connection)
            row = await _named(connection, name, lock=True)
            if row.paused == paused:
                return False
            said: dict[str, Any] = {"paused_at": None, "paused_by": None, "queued_until": None}
            if paused:
                said = {"paused_at": Now(), "paused_by": by, **_STOPPED}
            elif row.active:
                schedule = _readable(row).schedule
                said |= _begin(schedule, schedule.after(await _clock(connection)))
            await _change(connection, row.id, paused=paused, **said)
            await bump_version(connection)
            return True

    @override
    async def remove(self, name: str, check: Check = unchecked) -> None:
        async with self._transactions.write() as connection:
            await lock_bus(connection)
            row = await _named(connection, name, lock=True)
            check(_view(row))
            await connection.execute(delete(occurrences).where(occurrences.c.schedule_id == row.id))
            await connection.execute(delete(schedules).where(schedules.c.id == row.id))
            await bump_version(connection)

    @override
    async def now(self) -> datetime:
        async with self._transactions.read() as connection:
            return await _clock(connection)


async def _put_file(connection: AsyncConnection, wanted: Sequence[Schedule]) -> bool:
    """Make the active schedules of the file be these, under the lock of the bus; return whether that changed any."""
    known = {row.name: row for row in await connection.execute(_all().with_for_update(of=schedules))}
    now = await _clock(connection)
    changed = [await _put(connection, known.get(each.name), each, "file", now) for each in wanted]
    names = {each.name for each in wanted}
    ours = [row for row in known.values() if row.origin == "file" and row.active]
    gone = [row.id for row in ours if row.name not in names]
    for id in gone:
        await _change(connection, id, active=False, **_STOPPED)
    return bool(gone) or any(changed)


def _all() -> Select[Any]:
    return select(schedules)


async def _clock(connection: AsyncConnection) -> datetime:
    now: datetime = await connection.scalar(select(Now()))  # type: ignore[assignment]  # it always has one
    return now


async def _put(
    connection: AsyncConnection, known: Row[Any] | None, schedule: Schedule, origin: str, now: datetime
) -> bool:
    """Write one schedule if it differs from what is known; return whether it did."""
    spec = schedule.to_json()
    shown = {"cron": schedule.cron or "", "timezone": schedule.timezone}
    if known is None:
        begin = _begin(schedule, schedule.after(now))
        who = {"name": schedule.name, "origin": origin, "active": True, "paused": False}
        await connection.execute(insert(schedules).values(spec=spec, updated_at=Now(), **shown, **who, **begin))
        return True
    if known.spec == spec and known.active and known.origin == origin:
        return False
    said: dict[str, Any] = shown
    if not known.paused:
        said |= _begin(schedule, _first(known, schedule, now))
    await _change(connection, known.id, spec=spec, origin=origin, active=True, **said)
    return True


def _first(known: Row[Any], schedule: Schedule, now: datetime) -> datetime | None:
    """Return the first tick of a schedule that takes the place of a known one."""
    view = _view(known)
    if view is None or not view.active or view.tick is None:
        return schedule.after(now)
    return schedule.in_place_of(view.schedule, view.tick, now, view.last_tick)


def _begin(schedule: Schedule, tick: datetime | None) -> dict[str, Any]:
    return {"tick": tick, "next_at": None if tick is None else schedule.due_at(tick)}


async def _change(connection: AsyncConnection, id: int, **values: Any) -> None:
    """Write a changed schedule, so that ticks of the old one no longer fire."""
    change = update(schedules).where(schedules.c.id == id)
    await connection.execute(change.values(revision=schedules.c.revision + 1, updated_at=Now(), **values))


async def _named(connection: AsyncConnection, name: str, *, lock: bool = False) -> Row[Any]:
    one = _all().where(schedules.c.name == name)
    row: Row[Any] | None = (await connection.execute(one.with_for_update() if lock else one)).one_or_none()
    if row is None:
        names = await connection.scalars(select(schedules.c.name).order_by(schedules.c.name))
        raise NotFound(f"no schedule {name!r}; there are: {', '.join(names) or 'none'}")
    return row


def _belongs(known: Row[Any]) -> StateConflict:
    if known.origin == "file":
        return StateConflict(f"schedule {known.name} is in the file; change it there, and reload or start a runner")
    return StateConflict(f"schedule {known.name} was made by {known.origin}; remove it first")


def _view(row: Row[Any]) -> ScheduleView | None:
    """Return the schedule in a row of the table; None, and a line in the log, for one that cannot be read."""
    try:
        return _readable(row)
    except StateConflict as error:
        log.error("schedule left out", detail=str(error))
        return None


def _readable(row: Row[Any]) -> ScheduleView:
    try:
        schedule = Schedule.from_json(row.name, row.spec)
    except Exception as error:
        raise StateConflict(
            f"schedule {row.name!r} cannot be read: {described(error)}; "
            "start a runner whose file has it, which writes it anew, or the version that wrote it"
        ) from error
    return ScheduleView(
        id=row.id,
        schedule=schedule,
        origin=row.origin,
        active=row.active,
        paused=row.paused,
        tick=row.tick,
        due_at=row.next_at,
        last_tick=row.last_tick,
        missed=row.missed,
        skipped=row.skipped,
        paused_at=row.paused_at if row.paused else None,
        paused_by=row.paused_by if row.paused else None,
        updated_at=row.updated_at,
    )
