"""Operations on schedules, the same for the command line, the library and HTTP."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING

from ..errors import StateConflict
from ..event import new_id
from ..storage.contract.events import Publication, Receipt
from .preconditions import UNCONDITIONAL, Precondition

if TYPE_CHECKING:
    from ..policies.schedule import Schedule
    from ..storage import Storage
    from ..storage.contract.schedules import PutSchedule, ScheduleView
    from .audit import AuditLog

__all__ = ["ScheduleOperations"]


class ScheduleOperations:
    """
    Look at schedules, make, pause, run and remove them.

    Schedulers, here and elsewhere, hear of every change. Every change is in the audit log.
    """

    def __init__(self, storage: Storage, announce: Callable[[], object], audit: AuditLog) -> None:
        """
        Work on `storage`.

        Args:
            announce: wakes the worker of this process and notifies the others.
            audit: records the actions.
        """
        self._storage = storage
        self._announce = announce
        self._audit = audit

    async def all(self) -> Sequence[ScheduleView]:
        """Return every schedule on record, by name."""
        return await self._storage.schedules.all()

    async def one(self, name: str) -> ScheduleView:
        """Return one of them. Raise `NotFound`."""
        return await self._storage.schedules.one(name)

    async def upcoming(self, name: str, count: int) -> Sequence[datetime]:
        """Return the next `count` times of a schedule, whether it is paused or not. Raise `NotFound`."""
        view = await self.one(name)
        return list(islice(view.schedule.ticks(await self._storage.schedules.now()), count))

    async def run(self, name: str) -> Receipt:
        """
        Publish the event of a schedule now, beside its times, and return the receipt.

        Its id is `NAME/run/` and a UUID, so that it takes the place of no tick. Also while the schedule is paused.

        Raises:
            NotFound: there is none of that name.
            StateConflict: it is in no file any more.
        """
        async with self._audit.action("schedules.run", name) as entry:
            view = await self.one(name)
            if not view.active:
                raise StateConflict(
                    f"schedule {name} is in no file any more; put it, or publish its event: runner publish"
                )
            event = view.schedule.event_at(await self._storage.schedules.now(), f"{name}/run/{new_id()}")
            [receipt] = await self._storage.events.append([Publication(event)])
            entry.touched = 1
            self._announce()
            return receipt

    async def put(self, schedule: Schedule) -> bool:
        """
        Make or replace a schedule; return whether that changed anything.

        Raises:
            StateConflict: it is in the file.
        """
        return (await self.replace(schedule)).changed

    async def replace(self, schedule: Schedule, precondition: Precondition = UNCONDITIONAL) -> PutSchedule:
        """
        Make or replace a schedule that is in the state of `precondition`; return it.

        Raises:
            ChangedMeanwhile: it is in another state.
            StateConflict: it is in the file.
        """
        said = {"cron": schedule.cron, "every": schedule.every, "timezone": schedule.timezone}
        async with self._audit.action("schedules.put", schedule.name, said) as entry:
            put = await self._storage.schedules.put(schedule, "api", precondition.check_schedule)
            entry.touched = int(put.changed)
            if put.changed:
                self._announce()
            return put

    async def set_paused(self, name: str, paused: bool, by: str | None = None) -> bool:
        """Pause or resume a schedule; return whether that changed anything. Raise `NotFound`."""
        async with self._audit.action(
            f"schedules.{'pause' if paused else 'resume'}", name, self._audit.by(by)
        ) as entry:
            changed = await self._storage.schedules.set_paused(name, paused, by)
            entry.touched = int(changed)
            if changed:
                self._announce()
            return changed

    async def remove(
        self, name: str, *, file: Collection[str] = (), precondition: Precondition = UNCONDITIONAL
    ) -> None:
        """
        Forget a schedule. Its events stay until their retention is over.

        Args:
            file: names of the schedules in the file at hand.

        Raises:
            NotFound: there is none of that name.
            ChangedMeanwhile: it is in another state than that of `precondition`.
            StateConflict: it is in the file, and would come back.
        """
        async with self._audit.action("schedules.remove", name) as entry:
            view = await self.one(name)
            precondition.check_schedule(view)
            if name in file or (view.origin == "file" and view.active):
                raise StateConflict(
                    f"{name} is in the file, and would come back with it; take it out there, and reload or start a "
                    f"runner; until then: runner schedules pause {name}"
                )
            await self._storage.schedules.remove(name, precondition.check_schedule)
            entry.touched = 1
            self._announce()
