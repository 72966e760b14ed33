"""The overview of a deployment and the holds of one delivery, by statements of bounded cost on tables of any size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Row, Select, func, literal, select
from sqlalchemy.ext.asyncio import AsyncEngine
from typing_extensions import override

from ..delivery import DeliveryState
from ..event import Event
from .contract.claims import UNREADABLE
from .contract.overview import MOST, RECENT, SAMPLE, Hold, Load, Overview, Queue, Recent, Turned
from .contract.registry import Registered
from .event_rows import event_of
from .expressions import Among, Keys, Later, Now
from .registry import named
from .selection import OPEN, WITHOUT_DATA, in_state
from .subscription_rows import compilable, readable
from .tables import (
    attempts,
    bus,
    deliveries,
    delivery_states,
    dispatch,
    events,
    paces,
    runs,
    scheduled,
    subscriptions,
    turns,
)
from .transactions import Transactions

__all__ = ["SqlOverview"]

_ATTEMPTS = 500  # of the last, for the last error of each subscription
_EXCERPT = 300  # characters of an error
_MICROSECOND = timedelta(microseconds=1)

_EXPIRED = "expired%, undelivered"  # what deliveries say that did not begin in time


class SqlOverview(Overview):
    """`Overview` on SQLAlchemy Core."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._transactions = Transactions(engine)

    @override
    async def queue(self) -> Queue:
        [row] = await self._rows(_queue())
        return Queue(**row._mapping)

    @override
    async def undispatched(self, limit: int) -> Sequence[Event]:
        first = select(*WITHOUT_DATA).join(dispatch, dispatch.c.event_seq == events.c.seq)
        return _readable(await self._rows(first.order_by(dispatch.c.position).limit(limit)))

    @override
    async def recorded(self, limit: int) -> Sequence[Event]:
        return _readable(await self._rows(_recorded(limit)))

    @override
    async def subscribed(self) -> Sequence[tuple[Registered, bool]]:
        known = select(subscriptions, Now().label("now")).order_by(subscriptions.c.id)
        return [(each, row.active and not each.expired) for row, each in readable(await self._rows(known))]

    @override
    async def loads(self) -> Mapping[int, Load]:
        rows = await self._rows(_loads())
        oldest = [row.oldest for row in rows if row.oldest is not None]
        recorded = select(events.c.seq, events.c.created_at).where(Among(events.c.seq, literal(oldest, Keys())))
        at = {row.seq: row.created_at for row in await self._rows(recorded)} if oldest else {}
        return {
            row.id: Load(
                pending=row.waiting - row.leased,
                leased=row.leased,
                dead=row.dead,
                expired=row.expired,
                oldest_at=at.get(row.oldest),
                failing_from=row.failing_from,
            )
            for row in rows
        }

    @override
    async def recent(self) -> Mapping[int, Recent]:
        rows = await self._rows(_recent())
        settled = await self._rows(_settled())
        tried = await self._rows(_tried())
        failures: dict[int, Row[Any]] = {}
        for row in tried:
            failures.setdefault(row.subscription_id, row)
        sums, start = _sums(rows, settled)
        return {
            id: Recent(
                delivered=sums[id].delivered if id in sums else 0,
                since=start,
                last_success=sums[id].last if id in sums else None,
                last_failure=failures[id].at if id in failures else None,
                last_error=failures[id].error if id in failures else None,
            )
            for id in sums.keys() | failures.keys()
        }

    @override
    async def hold(self, seq: int, subscription: str) -> Hold:
        holds = await self.holds(seq, [subscription])
        if not holds:
            async with self._transactions.read() as connection:
                await named(connection, subscription)  # raises, with the names there are
        return holds[subscription]

    @override
    async def holds(self, seq: int, names: Sequence[str]) -> Mapping[str, Hold]:
        found: dict[str, Hold] = {}
        for row in await self._rows(_holds(seq, names)):
            if row.name not in found:  # of several places in the queue the first counts
                found[row.name] = await self._hold(row)
        return found

    async def _hold(self, row: Row[Any]) -> Hold:
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
        async with self._transactions.read() as connection:
            return (await connection.execute(statement)).all()


def _ago(age: timedelta) -> ColumnElement[datetime]:
    return Later(literal(-age // _MICROSECOND, BigInteger))


def _readable(rows: Iterable[Row[Any]]) -> Sequence[Event]:
    found = []
    for row in rows:
        try:
            found.append(event_of(row))
        except UNREADABLE:
            continue  # reported by the dispatch
    return found


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


def _recorded(limit: int) -> Select[*tuple[Any, ...]]:
    """Return the query for the last events; no more than `limit` rows are read, however old they are."""
    last = select(*WITHOUT_DATA).order_by(events.c.seq.desc()).limit(limit).subquery()
    return select(last).where(last.c.created_at > _ago(RECENT))


def _loads() -> Select[*tuple[Any, ...]]:
    mine = deliveries.c.subscription_id == subscriptions.c.id
    unfinished = (
        select(deliveries.c.event_seq, deliveries.c.state, deliveries.c.last_error)
        .where(mine, in_state(OPEN))
        .order_by(deliveries.c.due_at)
        .limit(MOST + 1)
        .correlate(subscriptions)
    )
    dead = select(deliveries.c.last_error).where(mine, in_state((DeliveryState.DEAD,))).limit(MOST + 1)
    all_dead, late = (dead.correlate(subscriptions).subquery() for _ in range(2))
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
        select(func.count()).select_from(all_dead).scalar_subquery().label("dead"),
        select(func.count())
        .select_from(late)
        .where(late.c.last_error.like(_EXPIRED))
        .scalar_subquery()
        .label("expired"),
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


def _settled() -> Select[*tuple[Any, ...]]:
    """Return the query for the last runs; one has at least four deliveries."""
    lately = runs.c.settled_at > _ago(RECENT)
    last = select(runs.c.seqs, runs.c.subscriptions, runs.c.settled_at, lately.label("lately"))
    return last.order_by(runs.c.id.desc()).limit(SAMPLE // 4)


@dataclass(slots=True)
class _Sum:
    """Sum of the last deliveries of a subscription: how many lately, and when the last one succeeded."""

    delivered: int = 0
    last: datetime | None = None


def _sums(rows: Sequence[Row[Any]], settled: Sequence[Row[Any]]) -> tuple[dict[int, _Sum], datetime | None]:
    """Return the sums of the last rows and runs by subscription, and since when these are all; None for ever."""
    sums = {row.subscription_id: _Sum(row.delivered, row.last) for row in rows}
    starts = [min(row.first for row in rows)] if sum(row.seen for row in rows) >= SAMPLE else []
    seen, first = 0, None
    for run in settled:
        number = sum(last - first + 1 for first, last in run.seqs)
        seen += number * len(run.subscriptions)
        first = run.settled_at if first is None else min(first, run.settled_at)
        for id in run.subscriptions:
            each = sums.setdefault(id, _Sum())
            each.delivered += number if run.lately else 0
            each.last = run.settled_at if each.last is None else max(each.last, run.settled_at)
        if seen >= SAMPLE:
            starts.append(first)
            break
    return sums, max(starts, default=None)


def _tried() -> Select[*tuple[Any, ...]]:
    error = func.substr(attempts.c.error, 1, _EXCERPT).label("error")
    last = select(attempts.c.serial, attempts.c.subscription_id, attempts.c.at, error)
    last_ = last.order_by(attempts.c.serial.desc()).limit(_ATTEMPTS).subquery()
    return select(last_).where(last_.c.error.is_not(None)).order_by(last_.c.serial.desc())


def _holds(seq: int, names: Sequence[str]) -> Select[*tuple[Any, ...]]:
    its = select(delivery_states).where(delivery_states.c.event_seq == seq).subquery()
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
            its.c.state,
            its.c.attempts,
            its.c.due_at,
            its.c.lease_token.label("token"),
            its.c.last_error,
            its.c.updated_at.label("changed_at"),
            turns.c.order_key,
            turns.c.position,
            paces.c.next_at.label("paced_until"),
        )
        .select_from(subscriptions)
        .join(bus, bus.c.one == 1)
        .outerjoin(scheduled, scheduled.c.event_seq == seq)
        .outerjoin(dispatch, dispatch.c.event_seq == seq)
        .outerjoin(its, its.c.subscription_id == subscriptions.c.id)
        .outerjoin(turns, place[0] & place[1])
        .outerjoin(paces, paces.c.subscription_id == subscriptions.c.id)
        .where(subscriptions.c.name.in_(names))
        .order_by(dispatch.c.position)
    )


def _line(subscription_id: int, key: str, position: int) -> Select[*tuple[Any, ...]]:
    line = select(turns.c.event_seq).where(turns.c.subscription_id == subscription_id, turns.c.order_key == key)
    earlier = select(dispatch.c.event_seq).where(dispatch.c.position < position).order_by(dispatch.c.position)
    return select(
        line.order_by(turns.c.position).limit(1).scalar_subquery().label("first"),
        earlier.limit(1).scalar_subquery().label("earlier"),
    )
