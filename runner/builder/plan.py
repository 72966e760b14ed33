"""The settings of a runner and of its bus, taken from a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import Config
from ..errors import ConfigError
from ..policies.limits import WorkerLimits
from ..storage.contract.archive import Retention

if TYPE_CHECKING:
    from ..bus.type_schemas import TypeSchemas
    from ..operations.destinations import Keeper
    from ..runtime.plan import Plan
    from ..tracing.base import Tracing

__all__ = ["keeper_of", "plan_of", "retention_of", "tracing_of", "type_schemas"]


def plan_of(config: Config) -> Plan:
    """Return the plan of a runner."""
    from ..config.written import Defaults
    from ..runtime.plan import Plan

    worker = config.worker
    return Plan(
        deployment_id=config.deployment_id,
        summary=_summary(config),
        subscriptions=config.to_subscriptions(),
        schedules=config.to_schedules(),
        limits=WorkerLimits(
            batch=worker.batch, concurrency=worker.concurrency, lease=worker.lease, max_hops=worker.max_hops
        ),
        works=worker.enabled,
        channel=_channel(config),
        start_timeout=config.storage.start_timeout,
        migrate=config.storage.migrate,
        shutdown_grace=worker.shutdown_grace,
        retention=retention_of(config),
        schemas=type_schemas(config),
        api=config.api,
        lifecycle=config.lifecycle,
        defaults=Defaults(config.retry, config.breaker),
    )


def type_schemas(config: Config) -> TypeSchemas | None:
    """Return the schemas that the data of events has to fit; None without any."""
    if not config.types:
        return None
    from ..bus.type_schemas import TypeSchemas
    from ..policies.data_schema import DataSchema

    return TypeSchemas({pattern: DataSchema.load(entry.schema_file) for pattern, entry in config.types.items()})


def tracing_of(config: Config) -> Tracing | None:
    """Return what makes spans; None for none. Raise `ConfigError` where OpenTelemetry is not installed."""
    if config.tracing is None:
        return None
    try:
        from ..tracing.otel import OpenTelemetry
    except ImportError as error:
        cure = "pip install 'eventbus-runner[otel]', or leave tracing out"
        raise ConfigError(f"OpenTelemetry is not installed ({error.name}): {cure}") from error
    return OpenTelemetry()


def keeper_of(config: Config) -> Keeper:
    """Return what checks and keeps the destinations that subscriptions bring with them."""
    from ..config.written import Defaults
    from ..operations.destinations import Keeper, guard_within

    keyring = None if config.sealing is None else config.sealing.keyring
    limits = config.destinations
    defaults = Defaults(config.retry, config.breaker)
    guard = guard_within(limits)
    return Keeper(keyring, guard, handshake=limits.handshake, origin=limits.origin, defaults=defaults)


def retention_of(config: Config) -> Retention:
    """Return how long the events and actions of `config` are kept."""
    kept = config.retention
    return Retention(delivered=kept.delivered, dead=kept.dead, audit=kept.audit)


def _channel(config: Config) -> str | None:
    """Return the channel that SQL publishers notify; None without a `postgres` strategy."""
    if not any(plugin.kind == "postgres" for plugin in config.strategies):
        return None
    from ..strategies.postgres import channel_for

    return channel_for(config.signal_subject)


def _summary(config: Config) -> str:
    strategies = ", ".join(plugin.kind for plugin in config.strategies)
    sinks = ", ".join(f"{name} ({plugin.kind})" for name, plugin in config.sinks.items()) or "none"
    count, times = len(config.subscriptions), len(config.schedules)
    return (
        f"bus {config.deployment_id}: {config.storage.dsn} · wakes by {strategies} · sinks {sinks} · "
        f"{count} subscription{'' if count == 1 else 's'}"
        + (f" · {times} schedule{'' if times == 1 else 's'}" if times else "")
        + ("" if config.worker.enabled else " · serves only")
    )
