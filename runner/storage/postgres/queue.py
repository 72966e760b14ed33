"""The queue on PostgreSQL: claims and settlements, each one round trip and one transaction as far as it can be."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Set
from datetime import timedelta
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from typing_extensions import override

from ...delivery import Lease
from ...event import Event, weigh
from ..contract.claims import (
    CLAIM,
    UNREADABLE,
    Claim,
    ClaimedDelivery,
    DeliveryClaim,
    ExpiredClaim,
    ExpiredDelivery,
    RegulatedRequest,
    UnreadableDelivery,
    UnreadableWork,
    Work,
)
from ..contract.queue import WorkQueue
from ..contract.settlements import AttemptRecord, Death, DeliveryRecord, Settled
from ..regulation import LINES, RegulatedScan
from ..tokens import new_token
from .low_water_mark import LowWaterMark
from .rows import (
    attempt_columns,
    claimed_deliveries,
    claimed_event,
    claimed_works,
    record_columns,
    settling,
    turn_columns,
)

if TYPE_CHECKING:
    import asyncpg

    from .database import PostgresDatabase

__all__ = ["PostgresQueue"]


class PostgresQueue(WorkQueue):
    """`WorkQueue` on PostgreSQL."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        self._home = database.home
        self._connections = database.connections
        self._sql = database.sql
        self._low_water_mark = LowWaterMark()

    @override
    async def claim(self, limit: int, lease: timedelta, weight: int = CLAIM) -> Claim:
        if not self._home.encoding:
            await self._database.find()
        token = new_token()
        now = time.monotonic()
        after = self._low_water_mark.start(now)
        try:
            rows = await self._connections.fetch(self._sql("claim", limit), token, after, lease, weight)
            works = claimed_works(rows)
        except UNREADABLE:  # all of them are leased
            return await self._one_by_one(token, lease)
        [outlook] = [row for row in rows if row[0] is None]
        works.sort(key=attrgetter("position"))
        cut = outlook["more"] and len(works) < limit
        self._low_water_mark.saw(works[-1].position if works else None, now, cut=cut)
        again_in: timedelta | None = outlook["expires_in"]
        sweep_in = None if outlook["more"] else self._low_water_mark.sweep_in(now)
        if sweep_in is not None:
            again_in = min(again_in or timedelta.max, timedelta(seconds=sweep_in))
        return Claim(
            token,
            works,
            outlook["version"],
            outlook["scheduled_in"],
            again_in,
            outlook["waiting"],
            weight=outlook["weight"] or 0,
            more=outlook["more"],
            now=outlook["now"],
            recorded=_recorded(outlook["seq"], outlook["size"]),
        )

    @override
    async def contents(self, seqs: Sequence[int]) -> Mapping[int, bytes | None]:
        async with self._connections.take() as connection:
            return {row[0]: row[1] for row in await connection.fetch(self._sql("contents"), seqs)}

    @override
    async def settle(self, settled: Settled) -> int:
        if not self._home.encoding:
            await self._database.find()
        name, arguments = settling(settled)
        if not settled.records:
            [(seqs,)] = await self._connections.fetch(self._sql(name), *arguments)
            return len(seqs or ())
        async with self._connections.take() as connection, connection.transaction(isolation="read_committed"):
            held = set(await connection.fetchval(self._sql(name), *arguments) or ())
            records = [record for record in settled.records if record.seq in held]
            tokens = [None if record.deferred else record.token for record in records]
            columns = record_columns(records, tokens, self._home.encoding)
            attempts = [each for each in settled.attempts if each.seq in held]
            turns = [each for each in settled.turns if each.seq in held]
            if await connection.execute(self._sql("record"), *columns) != f"INSERT 0 {len(records)}":
                rows = await connection.fetch(self._sql("recorded"), *columns[:2])
                ours = {(row[0], row[1]) for row in rows}  # without deliveries that were acknowledged before
                records = [each for each in records if (each.seq, each.subscription_id) in ours]
                attempts = [each for each in attempts if (each.seq, each.subscription_id) in ours]
                turns = [each for each in turns if (each.seq, each.subscription_id) in ours]
            await self._record_dead_letters(connection, records)
            await self._record_attempts(connection, attempts)
            if turns:
                await connection.execute(self._sql("record_turns"), *turn_columns(turns))
        return len(held)

    @override
    async def promote(self, limit: int) -> int:
        async with self._connections.take() as connection:
            return int(await connection.fetchval(self._sql("promote", limit)))

    @override
    async def claim_deliveries(self, quotas: Mapping[int, int], lease: timedelta, weight: int = CLAIM) -> DeliveryClaim:
        token = new_token()
        try:
            async with self._connections.take() as connection:
                rows = await connection.fetch(
                    self._sql("claim_deliveries"),
                    token,
                    lease,
                    list(quotas),
                    [max(0, each) for each in quotas.values()],
                    weight,
                )
        except UNREADABLE:  # the driver could not even read a text
            return await self._each_delivery(token, list(quotas))
        claimed, unreadable = claimed_deliveries(rows)
        claimed.sort(key=lambda delivery: delivery.seq)
        first = rows[0]
        next_due = timedelta(0) if first["cut"] else first["next_due"]
        return DeliveryClaim(token, claimed, next_due, unreadable, now=first["now"])

    @override
    async def claim_regulated(self, request: RegulatedRequest, lease: timedelta, weight: int = CLAIM) -> DeliveryClaim:
        token, rate = new_token(), request.rate
        arguments = (
            *(token, lease, request.subscription_id, max(0, request.quota), request.ordered, request.after),
            *((None, None) if rate is None else (rate.interval, rate.tolerance)),
            weight,
        )
        try:
            async with self._connections.take() as connection:
                rows = await connection.fetch(self._sql("claim_regulated", LINES), *arguments)
                if rate is not None and rows[0]["ahead"] is None:  # the rate has never been used
                    await connection.execute(self._sql("begin_pace"), request.subscription_id)
                    rows = await connection.fetch(self._sql("claim_regulated", LINES), *arguments)
        except UNREADABLE:
            return await self._each_delivery(token, [request.subscription_id])
        claimed, unreadable = claimed_deliveries(rows)
        first = rows[0]
        scan = RegulatedScan(
            first["room"],
            first["after"],
            first["held_up"],
            first["ahead"],
            first["next_due"],
            cut=first["cut"],
            now=first["now"],
        )
        return scan.claim(request, token, claimed, unreadable)

    @override
    async def claim_expired(self, limit: int, lease: timedelta) -> ExpiredClaim:
        if not self._home.encoding:
            await self._database.find()
        token = new_token()
        rows = await self._connections.fetch(self._sql("claim_expired", limit), token, lease)
        found = [ExpiredDelivery(*row[:4]) for row in rows if row[0] is not None]
        return ExpiredClaim(token, found, rows[0]["due_now"], rows[0]["again_in"])

    @override
    async def line_up(self, subscription_id: int, order_by: str) -> int:
        from ..lines import line_up

        return await line_up(self._database.engine, subscription_id, order_by)

    @override
    async def settle_deliveries(
        self,
        records: Sequence[DeliveryRecord],
        attempts: Sequence[AttemptRecord] = (),
        ordered: Set[int] = frozenset(),
    ) -> Sequence[tuple[int, int]]:
        async with self._connections.take() as connection:
            tokens = [record.token for record in records]
            columns: tuple[Sequence[Any], ...] = record_columns(records, tokens, self._home.encoding)
            if ordered:
                columns = (*columns, list(ordered))
            settle = self._sql("settle_ordered" if ordered else "settle_deliveries")
            if not attempts and all(record.dead_letter is None for record in records):
                return [(row[0], row[1]) for row in await connection.fetch(settle, *columns)]
            async with connection.transaction(isolation="read_committed"):
                rows = await connection.fetch(settle, *columns)
                held = {(row[0], row[1]) for row in rows}
                await self._record_dead_letters(connection, [r for r in records if (r.seq, r.subscription_id) in held])
                await self._record_attempts(connection, [a for a in attempts if (a.seq, a.subscription_id) in held])
            return list(held)

    @override
    async def renew(self, leases: Sequence[Lease], duration: timedelta) -> Sequence[tuple[int, int]]:
        seqs, ids = [each.seq for each in leases], [each.subscription_id for each in leases]
        tokens = [each.token for each in leases]
        async with self._connections.take() as connection:
            rows = await connection.fetch(self._sql("renew"), seqs, ids, tokens, duration)
        return [(row[0], row[1]) for row in rows]

    @override
    async def deaths(self, keys: Sequence[tuple[int, int]]) -> Mapping[tuple[int, int], Death]:
        async with self._connections.take() as connection:
            rows = await connection.fetch(self._sql("deaths"), [key[0] for key in keys], [key[1] for key in keys])
        return {(row[0], row[1]): Death(row[2], row[3], row[4]) for row in rows}

    async def _one_by_one(self, token: int, lease: timedelta) -> Claim:
        """Read what was leased under `token` event by event, because one of them cannot be read."""
        outlook = await self.claim(0, lease)
        async with self._connections.take() as connection:
            leased = await connection.fetch(self._sql("leased_works"), token)
        works: list[Work] = []
        unreadable: list[UnreadableWork] = []
        for position, attempt, seq in leased:
            event = await self._read(seq)
            if isinstance(event, Event):
                works.append(Work(position, attempt, seq, event))
            else:
                unreadable.append(UnreadableWork(position, attempt, seq, *event))
        weight = weigh([work.event for work in works])
        return replace(
            outlook, token=token, works=works, unreadable=unreadable, again_in=timedelta(0), weight=weight, more=True
        )

    async def _each_delivery(self, token: int, ids: Sequence[int]) -> DeliveryClaim:
        """
        Read the deliveries leased under `token` one by one, because the driver cannot read a text among them.

        It can be no UTF-8 in a database without an encoding (SQL_ASCII), where other programs write. What the claim
        alone knew of the others is lost with it: they count as new.
        """
        async with self._connections.take() as connection:
            leased = await connection.fetch(self._sql("leased_deliveries"), token, ids)
        claimed: list[ClaimedDelivery] = []
        unreadable: list[UnreadableDelivery] = []
        for seq, id, attempt in leased:
            event = await self._read(seq)
            if isinstance(event, Event):
                claimed.append(ClaimedDelivery(seq, id, attempt, False, event))
            else:
                unreadable.append(UnreadableDelivery(seq, id, attempt, event[1]))
        return DeliveryClaim(token, claimed, timedelta(0), unreadable, now=await self._database.now())

    async def _read(self, seq: int) -> Event | tuple[str | None, str]:
        """Return an event; its type, and the reason, if it cannot be read."""
        try:
            async with self._connections.take() as connection:
                return claimed_event(await connection.fetchrow(self._sql("event"), seq))
        except UNREADABLE as error:
            async with self._connections.take() as connection:
                return await connection.fetchval(self._sql("type"), seq), f"{type(error).__name__}: {error}"

    async def _record_dead_letters(self, connection: asyncpg.Connection, records: Sequence[DeliveryRecord]) -> None:
        letters = [(record.seq, record.dead_letter) for record in records if record.dead_letter is not None]
        if letters:
            await connection.execute(
                self._sql("record_dead_letters"), [seq for seq, _ in letters], [id for _, id in letters]
            )

    async def _record_attempts(self, connection: asyncpg.Connection, attempts: Sequence[AttemptRecord]) -> None:
        if attempts:
            await connection.execute(self._sql("record_attempts"), *attempt_columns(attempts, self._home.encoding))


def _recorded(oldest: int | None, newest: int | None) -> tuple[float, float] | None:
    """Return when events were recorded on the monotonic clock, given for how many microseconds they have been."""
    now = time.monotonic()
    return None if oldest is None or newest is None else (now - oldest / 1_000_000, now - newest / 1_000_000)
