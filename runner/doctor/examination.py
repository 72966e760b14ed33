"""The examination: all checks of a deployment; those that wait for servers run concurrently."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from ..config import Config
from .bounded import performed
from .brokers import brokers
from .database import examine_postgres, examine_sqlite
from .process import judge_config, judge_files, judge_log, judge_open_files, judge_tokens
from .receivers import receivers
from .signals import signals
from .thresholds import Thresholds
from .verdict import Finding, Level, fine, skipped

__all__ = ["examine"]

_IN_DATABASE = ("postgres", "sqlite")  # strategies whose signals pass through the database


async def examine(config: Config, limits: Thresholds | None = None, *, log: int = 2) -> AsyncIterator[Finding]:
    """
    Examine the deployment of `config`, and yield the findings in a fixed order, each as soon as it is known.

    Nothing is changed: statements only read, and the only messages are probes that wake no worker.

    Args:
        log: descriptor of the log, which is standard error.
    """
    limits = limits or Thresholds()
    for finding in _of_this_process(config, limits, log):
        yield finding
    store = examine_sqlite if config.storage.dsn.path is not None else examine_postgres
    database = asyncio.ensure_future(_collected(store(config, limits)))
    remote = [
        asyncio.ensure_future(_one("nats", lambda: brokers(config, limits.budget), limits)),
        asyncio.ensure_future(_one("webhooks", lambda: receivers(config, limits.budget), limits)),
    ]
    try:
        found = await database
        for finding in found:
            yield finding
        for finding in await _signals(config, limits, found):
            yield finding
        for task in remote:
            for finding in await task:
                yield finding
    finally:
        for task in (database, *remote):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _signals(config: Config, limits: Thresholds, found: Sequence[Finding]) -> Sequence[Finding]:
    """Return the findings about signals, without those that repeat a fault of the database."""
    away = any(each.check == "database" and each.level is Level.FAULT for each in found)
    if away and all(each.kind in (*_IN_DATABASE, "polling") for each in config.strategies):
        return [skipped("signals", "it needs what is wrong above")]
    pooled = any(", through a pooler" in each.measured for each in found if each.check == "database")
    heard = await _one("signals", lambda: signals(config, limits.budget, pooled=pooled), limits)
    return [each for each in heard if not (away and each.subject in _IN_DATABASE)]


def _of_this_process(config: Config, limits: Thresholds, log: int) -> Iterator[Finding]:
    yield from judge_config(config)
    yield from judge_files(config)
    yield from judge_log(log, limits)
    yield from judge_open_files(config)
    yield from judge_tokens(config, limits)
    yield from _time_zones(config)


def _time_zones(config: Config) -> Iterator[Finding]:
    """Yield the time zones in use; the file was already checked for unknown ones."""
    zones = sorted({each.timezone for each in config.to_schedules() if each.cron is not None})
    if not zones:
        return
    try:
        package = f"; package tzdata {version('tzdata')}"
    except PackageNotFoundError:
        package = "; time zones of the system"
    yield fine("time zones", f"{', '.join(zones)}{package}")


async def _one(check: str, work: Callable[[], Awaitable[Sequence[Finding]]], limits: Thresholds) -> Sequence[Finding]:
    found, _ = await performed(check, work, limits.budget)
    return found


async def _collected(findings: AsyncIterator[Finding]) -> Sequence[Finding]:
    return [each async for each in findings]
