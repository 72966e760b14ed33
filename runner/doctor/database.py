"""The checks of the database, in order; each builds on the answer of an earlier one."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from ..builder import open_storage, retention_of
from ..builder.files import unusable_file
from ..config import Config
from ..config.fields import is_near
from ..diagnosis.look import look
from ..diagnosis.status import Report, judge
from ..errors import ForeignDeployment, SchemaMismatch, StorageError, StorageUnavailable, readable
from ..storage.contract.examination import FileFacts, PostgresExamination, ServerFacts
from ..storage.examination import examine_file, examine_server
from .bounded import in_thread, performed
from .deployment import judge_deployment
from .disk import free_space, judge_disk, judge_file_system, judge_retention, kind_of
from .postgres import (
    about,
    judge_autovacuum,
    judge_clock,
    judge_durability,
    judge_encoding,
    judge_horizon,
    judge_rights,
    judge_seats,
    judge_server,
    judge_tls,
)
from .sqlite import corrupt, judge_file, judge_journal, unwritable
from .thresholds import Thresholds
from .verdict import Finding, fault, fine, skipped

__all__ = ["examine_postgres", "examine_sqlite"]

T = TypeVar("T")

_OF_POSTGRES = ("tls", "encoding", "durability", "clock", "rights", "autovacuum", "horizon")
_OF_TABLES = ("tables", "instances", "deliveries")
_STRUCTURE = 1.0  # seconds for the check of a file of SQLite, during which no process commits


async def examine_postgres(config: Config, limits: Thresholds) -> AsyncIterator[Finding]:
    """Yield the findings about a PostgreSQL server, and the deployment in it."""
    storage = config.storage
    if (unusable := unusable_file(storage.dsn, True)) is not None:
        yield fault("database", "refused", unusable, "correct the files of TLS in storage.dsn")
        for finding in _skipped(*_OF_POSTGRES, *_OF_TABLES, "connections", "retention"):
            yield finding
        return
    began = time.monotonic()
    opened = examine_server(storage.dsn, schema=storage.schema_name, pgbouncer=storage.pgbouncer)
    held: list[tuple[PostgresExamination, ServerFacts]] = []

    async def connect() -> Sequence[Finding]:
        examination = await opened.__aenter__()
        held.append((examination, await examination.server()))
        return [fine("database", about(held[0][1], 1000 * (time.monotonic() - began)))]

    findings, ended = await performed("database", _reached(connect), limits.budget)
    for finding in findings:
        yield finding
    if not ended or not held:
        for finding in _skipped(*_OF_POSTGRES, *_OF_TABLES, "connections", "retention"):
            yield finding
        return
    [(examination, facts)] = held
    try:
        async for finding in _examine_server(config, limits, examination, facts):
            yield finding
    finally:
        await opened.__aexit__(None, None, None)


async def _examine_server(
    config: Config, limits: Thresholds, examination: PostgresExamination, facts: ServerFacts
) -> AsyncIterator[Finding]:
    dsn = config.storage.dsn
    far = next((host for host, _ in dsn.hosts if not is_near(host)), None)
    for finding in (
        *judge_server(facts, limits),
        *judge_tls(facts, dsn.sslmode, far=far),
        *judge_encoding(facts),
        *judge_durability(facts),
    ):
        yield finding

    checks: list[tuple[str, Callable[[], Awaitable[Sequence[Finding]]]]] = [
        ("clock", lambda: _judged(examination.clock(), lambda clock: judge_clock(clock, limits))),
        ("rights", lambda: _judged(examination.missing_rights(), lambda missing: judge_rights(missing, facts))),
        (
            "autovacuum",
            lambda: _judged(examination.tables(), lambda tables: judge_autovacuum(facts, tables, limits)),
        ),
        ("horizon", lambda: _judged(examination.holders(), lambda holders: judge_horizon(holders, facts, limits))),
    ]
    for check, work in checks:
        findings, _ = await performed(check, work, limits.budget)
        for finding in findings or [fine(check, "nothing is missing")]:
            yield finding
        if any(each.kind == "no_answer" for each in findings):
            for finding in _skipped("connections", "retention", *_OF_TABLES):
                yield finding
            return
    there: list[Report] = []
    async for finding in _examine_tables(config, limits, there):
        yield finding
    processes = max(1, len(there[0].snapshot.live)) if there and there[0].snapshot else 1
    findings, _ = await performed(
        "connections",
        lambda: _judged(examination.seats(), lambda seats: judge_seats(seats, _connections(config), processes)),
        limits.budget,
    )
    for finding in findings:
        yield finding
    if there:
        findings, _ = await performed("retention", lambda: _growth(config, limits, examination), limits.budget)
        for finding in findings:
            yield finding
    else:
        for finding in _skipped("retention"):
            yield finding


async def examine_sqlite(config: Config, limits: Thresholds) -> AsyncIterator[Finding]:
    """Yield the findings about a file of SQLite, and the deployment in it."""
    path = config.storage.dsn.path
    assert path is not None
    facts: list[FileFacts] = []
    findings, _ = await performed("database", _reached(lambda: _file(config, path, facts)), limits.budget)
    for finding in findings:
        yield finding
    directory = path.parent
    if not os.path.isdir(directory):  # noqa: ASYNC240  # of a local path, and said to be if it is none
        for finding in _skipped("durability", "file system", "disk", "retention", *_OF_TABLES):
            yield finding
        return
    space = free_space(directory)
    for finding in (*judge_file_system(path, kind_of(directory)), *judge_disk(str(directory), space, limits)):
        yield finding
    if not facts or facts[0].fault is not None or any(each.kind == "unwritable" for each in findings):
        for finding in _skipped("durability", "retention", *_OF_TABLES):
            yield finding
        return
    [file] = facts
    for finding in judge_journal(file):
        yield finding
    if not file.usual:
        # A connection of the bus would change the journal mode, and an examination changes nothing.
        for check in _OF_TABLES:
            yield skipped(check, f"to read them would change the journal mode, which is {file.journal}")
        return
    there: list[Report] = []
    async for finding in _examine_tables(config, limits, there):
        yield finding
    for finding in judge_retention(retention_of(config), file.size, file.since, file.now, space, limits):
        yield finding


async def _file(config: Config, path: Path, facts: list[FileFacts]) -> Sequence[Finding]:
    if (unusable := unusable_file(config.storage.dsn, False)) is not None:
        return [fault("database", "refused", unusable, "correct storage.dsn, or make the directory")]
    if (finding := unwritable(path)) is not None:
        return [finding]
    if not path.exists():  # noqa: ASYNC240  # of a local path
        start = f"runner start -c {config.file} makes it"
        return [fault("database", "missing", f"there is no file {path}", f"correct storage.dsn, or start: {start}")]
    try:
        found = await in_thread(examine_file, path, _STRUCTURE)
    except StorageError as error:
        if "malformed" in str(error):  # SQLITE_CORRUPT
            return [corrupt(path, str(error))]
        raise
    facts.append(found)
    return list(judge_file(found, path))


async def _examine_tables(config: Config, limits: Thresholds, there: list[Report]) -> AsyncIterator[Finding]:
    """Yield the findings about the tables and their content; store the report in `there` if they are at head."""
    cure = f"runner migrate -c {config.file}, or start a runner, which does it unless storage.migrate is false"

    async def tables() -> Sequence[Finding]:
        async with open_storage(config, adopt=False, writes=False) as storage:
            try:
                status, owner = await storage.standing(config.deployment_id)
            except ForeignDeployment as error:
                return [fault("tables", "foreign", *_parted(str(error)))]
            except SchemaMismatch as error:
                what, _, instead = str(error).partition(": ")
                return [fault("tables", "newer", what, instead or cure)]
            if status.pending:
                where = "not there" if status.current is None else f"at revision {status.current}, not {status.head}"
                return [fault("tables", "not_at_head", f"the tables are {where}", cure)]
            there.append(judge(await look(storage)))
            return [fine("tables", f"at revision {status.current}, of deployment {owner or '(nobody yet)'}")]

    findings, ended = await performed("tables", tables, limits.budget)
    for finding in findings:
        yield finding
    if not ended or not there:
        there.clear()
        for finding in _skipped("instances", "deliveries"):
            yield finding
        return
    for finding in judge_deployment(there[0]):
        yield finding


async def _growth(config: Config, limits: Thresholds, examination: PostgresExamination) -> Sequence[Finding]:
    growth = await examination.growth()
    space, directory = None, growth.directory
    near = all(is_near(host) for host, _ in config.storage.dsn.hosts)
    if near and directory is not None and os.path.isdir(directory):  # noqa: ASYNC240  # on this machine
        space = free_space(Path(directory))
    room = judge_disk(directory or "", space, limits)
    kept = judge_retention(retention_of(config), growth.size, growth.since, growth.now, space, limits)
    return [*room, *kept]


async def _judged(facts: Awaitable[T], judged: Callable[[T], Iterable[Finding]]) -> Sequence[Finding]:
    return list(judged(await facts))


def _reached(work: Callable[[], Awaitable[Sequence[Finding]]]) -> Callable[[], Awaitable[Sequence[Finding]]]:
    """Return the check with the failures of a connection as findings."""

    async def check() -> Sequence[Finding]:
        try:
            return await work()
        except StorageUnavailable as error:
            cure = "start it, or correct storage.dsn; processes that run go on by themselves once it is back"
            return [fault("database", "unreachable", readable(str(error)), cure)]
        except StorageError as error:
            return [fault("database", "refused", *_parted(readable(str(error))))]

    return check


def _parted(text: str) -> tuple[str, str]:
    """Return the fault and the cure in an error's text, split at a semicolon or a colon."""
    for sign in ("; ", ": "):
        what, _, cure = text.rpartition(sign)
        if what:
            return what, cure
    return text, "correct storage.dsn"


def _connections(config: Config) -> int:
    """Return how many connections to the store one process may hold."""
    listening = sum(each.kind == "postgres" for each in config.strategies)
    return max(2, config.storage.pool) + listening


def _skipped(*checks: str) -> Iterator[Finding]:
    for check in checks:
        yield skipped(check, "it needs what is wrong above")
