"""The registry, for both databases: the owner of the tables, the subscriptions, the instances."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import BigInteger, Row, Select, delete, func, insert, literal, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from typing_extensions import override

from ..errors import NotFound, SchemaMismatch, StateConflict, StorageError
from ..policies.breaker import Trip
from ..subscription import DEAD_LETTER_SUFFIX, Subscription
from .bus_row import bump_version, lock_bus
from .contract.registry import Beat, Check, Configuration, Health, Instance, Orphan, Put, Registered, Registry
from .contract.throughput import Counted
from .expressions import Later, Now
from .lines import leave_lines
from .selection import OPEN, in_state
from .set_back import set_back
from .standing import check_owner
from .subscription_rows import compilable, readable
from .tables import bus, deliveries, instances, paces, subscriptions, turns
from .throughput import write
from .tokens import HOLDER
from .transactions import Transactions

__all__ = ["ALIVE", "SqlRegistry", "named", "put_subscriptions"]

log = structlog.get_logger(__name__)

_MICROSECOND = timedelta(microseconds=1)
ALIVE = timedelta(seconds=30)  # since its last beat
_SILENCE = timedelta(days=1)  # after it an instance is taken for gone without a word
_CLOSED = {"breaker_until": None, "breaker_trips": 0}


class SqlRegistry(Registry):
    """`Registry` on SQLAlchemy Core."""

    def __init__(
        self, engine: AsyncEngine, subscriptions: Callable[[], Awaitable[tuple[int, Sequence[Registered]]]]
    ) -> None:
        """Args: subscriptions reads the active ones by the driver, as publishers do without this class."""
        self._transactions = Transactions(engine)
        self._subscriptions = subscriptions

    @override
    async def adopt(self, deployment_id: str) -> None:
        if await self.owner(deployment_id) is None:
            free = update(bus).where(bus.c.one == 1, bus.c.deployment_id.is_(None))
            async with self._transactions.write() as connection:
                await connection.execute(free.values(deployment_id=deployment_id))
            await self.owner(deployment_id)

    @override
    async def owner(self, deployment_id: str) -> str | None:
        try:
            async with self._transactions.read() as connection:
                owner = await connection.scalar(select(bus.c.deployment_id).where(bus.c.one == 1))
        except StorageError as error:
            if isinstance(error.__cause__, DBAPIError) and _is_missing_table(error.__cause__):
                raise SchemaMismatch("the tables are not there; run `runner migrate` first") from error
            raise
        check_owner(owner, deployment_id)
        return owner

    @override
    async def set_channel(self, channel: str | None) -> None:
        async with self._transactions.write() as connection:
            changed = bus.c.channel.is_distinct_from(channel)
            await connection.execute(update(bus).where(bus.c.one == 1, changed).values(channel=channel))

    @override
    async def put_subscriptions(self, wanted: Sequence[Subscription], origin: str) -> None:
        async with self._transactions.write() as connection:
            await lock_bus(connection)  # instances that start together do not race
            if await put_subscriptions(connection, wanted, origin):
                await bump_version(connection)

    @override
    async def put(self, subscription: Subscription, origin: str, check: Check) -> Put:
        letters = subscription.for_dead_letters()
        async with self._transactions.write() as connection:
            await lock_bus(connection)  # others that put, retire or remove wait until this is committed
            both = subscriptions.c.name.in_([subscription.name, subscription.name + DEAD_LETTER_SUFFIX])
            rows = await connection.execute(select(subscriptions, Now().label("now")).where(both))
            known = {row.name: row for row in rows}
            found = known.get(subscription.name)
            check(_seen(found) if found is not None and found.active else None)  # one that is retired is on its way out
            if found is not None and found.active and found.origin != origin:
                raise _belongs(found)
            changed = await _put(connection, found, subscription, origin)
            before = known.get(subscription.name + DEAD_LETTER_SUFFIX)
            if letters is not None:
                changed |= await _put(connection, before, letters, origin)
            elif before is not None and before.active:
                await _set_inactive(connection, before.id)
                changed = True
            if changed:
                await bump_version(connection)
            written = await named(connection, subscription.name)
        return Put(compilable(written), found is None, changed)

    @override
    async def retire(self, name: str, check: Check) -> None:
        async with self._transactions.write() as connection:
            await lock_bus(connection)
            check(_seen(await named(connection, name)))
            both = subscriptions.c.name.in_([name, name + DEAD_LETTER_SUFFIX])
            await _set_inactive(connection, *(await connection.scalars(select(subscriptions.c.id).where(both))).all())
            await bump_version(connection)

    @override
    async def reseal(self, name: str, known: Subscription, resealed: Subscription) -> bool:
        async with self._transactions.write() as connection:
            await lock_bus(connection)
            row = await named(connection, name)
            if row.spec != known.to_json():
                return False
            change = update(subscriptions).where(subscriptions.c.id == row.id)
            await connection.execute(change.values(spec=resealed.to_json(), updated_at=Now()))
            await bump_version(connection)
            return True

    @override
    async def subscriptions(self) -> tuple[int, Sequence[Registered]]:
        return await self._subscriptions()

    @override
    async def set_paused(self, name: str, paused: bool, by: str | None = None) -> bool:
        async with self._transactions.write() as connection:
            await lock_bus(connection)
            row = await named(connection, name)
            closes = not paused and row.breaker_until is not None
            if row.paused == paused and not closes:
                return False
            said = {"paused_at": Now(), "paused_by": by} if paused else {"paused_at": None, "paused_by": None}
            change = update(subscriptions).where(subscriptions.c.id == row.id)
            await connection.execute(
                change.values(paused=paused, updated_at=Now(), **said, **(_CLOSED if closes else {}))
            )
            await bump_version(connection)
            return True

    @override
    async def remove(self, name: str, *, retired: bool = False) -> None:
        async with self._transactions.write() as connection:
            await lock_bus(connection)
            if (await named(connection, name)).active and retired:
                return  # it was put again meanwhile
            both = subscriptions.c.name.in_([name, name + DEAD_LETTER_SUFFIX])
            ids = (await connection.scalars(select(subscriptions.c.id).where(both))).all()
            for table in (turns, paces):
                await connection.execute(delete(table).where(table.c.subscription_id.in_(ids)))
            await connection.execute(delete(subscriptions).where(subscriptions.c.id.in_(ids)))
            await bump_version(connection)

    @override
    async def set_breaker(self, subscription_id: int, trip: Trip | None, *, known: int) -> bool:
        change = update(subscriptions).where(subscriptions.c.id == subscription_id)
        if trip is None:
            change = change.where(subscriptions.c.breaker_until.is_not(None)).values(**_CLOSED)
        else:
            until = Later(literal(trip.left // _MICROSECOND, BigInteger))
            change = change.where(subscriptions.c.breaker_trips == known)
            change = change.values(breaker_until=until, breaker_trips=trip.number)
        async with self._transactions.write() as connection:
            await lock_bus(connection)
            changed = (await connection.execute(change)).rowcount > 0
            if changed:
                await bump_version(connection)
            return changed

    @override
    async def orphans(self) -> Sequence[Orphan]:
        known = select(subscriptions, Now().label("now")).where(
            subscriptions.c.active, ~subscriptions.c.paused, subscriptions.c.origin == "file"
        )
        alive = select(instances.c.sinks).where(instances.c.heartbeat_at > _ago(ALIVE))
        async with self._transactions.read() as connection:
            gone = await connection.scalars(_deleted())
            orphans = [Orphan(id, True, "its subscription was deleted") for id in gone]
            said = (await connection.scalars(alive)).all()
            rows = (await connection.execute(known)).all()
        if said and all(sinks is not None for sinks in said):
            there = {sink for sinks in said for sink in sinks}
            for _, each in readable(rows):
                if each.subscription.sink not in there:
                    reason = f"no live instance has a sink {each.subscription.sink!r}"
                    orphans.append(Orphan(each.id, False, reason))
        return orphans

    @override
    async def beat(self, instance: Instance, health: Health, counted: Sequence[Counted] = ()) -> Beat:
        said = {
            "heartbeat_at": Now(),
            "progress_at": _ago(health.stalled),
            "lag_us": health.lag // _MICROSECOND,
            "running": health.running,
            "sinks": list(health.sinks),
            "strategies": None if health.strategies is None else [each._asdict() for each in health.strategies],
            "holder": HOLDER,
            "configuration": None if health.configuration is None else _stored(health.configuration),
        }
        async with self._transactions.write() as connection:
            beat = await set_back(connection, instance.id)
            known = await connection.execute(update(instances).where(instances.c.id == instance.id).values(**said))
            if known.rowcount == 0:
                # The first one of this instance: time to forget those that have gone without a word.
                await connection.execute(delete(instances).where(instances.c.heartbeat_at < _ago(_SILENCE)))
                who = {"host": instance.host, "pid": instance.pid, "version": instance.version}
                new = insert(instances).values(id=instance.id, **who, started_at=Now(), **said)
                await connection.execute(new)
            if counted:
                await write(connection, counted)
        return beat

    @override
    async def leave(self, instance_id: str) -> None:
        async with self._transactions.write() as connection:
            await connection.execute(instances.delete().where(instances.c.id == instance_id))


async def put_subscriptions(connection: AsyncConnection, wanted: Sequence[Subscription], origin: str) -> bool:
    """Make the active subscriptions of `origin` be these, under the lock of the bus; return whether any changed."""
    wanted = [*wanted, *filter(None, (each.for_dead_letters() for each in wanted))]
    known = {row.name: row for row in await connection.execute(select(subscriptions))}
    changed = [await _put(connection, known.get(each.name), each, origin) for each in wanted]
    names = {each.name for each in wanted}
    ours = [row for row in known.values() if row.origin == origin and row.active]
    gone = [row.id for row in ours if row.name not in names]
    if gone:
        await connection.execute(
            update(subscriptions).where(subscriptions.c.id.in_(gone)).values(active=False, updated_at=Now())
        )
    return bool(gone) or any(changed)


async def named(connection: AsyncConnection, name: str, *, active: bool = False) -> Row[Any]:
    """Return the row of a subscription, with `active` of one that is. Raise `NotFound`, with the names there are."""
    among = [subscriptions.c.active] if active else []
    one = select(subscriptions, Now().label("now")).where(subscriptions.c.name == name, *among)
    row = (await connection.execute(one)).one_or_none()
    if row is None:
        names = await connection.scalars(select(subscriptions.c.name).where(*among).order_by(subscriptions.c.name))
        kind = "active subscription" if active else "subscription"
        raise NotFound(f"no {kind} {name!r}; there are: {', '.join(names) or 'none'}")
    return row


async def _set_inactive(connection: AsyncConnection, *ids: int) -> None:
    """Have subscriptions match no more events."""
    if ids:
        change = update(subscriptions).where(subscriptions.c.id.in_(ids))
        await connection.execute(change.values(active=False, updated_at=Now()))


def _seen(row: Row[Any] | None) -> Registered | None:
    """Return the subscription in a row, to be compared before it is replaced; None for one that cannot be read."""
    return None if row is None else next((each for _, each in readable([row])), None)


def _belongs(known: Row[Any]) -> StateConflict:
    if known.origin == "file":
        return StateConflict(f"{known.name} is in the file; change it there, and reload or start a runner")
    if known.origin.startswith("function:"):
        return StateConflict(f"{known.name} is one of a program; change it there, or give this one another name")
    return StateConflict(f"{known.name} was made by {known.origin}; remove it first")


async def _put(
    connection: AsyncConnection, known: Row[tuple[object, ...]] | None, subscription: Subscription, origin: str
) -> bool:
    """Write one subscription if it differs from what is known; return whether it did."""
    spec = subscription.to_json()
    if known is None:
        await connection.execute(
            insert(subscriptions).values(
                name=subscription.name,
                spec=spec,
                origin=origin,
                active=True,
                paused=False,
                created_at=Now(),
                updated_at=Now(),
            )
        )
        return True
    if known.spec == spec and known.active and known.origin == origin:
        return False
    if not isinstance(known.spec, dict) or known.spec.get("order_by") != subscription.order_by:  # it may be no spec
        await leave_lines(connection, known.id)  # the next process that serves the subscription makes the lines again
    await connection.execute(
        update(subscriptions)
        .where(subscriptions.c.id == known.id)
        .values(spec=spec, origin=origin, active=True, updated_at=Now(), **_CLOSED)
    )
    return True


def _stored(configuration: Configuration) -> dict[str, Any]:
    times = (configuration.loaded_at, configuration.tried_at)
    loaded, tried = (None if each is None else each.isoformat() for each in times)
    return {**configuration._asdict(), "loaded_at": loaded, "tried_at": tried, "faults": list(configuration.faults)}


def _deleted() -> Select[int]:
    """Return the query for the ids of deleted subscriptions with waiting deliveries."""
    is_open = in_state(OPEN)
    waiting = select(func.min(deliveries.c.subscription_id).label("id")).where(is_open).cte("waiting", recursive=True)
    following = select(func.min(deliveries.c.subscription_id)).where(
        is_open, deliveries.c.subscription_id > waiting.c.id
    )
    waiting = waiting.union_all(select(following.scalar_subquery()).where(waiting.c.id.is_not(None)))
    known = select(subscriptions.c.id).where(subscriptions.c.id == waiting.c.id)
    return select(waiting.c.id).where(waiting.c.id.is_not(None), ~known.exists()).order_by(waiting.c.id)


def _ago(age: timedelta) -> Later:
    return Later(literal(-age // _MICROSECOND, BigInteger))


def _is_missing_table(error: DBAPIError) -> bool:
    state = getattr(error.orig, "sqlstate", None)
    return state in {"42P01", "3F000"} or "no such table" in str(error.orig)
