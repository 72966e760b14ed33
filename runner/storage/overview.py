"""The overview of a deployment and the holds of one delivery, by statements of bounded cost on tables of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from sqlalchemy import BigInteger, ColumnElement, Row, Select, func, literal, select
from sqlalchemy.ext.asyncio import AsyncEngine
from typing_extensions import override

from ..delivery import DeliveryState
from ..event import Event
from .base import UNREADABLE, Registered
from .engine import mapped_errors
from .registry import compilable, named, readable
from .selection import OPEN, WITHOUT_DATA, event_of, in_state
from .tables import (
    Among,
    Keys,
    Later,
    Now,
    attempts,
    bus,
    deliveries,
    dispatch,
    events,
    paces,
    scheduled,
    subscriptions,
    turns,
)

__all__ = ["MOST", "RECENT", "SAMPLE", "Hold", "Load", "Overview", "Queue", "Recent", "SqlOverview", "Turned"]

MOST = 10_000
"""The highest count of one kind; `MOST + 1` stands for more."""

SAMPLE = 5_000
"""How many of the last events and deliveries a rate is taken from."""

RECENT = timedelta(minutes=1)
"""How far back a rate looks."""

_ATTEMPTS = 500  # of the last, for the last error of each subscription
_EXCERPT = 300  # characters of an error
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """
    The events that are not dispatched yet, and how many come in.

    Attributes:
        now: by the clock of the store.
        queued, scheduled: no more than `MOST + 1`.
        oldest_at: when the first of the queued ones was recorded.
        next_at: when the first of the scheduled ones is due.
        recorded: events of the last minute, no more than `SAMPLE`.
        recorded_since: when the first of them was recorded.
    """

    now: datetime
    queued: int = 0
    oldest_at: datetime | None = None
    scheduled: int = 0
    next_at: datetime | None = None
    recorded: int = 0
    recorded_since: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """
    The deliveries of one subscription that are not over.

    Attributes:
        pending, leased: together no more than `MOST + 1`, those that are due first.
        dead: no more than `MOST + 1`.
        oldest_at: when the oldest of their events was recorded.
        failing_from: the first attempt of the oldest of them that has failed.
    """

    pending: int = 0
    leased: int = 0
    dead: int = 0
    oldest_at: datetime | None = None
    failing_from: datetime | None = None

    @property
    def open(self) -> int:
        """How many wait or run."""
        return self.pending + self.leased


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    """
    What became of the last deliveries of one subscription, as far as a look at the last `SAMPLE` of all tells.

    Attributes:
        delivered: in the time since `since`, a minute at most.
    """

    delivered: int = 0
    since: datetime | None = None
    last_success: datetime | None = None
    last_failure: datetime | None = None
    last_error: str | None = None


@dataclass(frozen=True, slots=True)
class Turned:
    """
    The place of a delivery in the line of its key.

    Attributes:
        first: the event at the head of the line, which may be its own.
        earlier: an earlier event that waits to be dispatched, and may have to go first.
    """

    key: str
    first: int
    earlier: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """
    One event and one subscription, and all that the store knows of why it is not delivered.

    Attributes:
        version: of the set of subscriptions.
        created_at, updated_at: of the subscription.
        scheduled_at: when the event is due, before it is dispatched.
        queued: whether it waits to be dispatched; `dispatch_until` and `dispatch_token` are the lease of that.
        state: of the delivery; None where none is recorded.
        paced_until: when the rate of the subscription is as if never used.
    """

    now: datetime
    version: int
    registered: Registered
    active: bool
    created_at: datetime
    updated_at: datetime
    scheduled_at: datetime | None = None
    queued: bool = False
    dispatch_until: datetime | None = None
    dispatch_token: int | None = None
    state: DeliveryState | None = None
    attempts: int = 0
    due_at: datetime | None = None
    token: int | None = None
    last_error: str | None = None
    changed_at: datetime | None = None
    turn: Turned | None = None
    paced_until: datetime | None = None


class Overview(Protocol):
    """The seam of `runner status` and `runner why`. Not on the hot path; no cost grows with what is recorded."""

    async def queue(self) -> Queue:
        """Return what waits to be dispatched."""

    async def undispatched(self, limit: int) -> Sequence[Event]:
        """Return the first `limit` events that wait to be dispatched, without their data."""

    async def subscribed(self) -> Sequence[tuple[Registered, bool]]:
        """Return every subscription ever known, and whether it is active."""

    async def loads(self) -> Mapping[int, Load]:
        """Return, for each id of a subscription, what is not over."""

    async def recent(self) -> Mapping[int, Recent]:
        """Return, for each id of a subscription, what became of its last deliveries."""

    async def hold(self, seq: int, subscription: str) -> Hold:
        """Return what is known of an event for a subscription. Raise `NotFound` for an unknown name."""


class SqlOverview(Overview):
    """`Overview` on SQLAlchemy Core."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._reading = engine.execution_options(sqlite_begin="DEFERRED")

    @override
    async def queue(self) -> Queue:
        [row] = await self._rows(_queue())
        return Queue(**row._mapping)

    @override
    async def undispatched(self, limit: int) -> Sequence[Event]:
        first = select(*WITHOUT_DATA).join(dispatch, dispatch.c.event_seq == events.c.seq)
        found = []
        for row in await self._rows(first.order_by(dispatch.c.position).limit(limit)):
            try:
                found.append(event_of(row))
            except UNREADABLE:
                continue  # whoever dispatches it says so
        return found

    @override
    async def subscribed(self) -> Sequence[tuple[Registered, bool]]:
        known = select(subscriptions, Now().label("now")).order_by(subscriptions.c.id)
        return [(each, row.active) for row, each in readable(await self._rows(known))]

    @override
    async def loads(self) -> Mapping[int, Load]:
        rows = await self._rows(_loads())
        oldest = [row.oldest for row in rows if row.oldest is not None]
        recorded = select(events.c.seq, events.c.created_at).where(Among(events.c.seq, literal(oldest, Keys())))
        at = {row.seq: row.created_at for row in await self._rows(recorded)}
        return {
            row.id: Load(
                pending=row.waiting - row.leased,
                leased=row.leased,
                dead=row.dead,
                oldest_at=at.get(row.oldest),
                failing_from=row.failing_from,
            )
            for row in rows
        }

    @override
    async def recent(self) -> Mapping[int, Recent]:
        rows = await self._rows(_recent())
        tried = await self._rows(_tried())
        failures: dict[int, Row[Any]] = {}
        for row in tried:
            failures.setdefault(row.subscription_id, row)
        full = sum(row.seen for row in rows) >= SAMPLE
        start = min((row.first for row in rows), default=None) if full else None
        succeeded = {row.subscription_id: row for row in rows}
        return {
            id: Recent(
                delivered=succeeded[id].delivered if id in succeeded else 0,
                since=start,
                last_success=succeeded[id].last if id in succeeded else None,
                last_failure=failures[id].at if id in failures else None,
                last_error=failures[id].error if id in failures else None,
            )
            for id in succeeded.keys() | failures.keys()
        }

    @override
    async def hold(self, seq: int, subscription: str) -> Hold:
        rows = await self._rows(_hold(seq, subscription))
        if not rows:
            with mapped_errors():
                async with self._reading.connect() as connection:
                    rows = [await named(connection, subscription)]  # which raises, with the names there are
        row = rows[0]
        turn = None
        if row.order_key is not None:
            [line] = await self._rows(_line(row.id, row.order_key, row.position))
            turn = Turned(row.order_key, line.first, line.earlier)
        return Hold(
            now=row.now,
            version=row.subscriptions_version,
            registered=compilable(row),
            active=row.active,
            created_at=row.created_at,
            updated_at=row.updated_at,
            scheduled_at=row.scheduled_at,
            queued=row.queued_as is not None,
            dispatch_until=row.dispatch_until,
            dispatch_token=row.dispatch_token,
            state=None if row.state is None else DeliveryState(row.state),
            attempts=row.attempts or 0,
            due_at=row.due_at,
            token=row.token,
            last_error=row.last_error,
            changed_at=row.changed_at,
            turn=turn,
            paced_until=row.paced_until,
        )

    async def _rows(self, statement: Select[*tuple[Any, ...]]) -> Sequence[Row[Any]]:
        with mapped_errors():
            async with self._reading.connect() as connection:
                return (await connection.execute(statement)).all()


def _ago(age: timedelta) -> ColumnElement[datetime]:
    return Later(literal(-age // _MICROSECOND, BigInteger))


def _queue() -> Select[*tuple[Any, ...]]:
    queued = select(dispatch.c.position).limit(MOST + 1).subquery()
    later = select(scheduled.c.due_at).order_by(scheduled.c.due_at).limit(MOST + 1).subquery()
    last = select(events.c.created_at).order_by(events.c.seq.desc()).limit(SAMPLE).subquery()
    first = select(dispatch.c.event_seq).order_by(dispatch.c.position).limit(1).scalar_subquery()
    lately = last.c.created_at > _ago(RECENT)
    return select(
        Now().label("now"),
        select(func.count()).select_from(queued).scalar_subquery().label("queued"),
        select(events.c.created_at).where(events.c.seq == first).scalar_subquery().label("oldest_at"),
        select(func.count()).select_from(later).scalar_subquery().label("scheduled"),
        select(func.min(scheduled.c.due_at)).scalar_subquery().label("next_at"),
        select(func.count()).select_from(last).where(lately).scalar_subquery().label("recorded"),
        select(func.min(last.c.created_at)).where(lately).scalar_subquery().label("recorded_since"),
    )


def _loads() -> Select[*tuple[Any, ...]]:
    mine = deliveries.c.subscription_id == subscriptions.c.id
    unfinished = (
        select(deliveries.c.event_seq, deliveries.c.state, deliveries.c.last_error)
        .where(mine, in_state(OPEN))
        .order_by(deliveries.c.due_at)
        .limit(MOST + 1)
        .correlate(subscriptions)
    )
    dead = select(deliveries.c.event_seq).where(mine, in_state((DeliveryState.DEAD,))).limit(MOST + 1)
    waiting, leased, oldest, failing = (unfinished.subquery() for _ in range(4))  # each is read by itself
    failed = select(func.min(failing.c.event_seq)).where(failing.c.last_error.is_not(None)).scalar_subquery()
    first_try = select(func.min(attempts.c.at)).where(
        attempts.c.event_seq == failed, attempts.c.subscription_id == subscriptions.c.id
    )
    return select(
        subscriptions.c.id,
        select(func.count()).select_from(waiting).scalar_subquery().label("waiting"),
        select(func.count()).select_from(leased).where(leased.c.state == "leased").scalar_subquery().label("leased"),
        select(func.min(oldest.c.event_seq)).scalar_subquery().label("oldest"),
        first_try.correlate(subscriptions).scalar_subquery().label("failing_from"),
        select(func.count()).select_from(dead.correlate(subscriptions).subquery()).scalar_subquery().label("dead"),
    )


def _recent() -> Select[*tuple[Any, ...]]:
    newest = (deliveries.c.event_seq.desc(), deliveries.c.subscription_id.desc())
    last = select(deliveries.c.subscription_id, deliveries.c.state, deliveries.c.updated_at)
    last_ = last.order_by(*newest).limit(SAMPLE).subquery()
    delivered = last_.c.state == "delivered"
    return select(
        last_.c.subscription_id,
        func.count().label("seen"),
        func.min(last_.c.updated_at).label("first"),
        func.count().filter(delivered, last_.c.updated_at > _ago(RECENT)).label("delivered"),
        func.max(last_.c.updated_at).filter(delivered).label("last"),
    ).group_by(last_.c.subscription_id)


def _tried() -> Select[*tuple[Any, ...]]:
    error = func.substr(attempts.c.error, 1, _EXCERPT).label("error")
    last = select(attempts.c.serial, attempts.c.subscription_id, attempts.c.at, error)
    last_ = last.order_by(attempts.c.serial.desc()).limit(_ATTEMPTS).subquery()
    return select(last_).where(last_.c.error.is_not(None)).order_by(last_.c.serial.desc())


def _hold(seq: int, subscription: str) -> Select[*tuple[Any, ...]]:
    its = deliveries.c.event_seq == seq, deliveries.c.subscription_id == subscriptions.c.id
    place = turns.c.event_seq == seq, turns.c.subscription_id == subscriptions.c.id
    return (
        select(
            subscriptions,
            bus.c.subscriptions_version,
            Now().label("now"),
            scheduled.c.due_at.label("scheduled_at"),
            dispatch.c.position.label("queued_as"),
            dispatch.c.lease_until.label("dispatch_until"),
            dispatch.c.lease_token.label("dispatch_token"),
            deliveries.c.state,
            deliveries.c.attempts,
            deliveries.c.due_at,
            deliveries.c.lease_token.label("token"),
            deliveries.c.last_error,
            deliveries.c.updated_at.label("changed_at"),
            turns.c.order_key,
            turns.c.position,
            paces.c.next_at.label("paced_until"),
        )
        .select_from(subscriptions)
        .join(bus, bus.c.one == 1)
        .outerjoin(scheduled, scheduled.c.event_seq == seq)
        .outerjoin(dispatch, dispatch.c.event_seq == seq)
        .outerjoin(deliveries, its[0] & its[1])
        .outerjoin(turns, place[0] & place[1])
        .outerjoin(paces, paces.c.subscription_id == subscriptions.c.id)
        .where(subscriptions.c.name == subscription)
        .order_by(dispatch.c.position)
        .limit(1)
    )


def _line(subscription_id: int, key: str, position: int) -> Select[*tuple[Any, ...]]:
    line = select(turns.c.event_seq).where(turns.c.subscription_id == subscription_id, turns.c.order_key == key)
    earlier = select(dispatch.c.event_seq).where(dispatch.c.position < position).order_by(dispatch.c.position)
    return select(
        line.order_by(turns.c.position).limit(1).scalar_subquery().label("first"),
        earlier.limit(1).scalar_subquery().label("earlier"),
    )
