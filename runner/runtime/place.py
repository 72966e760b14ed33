"""The place of a process in its deployment: the tables, the entries of its file, the deletion of old rows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from time import monotonic

import structlog

from ..errors import StorageUnavailable
from ..periodic.pruner import PrunePage
from ..service.backoff import doubling
from ..storage import Storage
from ..storage.contract.archive import Retention
from ..storage.contract.throughput import KEPT
from ..subscription import Subscription
from .plan import Plan

__all__ = ["old_records", "take_place"]

log = structlog.get_logger(__name__)


async def take_place(
    storage: Storage, plan: Plan, functions: Mapping[str, Subscription], beat: Callable[[], Awaitable[None]]
) -> None:
    """
    Wait for the store, at most `plan.start_timeout`; take ownership of the tables, and write what the file has.

    Args:
        functions: the subscriptions of functions, by name.
        beat: reports the instance for the first time.

    Raises:
        StorageUnavailable: the store did not come up in time.
        ForeignDeployment: its tables belong to another deployment.
    """
    deadline = monotonic() + plan.start_timeout.total_seconds()
    for pause in doubling(0.1, 2.0):
        try:
            await _take(storage, plan, functions)
            return await beat()
        except StorageUnavailable as error:
            if monotonic() + pause > deadline:
                raise
            log.warning("waiting for the store", detail=str(error), retry_in=pause)
        await asyncio.sleep(pause)


async def _take(storage: Storage, plan: Plan, functions: Mapping[str, Subscription]) -> None:
    cure = "run `runner migrate`, or set storage.migrate: true"
    applied = await storage.take(plan.deployment_id, create=plan.migrate, upgrade=plan.migrate, cure=cure)
    if applied:
        log.info("tables brought up to date", revisions=list(applied))
    await storage.open()
    await storage.schedules.put_file(plan.subscriptions, plan.schedules)
    for name, subscription in functions.items():
        await storage.registry.put_subscriptions([subscription], f"function:{name}")
    await storage.registry.set_channel(plan.channel)


def old_records(
    storage: Storage, retention: Retention, remove_expired: Callable[[], Awaitable[int]]
) -> list[PrunePage]:
    """Return what merges and deletes old things beside events: counters, the audit log, expired subscriptions."""
    kept = retention.audit
    audit = [] if kept is None else [partial(storage.audit.prune, kept)]
    return [storage.throughput.roll_up, partial(storage.throughput.prune, KEPT), *audit, lambda _page: remove_expired()]
