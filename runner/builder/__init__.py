"""The composition root: from a configuration to the parts, and from the parts to a runner."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bus.bus import EventBus
from ..config import Config, load_config
from ..errors import ConfigError
from ..event import new_id
from ..operations import Operations
from ..operations.audit import who
from ..sinks.base import Sink, SinkContext
from ..storage import Storage
from ..storage import open_storage as open_store
from ..strategies import build_strategy
from ..strategies.base import NotifyStrategy, StrategyContext
from ..strategies.stack import StrategyStack, compose
from .brokers import Brokers, nats_sinks, nats_subjects
from .faults import Faults
from .files import check_listener, unusable_file
from .logins import Logins
from .plan import keeper_of, plan_of, retention_of, tracing_of, type_schemas

if TYPE_CHECKING:
    from ..runtime.runner import Runner
    from ..tracing.base import Tracing

__all__ = [
    "build",
    "load",
    "nats_sinks",
    "nats_subjects",
    "open_bus",
    "open_operations",
    "open_publishing",
    "open_storage",
    "open_strategies",
    "read",
    "retention_of",
    "type_schemas",
]


def load(path: str | Path, environ: Mapping[str, str] | None = None) -> Runner:
    """
    Return a runner for the configuration file at `path`; nothing connects before its `start()`.

    Logs go to stderr as the file's `log` says, unless the program has configured structlog itself.

    Args:
        environ: what `${VAR}` in the file stands for; the process's environment by default.

    Raises:
        ConfigError: every fault of the file, one per line.
    """
    return build(read(path, environ), environ)


def read(path: str | Path, environ: Mapping[str, str] | None = None, *, imports: bool = True) -> Config:
    """
    Return the configuration in the file at `path`, and log as it says unless the program has configured structlog.

    Args: as for `load_config()`.
    """
    import structlog

    config = load_config(path, environ, imports=imports)
    if not structlog.is_configured():
        config.log.apply(own=True)
    return config


def build(config: Config, environ: Mapping[str, str] | None = None) -> Runner:
    """
    Return a runner for `config`; nothing connects yet.

    Args:
        environ: what `${VAR}` stands for when the file is read again; the process's environment by default.

    Raises:
        ConfigError: every plug-in that cannot be built, and every file of a DSN that cannot be used, one per line.
    """
    # Imported here, because verbs that only publish or read need no worker.
    from ..operations.destinations import Destinations
    from ..runtime.runner import Runner
    from ..sinks.http.hosts import Hosts
    from ..sinks.python import PythonSink
    from .revision import RereadableFile
    from .sinks import sinks_of

    brokers, logins = Brokers(config), Logins()
    concurrency = config.worker.concurrency
    context = SinkContext(
        deployment_id=config.deployment_id,
        broker=brokers,
        concurrency=concurrency,
        pause=lambda name, reason: runner.pause(name, reason),
        hosts=Hosts(concurrency),
    )
    tracing = None
    with Faults(config) as faults:
        with faults.at():
            storage = _storage(config)
            logins.add(config.storage.dsn, storage.renew_login)
        with faults.at():
            strategies = _stack(config, brokers, logins)
        with faults.at("tracing"):
            tracing = tracing_of(config)
        check_listener(config, faults)
        sinks = sinks_of(config, context, tracing, faults)
    destinations = Destinations(
        keeper_of(config),
        replace(context, hosts=Hosts(concurrency)),
        wrap=(lambda sink: sink) if tracing is None else tracing.sink,
    )
    function_sink: Callable[[Callable[..., Any]], Sink] = PythonSink
    if tracing is not None:
        function_sink = partial(_traced_function, tracing)
    file = RereadableFile(
        config,
        sinks,
        brokers,
        context=context,
        logins=logins,
        tracing=tracing,
        environ=environ,
        destinations=destinations,
    )
    runner = Runner(
        plan_of(config),
        storage,
        strategies,
        sinks,
        function_sink=function_sink,
        brokers=brokers.made.values(),
        tracing=tracing,
        file=file,
    )
    return runner


def _traced_function(tracing: Tracing, handler: Callable[..., Any]) -> Sink:
    """Return the sink of a function with a span for each call."""
    from ..sinks.python import PythonSink

    return tracing.sink(PythonSink(handler))


@contextlib.asynccontextmanager
async def open_storage(
    config: Config, *, create: bool = False, adopt: bool = True, writes: bool = True
) -> AsyncIterator[Storage]:
    """
    Open the store of `config` for one command.

    Args:
        create: make the tables where there are none; older ones are for `runner migrate` and `runner start`.
        adopt: make sure that the tables are up to date and belong to this deployment.
        writes: whether the command writes; one that only reads needs no right to write.

    Raises:
        SchemaMismatch: the tables are missing, older or newer.
        ForeignDeployment: they belong to another deployment.
    """
    storage = _storage(config, writes=writes)
    try:
        if adopt:
            cure = f"run `runner migrate{f' -c {config.file}' if config.file else ''}` (or start a runner) first"
            await storage.take(config.deployment_id, create=create, upgrade=False, cure=cure, writes=writes)
        yield storage
    finally:
        await storage.close()


@contextlib.asynccontextmanager
async def open_bus(config: Config) -> AsyncIterator[EventBus]:
    """Open the bus of `config` to publish from a process without a worker; at the end all signals have been sent."""
    async with open_publishing(config) as (bus, _):
        yield bus


@contextlib.asynccontextmanager
async def open_publishing(
    config: Config, *, unheard: Callable[[str], object] | None = None
) -> AsyncIterator[tuple[EventBus, Operations]]:
    """Open the bus and its operations for a command; call `unheard` with the reason if no signal could be sent."""
    outgoing = _outgoing(config, unheard)
    async with open_storage(config, create=config.storage.migrate) as storage, outgoing as strategies:
        bus = EventBus(storage.events, strategies, schemas=type_schemas(config), tracing=tracing_of(config))
        try:
            yield bus, Operations(storage, bus.announce, actor=f"cli:{who()}")
        finally:
            await bus.stop()


@contextlib.asynccontextmanager
async def open_operations(
    config: Config, *, writes: bool = True, unheard: Callable[[str], object] | None = None
) -> AsyncIterator[Operations]:
    """Open the operations on the bus of `config` for a command; notify the workers of changes at the end."""
    outgoing = _outgoing(config, unheard)
    changed = asyncio.Event()
    async with open_storage(config, writes=writes) as storage:
        try:
            yield Operations(storage, changed.set, actor=f"cli:{who()}", keeper=keeper_of(config))
        finally:  # also after an interrupt: the changes made so far must be signalled
            if changed.is_set():
                async with outgoing as strategies:
                    await strategies.notify(new_id())


def open_strategies(config: Config) -> contextlib.AbstractAsyncContextManager[StrategyStack]:
    """Open the strategies of `config` in a process without a worker: they send and receive, and wake nothing."""
    return _outgoing(config, None)


def _outgoing(
    config: Config, unheard: Callable[[str], object] | None
) -> contextlib.AbstractAsyncContextManager[StrategyStack]:
    """Return the strategies of `config` as a context manager; while it is open, signals can be sent."""
    brokers = Brokers(config)
    return _signalling(_stack(config, brokers, Logins()), brokers, unheard)


@contextlib.asynccontextmanager
async def _signalling(
    strategies: StrategyStack, brokers: Brokers, unheard: Callable[[str], object] | None
) -> AsyncIterator[StrategyStack]:
    await strategies.start(lambda: None)  # no worker here to wake
    try:
        yield strategies
    finally:
        await strategies.stop()
        if unheard is not None and (unsent := strategies.unsent()):
            unheard("; ".join(f"{each.name}: {each.detail}" for each in strategies.states() if each.name in unsent))
        for broker in brokers.made.values():
            await broker.stop()


def _storage(config: Config, *, writes: bool = True) -> Storage:
    storage = config.storage
    faults = [config.locate(path, fault) for path, dsn in config.dsns() if (fault := unusable_file(dsn, writes))]
    if faults:
        raise ConfigError(*faults)
    return open_store(storage.dsn, schema=storage.schema_name, pool=storage.pool, pgbouncer=storage.pgbouncer)


def _stack(config: Config, brokers: Brokers, logins: Logins) -> StrategyStack:
    # Polling has to know whether the others hear, and is one of them: it asks the finished stack.
    context = StrategyContext(
        subject=config.signal_subject,
        dsn=config.storage.dsn,
        broker=brokers,
        connector=logins.connector,
        deaf=lambda: stack.deaf,
    )
    made: list[NotifyStrategy] = []
    with Faults(config) as faults:
        for index, plugin in enumerate(config.strategies):
            with faults.at("strategies", index):
                made.append(build_strategy(plugin, context))
    stack = compose(*made)
    return stack
