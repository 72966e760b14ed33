"""The composition root: from a configuration to the parts, and from the parts to a runner."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from .broker_options import BrokerOptions
from .bus import EventBus
from .config import Config, load_config
from .config.dsn import Dsn
from .config.plugin import Options, Plugin
from .config.plugins import NatsConnection, NatsSinkOptions
from .config.secret import Secret
from .errors import ConfigError, SinkError
from .log import configure_own
from .runtime import Plan, Runner
from .sinks import SinkContext, build_sink
from .sinks.base import Sink
from .sinks.python import PythonSink
from .storage import Storage
from .storage import open_storage as open_store
from .strategies import StrategyContext, build_stack
from .strategies.stack import StrategyStack
from .worker import WorkerLimits

if TYPE_CHECKING:
    from .broker import Broker
    from .strategies.postgres import Connect

__all__ = ["build", "load", "open_bus", "open_storage"]


def load(path: str | Path, environ: Mapping[str, str] | None = None) -> Runner:
    """
    Return a runner for the configuration file at `path`; nothing connects before its `start()`.

    Logs go to stderr as the file's `log` says, unless the program has configured structlog itself.

    Args:
        environ: what `${VAR}` in the file stands for; the process's environment by default.

    Raises:
        ConfigError: every fault of the file, one per line.
    """
    config = load_config(path, environ)
    if not structlog.is_configured():
        configure_own(config.log.level, config.log.format)
    return build(config)


def build(config: Config) -> Runner:
    """Return a runner for `config`; nothing connects yet. Raise `ConfigError` when a plug-in cannot be built."""
    brokers = _Brokers(config)
    strategies = _stack(config, brokers)
    sinks = {name: _sink(name, plugin, config, brokers) for name, plugin in config.sinks.items()}
    return Runner(
        _plan(config),
        _storage(config),
        strategies,
        sinks,
        function_sink=PythonSink,
        brokers=brokers.made.values(),
    )


@contextlib.asynccontextmanager
async def open_storage(config: Config, *, migrate: bool = False, adopt: bool = True) -> AsyncIterator[Storage]:
    """
    Open the store of `config` for one errand.

    Args:
        migrate: bring the tables up to date first.
        adopt: make sure that they belong to this deployment.
    """
    storage = _storage(config)
    try:
        if migrate:
            await storage.migrate()
        if adopt:
            await storage.store.adopt(config.deployment_id)
        yield storage
    finally:
        await storage.close()


@contextlib.asynccontextmanager
async def open_bus(config: Config) -> AsyncIterator[EventBus]:
    """Open the bus of `config` to publish from a process that does no work; its signals are out when this ends."""
    brokers = _Brokers(config)
    # Polling only listens, which nobody does here.
    strategies = _stack(config, brokers)
    async with open_storage(config, migrate=config.storage.migrate) as storage:
        bus = EventBus(storage.store, strategies)
        await strategies.start(_nobody)
        try:
            yield bus
        finally:
            await bus.stop()
            await strategies.stop()
            for broker in brokers.made.values():
                await broker.stop()


class _Brokers:
    """One connection to NATS for each distinct way to reach it."""

    def __init__(self, config: Config) -> None:
        self.made: dict[BrokerOptions, Broker] = {}
        self._config = config

    def __call__(self, connection: NatsConnection) -> Broker:
        from .broker import Broker

        options = BrokerOptions.of(self._config.nats_connection(connection))
        if options not in self.made:
            self.made[options] = Broker(options, name=f"runner {self._config.deployment_id}")
        return self.made[options]


def _storage(config: Config) -> Storage:
    storage = config.storage
    return open_store(storage.dsn, schema=storage.schema_name, pool=storage.pool, pgbouncer=storage.pgbouncer)


def _stack(config: Config, brokers: _Brokers) -> StrategyStack:
    context = StrategyContext(
        subject=config.signal_subject, dsn=config.storage.dsn, broker=brokers, connector=_connector
    )
    return build_stack(config.strategies, context)


def _connector(dsn: Dsn) -> Connect:
    from .storage.engine import PostgresConnector

    return PostgresConnector(dsn).connect


def _sink(name: str, plugin: Plugin, config: Config, brokers: _Brokers) -> Sink:
    options = plugin.options

    def broker(_: Mapping[str, Any]) -> Broker:
        assert isinstance(options, NatsSinkOptions)
        return brokers(options)

    context = SinkContext(deployment_id=config.deployment_id, broker=broker, concurrency=config.worker.concurrency)
    try:
        return build_sink(plugin.kind, _plain(options), context)
    except SinkError as error:
        raise ConfigError(f"sinks.{name}: {error}") from error


def _plain(options: Options | Mapping[str, Any]) -> dict[str, Any]:
    """Return the options as plain values, secrets revealed."""
    values = dict(options) if isinstance(options, Options) else options
    return {key: _reveal(value) for key, value in values.items()}


def _reveal(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _reveal(each) for key, each in value.items()}
    return value.reveal() if isinstance(value, Secret) else value


def _plan(config: Config) -> Plan:
    worker = config.worker
    return Plan(
        deployment_id=config.deployment_id,
        summary=_summary(config),
        subscriptions=config.to_subscriptions(),
        limits=WorkerLimits(batch=worker.batch, concurrency=worker.concurrency, lease=worker.lease),
        channel=_channel(config),
        start_timeout=config.storage.start_timeout,
        migrate=config.storage.migrate,
        shutdown_grace=worker.shutdown_grace,
    )


def _channel(config: Config) -> str | None:
    """Return the channel SQL publishers are to notify, where a `postgres` strategy listens."""
    if not any(plugin.kind == "postgres" for plugin in config.strategies):
        return None
    from .strategies.postgres import channel_for

    return channel_for(config.signal_subject)


def _summary(config: Config) -> str:
    strategies = ", ".join(plugin.kind for plugin in config.strategies)
    sinks = ", ".join(f"{name} ({plugin.kind})" for name, plugin in config.sinks.items()) or "none"
    count = len(config.subscriptions)
    return (
        f"bus {config.deployment_id}: {config.storage.dsn} · wakes by {strategies} · sinks {sinks} · "
        f"{count} subscription{'' if count == 1 else 's'}"
    )


def _nobody() -> None:
    return None
