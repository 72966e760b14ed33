"""The contract of publishing, and its values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ...event import EXPIRY, NO_EXTENSIONS, Event

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from .claims import Claim

__all__ = ["EventStore", "Publication", "Receipt", "due_at_once"]


class Publication(NamedTuple):
    """
    An event on its way in, and when it is due: at once, `delay` from now, or at `deliver_at`.

    It expires `expires_in` from now, which the bus writes into the event as its `expirytime`. An `exported` event was
    recorded before, possibly by other rules: its URIs are not checked.
    """

    event: Event
    delay: timedelta | None = None
    deliver_at: datetime | None = None
    expires_in: timedelta | None = None
    exported: bool = False


def due_at_once(publications: Sequence[Publication]) -> bool:
    """Return whether all of them are due now, and none expires."""
    for event, delay, deliver_at, _, _ in publications:
        if delay is not None or deliver_at is not None:
            return False
        if event.extensions is not NO_EXTENSIONS and EXPIRY in event.extensions:
            return False
    return True


class Receipt(NamedTuple):
    """The answer to a publisher: `seq` orders events within the store; `duplicate` if it was there before."""

    source: str
    id: str
    seq: int
    duplicate: bool


class EventStore(Protocol):
    """
    Record events, each with its one row of work, in one transaction.

    Attributes:
        appends_at_once: how many transactions of one process side by side are faster than one after the other.
    """

    appends_at_once: int

    async def append(self, publications: Sequence[Publication]) -> Sequence[Receipt]:
        """
        Record the events, all or none, and return a receipt for each in the same order.

        An event whose (source, id) is recorded already changes nothing and has `duplicate` set; its
        acknowledgement is as durable as the first one's.

        Raises:
            EventConflict: the same (source, id) is recorded with other content.
            StorageUnavailable: whether they were recorded is unknown; the same call again is safe.
        """

    async def append_leased(
        self, publications: Sequence[Publication], lease: timedelta
    ) -> tuple[Sequence[Receipt], Claim | None]:
        """
        Do the same for events that are all due at once, and lease the new ones to the caller in the same transaction.

        So a process that publishes and works need not claim them. The claim is None if some had been recorded before: a
        store may then leave the new ones to be claimed.
        """

    async def now(self) -> datetime:
        """Return the time on the clock of the store."""

    async def append_in(self, session: AsyncSession, publications: Sequence[Publication]) -> Sequence[Receipt]:
        """Do the same inside the caller's own transaction: recorded if and when that commits."""

    async def recorder(self, publications: Sequence[Publication]) -> Callable[[Any], Sequence[Receipt]]:
        """
        Return a function, for any thread, that does the same on a synchronous connection of a driver (PEP 249).

        It raises `EventError` for a connection to another kind of database, and else as `append()` does.
        """
