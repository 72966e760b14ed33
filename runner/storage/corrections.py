"""Corrections by people, for both databases: deliveries retried and cancelled, events replayed and cancelled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from itertools import groupby
from operator import itemgetter
from time import monotonic
from typing import Any

from sqlalchemy import BigInteger, Select, bindparam, delete, func, literal, select, true, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from typing_extensions import override

from ..delivery import DeliveryState
from ..subscription import Matcher
from .acks import acknowledge
from .contract.audit import Action
from .contract.corrections import Corrections, ReplayQuery, Rescheduled, nobody
from .contract.records import DeliveryQuery, EventQuery
from .event_rows import event_of
from .expressions import After, Instant, Now
from .home import home_of
from .lines import join_lines, leave_lines
from .registry import named
from .reschedule import reschedule
from .selection import (
    OLDEST_FIRST,
    OPEN,
    WITHOUT_DATA,
    Conditions,
    Key,
    attribute_conditions,
    delivery_conditions,
    delivery_key,
    fetch,
    in_state,
    seq_range,
)
from .stretches import Stretches
from .subscription_rows import readable, registered
from .tables import deliveries, delivery_states, dispatch, events, scheduled, subscriptions
from .transactions import Transactions

__all__ = ["SqlCorrections"]

_BATCH = 1000  # rows changed in one transaction
_PAGE = 500  # events looked at, and delivered again, in one transaction
_STEP = timedelta(microseconds=1)  # between the due times of deliveries due at the same time, which keeps their order

_ENDED = (DeliveryState.DEAD, DeliveryState.CANCELLED)
_REPLAYABLE = (DeliveryState.DELIVERED, DeliveryState.DEAD)

_FRESH = {"state": DeliveryState.PENDING, "attempts": 0, "lease_token": None}
_CANCELLED = {"state": DeliveryState.CANCELLED, "due_at": None, "lease_token": None}

Write = Callable[[AsyncConnection, Sequence[Key], int], Awaitable[None]]


class SqlCorrections(Corrections):
    """`Corrections` on SQLAlchemy Core."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._transactions = Transactions(engine)
        self._home = home_of(engine)

    @override
    async def retry(
        self,
        query: DeliveryQuery,
        *,
        every: timedelta | None = None,
        dry_run: bool = False,
        advance: Callable[[int], object] = nobody,
    ) -> int:
        write = _retry_now if every is None else partial(_retry_from, await self._now(), every)
        return await self._change(query, _ENDED, write, ((_BATCH, False),), dry_run=dry_run, advance=advance)

    @override
    async def cancel(
        self, query: DeliveryQuery, *, dry_run: bool = False, advance: Callable[[int], object] = nobody
    ) -> int:
        # A worker that settles locks several rows, and so does a batch here: each could wait for the other. So the
        # batches pass over what is locked, and what they left is then waited for, one by one, with nothing held.
        passes = ((_BATCH, True), (1, False))
        return await self._change(query, OPEN, _cancel, passes, dry_run=dry_run, advance=advance)

    @override
    async def cancel_event(self, seq: int) -> int | None:
        async with self._transactions.write() as connection:
            withdrawn = await _withdraw(connection, seq)
        if withdrawn is None:
            return None
        return withdrawn + await self.cancel(DeliveryQuery(seq=seq, limit=None))

    @override
    async def reschedule(
        self,
        seq: int,
        due: timedelta | datetime,
        *,
        subscription: str | None = None,
        before: datetime | None = None,
    ) -> Rescheduled:
        return await reschedule(self._transactions, seq, due, subscription, before)

    @override
    async def replay(
        self,
        query: ReplayQuery,
        *,
        every: timedelta | None = None,
        dry_run: bool = False,
        advance: Callable[[int], object] = nobody,
    ) -> int:
        async with self._transactions.read() as connection:
            wanted = registered(await named(connection, query.subscription, active=True))
            asked = _events_of(query)
            conditions = attribute_conditions(connection, asked)
            stretches = Stretches(*await seq_range(connection, asked), newest_first=False)
        start, step = await self._now(), _STEP if every is None else max(every, _STEP)
        matcher = Matcher([(wanted.subscription, True)])
        made = 0
        while stretches.left:
            first, last = stretches.next()
            began = monotonic()
            page = _replay_page(*conditions, events.c.seq.between(first, last))
            async with self._transactions.read() as connection:
                rows = await fetch(connection, page)
                matching = [row.seq for row in rows if matcher.match(event_of(row))]
                seqs = await _replayable(connection, matching, wanted.id, missing=query.missing)
            if seqs and not dry_run:
                async with self._transactions.write() as connection:
                    due_at, missing = start + made * step, query.missing
                    number = await _put_pending(connection, wanted.id, seqs, due_at, step, missing=missing)
            else:
                number = len(seqs)
            made += number
            advance(number)
            stretches.looked_through(rows[-1].seq if len(rows) == _PAGE else last, monotonic() - began)
        return made

    @override
    async def ack(
        self, reference: str, subscription: str, *, failure: str | None = None, action: Action | None = None
    ) -> bool:
        return await acknowledge(self._transactions, self._home.encoding, reference, subscription, failure, action)

    async def _now(self) -> datetime:
        async with self._transactions.read() as connection:
            now: datetime = (await connection.scalars(select(Now()))).one()
        return now

    async def _change(
        self,
        query: DeliveryQuery,
        states: Sequence[DeliveryState],
        write: Write,
        passes: Sequence[tuple[int, bool]],
        *,
        dry_run: bool,
        advance: Callable[[int], object],
    ) -> int:
        """
        Write the deliveries that `query` describes and that are in one of `states`; return how many.

        Args:
            passes: ways through the table: rows in one transaction, and whether to leave out locked ones.
        """
        if query.state is not None:
            states = [state for state in states if state == query.state]
        if not states:
            return 0
        conditions = delivery_conditions(query, states)
        if dry_run:
            async with self._transactions.read() as connection:
                found = _keys(conditions).limit(query.limit).subquery()
                return await connection.scalar(select(func.count()).select_from(found)) or 0
        changed = 0
        for size, skip_locked in passes:
            last: Key | None = None
            while room := size if query.limit is None else min(size, query.limit - changed):
                page = _keys([*conditions, *_after(last)]).limit(room)
                page = page.with_for_update(skip_locked=skip_locked, of=deliveries)
                async with self._transactions.write() as connection:
                    keys = [(row.event_seq, row.subscription_id) for row in await connection.execute(page)]
                    if keys:
                        await write(connection, keys, changed)
                changed += len(keys)
                advance(len(keys))
                if len(keys) < room:
                    break
                last = keys[-1]
        return changed


def _after(last: Key | None) -> Conditions:
    return [] if last is None else [delivery_key > last]


def _keys(conditions: Conditions) -> Select[int, int]:
    return select(deliveries.c.event_seq, deliveries.c.subscription_id).where(*conditions).order_by(*OLDEST_FIRST)


async def _retry_now(connection: AsyncConnection, keys: Sequence[Key], _: int) -> None:
    await _update(connection, keys, _FRESH | {"due_at": Now()})
    await _join_lines(connection, keys)


async def _retry_from(
    start: datetime, every: timedelta, connection: AsyncConnection, keys: Sequence[Key], before: int
) -> None:
    """Make them due one after the other, `every` apart, from the one after `before` others."""
    one = (deliveries.c.event_seq == bindparam("seq"), deliveries.c.subscription_id == bindparam("subscription"))
    paced = update(deliveries).where(*one).values(**_FRESH, due_at=bindparam("due"), updated_at=Now())
    rows = [
        {"seq": seq, "subscription": subscription, "due": start + (before + index) * every}
        for index, (seq, subscription) in enumerate(keys)
    ]
    await connection.execute(paced, rows)
    await _join_lines(connection, keys)


async def _cancel(connection: AsyncConnection, keys: Sequence[Key], _: int) -> None:
    await _update(connection, keys, _CANCELLED)
    for subscription_id, seqs in _by_subscription(keys):
        await leave_lines(connection, subscription_id, seqs)


async def _update(connection: AsyncConnection, keys: Sequence[Key], values: Mapping[str, Any]) -> None:
    for subscription_id, seqs in _by_subscription(keys):
        ours = (deliveries.c.subscription_id == subscription_id, deliveries.c.event_seq.in_(seqs))
        await connection.execute(update(deliveries).where(*ours).values(**values, updated_at=Now()))


async def _join_lines(connection: AsyncConnection, keys: Sequence[Key]) -> None:
    for subscription_id, seqs in _by_subscription(keys):
        await join_lines(connection, subscription_id, seqs)


def _by_subscription(keys: Sequence[Key]) -> list[tuple[int, list[int]]]:
    subscription = itemgetter(1)
    groups = groupby(sorted(keys, key=subscription), key=subscription)
    return [(subscription_id, [seq for seq, _ in group]) for subscription_id, group in groups]


# --- an event that is cancelled --------------------------------------------------------------------


async def _withdraw(connection: AsyncConnection, seq: int) -> int | None:
    """
    Take the event's row of work away, and record that it is cancelled, for every subscription that matches it.

    Work moves from `scheduled` to `dispatch` to `deliveries`: looked for in that order, it is met wherever it is.
    A process that is dispatching it finds its row gone when it settles, and writes nothing.

    Returns:
        how many deliveries were recorded; None if the event had no work, and has no delivery that waits or runs.
    """
    later = (await connection.execute(delete(scheduled).where(scheduled.c.event_seq == seq))).rowcount
    leased = (dispatch.c.lease_until > Now()).label("leased")
    queued = delete(dispatch).where(dispatch.c.event_seq == seq).returning(dispatch.c.attempts, leased)
    work = (await connection.execute(queued)).one_or_none()
    if not later and work is None:
        unfinished = select(deliveries.c.event_seq).where(deliveries.c.event_seq == seq, in_state(OPEN)).limit(1)
        if await connection.scalar(unfinished) is None:
            return None
    marked = update(events).where(events.c.seq == seq).values(cancelled_at=Now())
    await connection.execute(marked)
    if not later and work is None:
        return 0
    [row] = await fetch(connection, select(*WITHOUT_DATA).where(events.c.seq == seq))
    active = select(subscriptions, Now().label("now")).where(subscriptions.c.active).order_by(subscriptions.c.id)
    known = [each for _, each in readable(await fetch(connection, active)) if not each.expired]
    matching = Matcher((each.subscription, each.id) for each in known).match(event_of(row))
    fields = {
        "attempts": work.attempts if work else 0,
        "last_error": "cancelled while it was being dispatched: it may have arrived" if work and work.leased else None,
        "updated_at": Now(),
    }
    rows = [{"event_seq": seq, "subscription_id": id, **_CANCELLED, **fields} for id in matching]
    if not rows:
        return 0
    return (await connection.execute(_insert(connection).values(rows).on_conflict_do_nothing())).rowcount


def _insert(connection: AsyncConnection) -> Any:
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(deliveries)


# --- events that are delivered again ---------------------------------------------------------------


def _events_of(query: ReplayQuery) -> EventQuery:
    return EventQuery(type=query.type, source=query.source, since=query.since, until=query.until)


def _replay_page(*conditions: Any) -> Select[*tuple[Any, ...]]:
    """Select events with all a match looks at."""
    page = select(*WITHOUT_DATA).where(events.c.cancelled_at.is_(None), *conditions)
    return page.order_by(events.c.seq).limit(_PAGE)


async def _replayable(
    connection: AsyncConnection, seqs: Sequence[int], subscription_id: int, *, missing: bool
) -> list[int]:
    """Return which of the events may be delivered again: dispatched, and neither waiting, running nor cancelled."""
    if not seqs:
        return []
    left_out: set[int] = set()
    for table in (scheduled, dispatch):  # in the order in which work moves between tables, so that none is missed
        left_out.update(await connection.scalars(select(table.c.event_seq).where(table.c.event_seq.in_(seqs))))
    of = (
        delivery_states if missing else deliveries
    )  # what only a run records may be delivered again, but is not missing
    theirs = (of.c.subscription_id == subscription_id, of.c.event_seq.in_(seqs))
    for row in await fetch(connection, select(of.c.event_seq, of.c.state).where(*theirs)):
        if missing or row.state not in _REPLAYABLE:
            left_out.add(row.event_seq)
    return [seq for seq in seqs if seq not in left_out]


async def _put_pending(
    connection: AsyncConnection,
    subscription_id: int,
    seqs: Sequence[int],
    due_at: datetime,
    step: timedelta,
    *,
    missing: bool,
) -> int:
    """Write the deliveries of the events, as far as these are still there, `step` apart; return how many."""
    kept = select(events.c.seq).where(events.c.seq.in_(seqs)).with_for_update(read=True, key_share=True).subquery()
    before = func.row_number().over(order_by=kept.c.seq) - 1
    due = After(literal(due_at, Instant), before * literal(step // _STEP, BigInteger))
    pending = literal(DeliveryState.PENDING.value)
    rows = select(kept.c.seq, literal(subscription_id), pending, literal(0), due, Now()).where(true())
    columns = ["event_seq", "subscription_id", "state", "attempts", "due_at", "updated_at"]
    put = _insert(connection).from_select(columns, rows)
    fresh = {name: put.excluded[name] for name in ("state", "attempts", "due_at", "updated_at")} | {"lease_token": None}
    key = [deliveries.c.event_seq, deliveries.c.subscription_id]
    put = (
        put.on_conflict_do_nothing(index_elements=key)
        if missing
        else put.on_conflict_do_update(index_elements=key, set_=fresh, where=in_state(_REPLAYABLE))
    )
    number = int((await connection.execute(put)).rowcount)
    await join_lines(connection, subscription_id, seqs)
    return number
