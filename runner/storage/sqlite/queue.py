"""The queue on SQLite: claims and settlements, each in one hop to the connection's thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from datetime import timedelta
from typing import TYPE_CHECKING

from typing_extensions import override

from ...delivery import Lease
from ..contract.claims import CLAIM, Claim, DeliveryClaim, ExpiredClaim, RegulatedRequest
from ..contract.queue import WorkQueue
from ..contract.settlements import AttemptRecord, Death, DeliveryRecord, Settled
from ..tokens import new_token
from .claims import claim, claim_deliveries, contents, promote
from .expiry import claim_expired
from .regulated import claim_regulated
from .rows import transaction
from .settlements import deaths, renew, settle, settle_deliveries

if TYPE_CHECKING:
    from .database import SqliteDatabase

__all__ = ["SqliteQueue"]


class SqliteQueue(WorkQueue):
    """`WorkQueue` on SQLite."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database
        self._run = database.run

    @override
    async def claim(self, limit: int, lease: timedelta, weight: int = CLAIM) -> Claim:
        return await self._run(claim, new_token(), max(limit, 0), lease, weight)

    @override
    async def contents(self, seqs: Sequence[int]) -> Mapping[int, bytes | None]:
        return await self._run(contents, seqs)

    @override
    async def settle(self, settled: Settled) -> int:
        return await self._run(transaction, settle, settled)

    @override
    async def promote(self, limit: int) -> int:
        return await self._run(promote, max(limit, 0))

    @override
    async def claim_deliveries(self, quotas: Mapping[int, int], lease: timedelta, weight: int = CLAIM) -> DeliveryClaim:
        return await self._run(claim_deliveries, new_token(), quotas, lease, weight)

    @override
    async def claim_regulated(self, request: RegulatedRequest, lease: timedelta, weight: int = CLAIM) -> DeliveryClaim:
        return await self._run(claim_regulated, new_token(), request, lease, weight)

    @override
    async def claim_expired(self, limit: int, lease: timedelta) -> ExpiredClaim:
        return await self._run(claim_expired, new_token(), limit, lease)

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
        return await self._run(transaction, settle_deliveries, records, attempts, ordered)

    @override
    async def renew(self, leases: Sequence[Lease], duration: timedelta) -> Sequence[tuple[int, int]]:
        return await self._run(transaction, renew, leases, duration)

    @override
    async def deaths(self, keys: Sequence[tuple[int, int]]) -> Mapping[tuple[int, int], Death]:
        return await self._run(deaths, keys)
