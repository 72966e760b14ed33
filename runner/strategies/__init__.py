"""
The wake-up paths: what the strategies of a configuration are built from.

A kind is a line in `STRATEGIES`; its libraries are imported when it is asked for. Third parties write
`module:name`; docs/writing-a-strategy.md says how.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .base import NotifyStrategy
from .stack import StrategyStack, compose

if TYPE_CHECKING:
    from ..broker import Broker
    from ..config.dsn import Dsn
    from ..config.plugin import Plugin
    from ..config.plugins import NatsOptions, PollingOptions, PostgresOptions, SqliteOptions
    from .postgres import Connect

__all__ = ["STRATEGIES", "StrategyContext", "build_stack"]


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class StrategyContext:
    """
    What strategies need from outside.

    Attributes:
        subject: of the deployment, with its places filled in.
        dsn: of the store.
        broker: returns the connection for these options, the same one to all that ask. It is stopped by
            whoever made it, after the strategies and sinks that use it.
        connector: returns what makes connections to a PostgreSQL.
        deaf: whether there are push strategies and none hears.
    """

    subject: str
    dsn: Dsn
    broker: Callable[[NatsOptions], Broker]
    connector: Callable[[Dsn], Connect]
    deaf: Callable[[], bool] = _never


def _polling(options: PollingOptions, context: StrategyContext) -> NotifyStrategy:
    from .polling import Polling

    return Polling(options.every, options.deaf, context.deaf)


def _nats(options: NatsOptions, context: StrategyContext) -> NotifyStrategy:
    from .nats import Nats

    return Nats(context.broker(options), context.subject)


def _postgres(options: PostgresOptions, context: StrategyContext) -> NotifyStrategy:
    from .postgres import Postgres

    return Postgres(context.connector(options.dsn or context.dsn), context.subject)


def _sqlite(options: SqliteOptions, context: StrategyContext) -> NotifyStrategy:
    from .sqlite import Sqlite

    if context.dsn.path is None:
        raise ConfigError("strategies: 'sqlite' needs a store on SQLite; use 'postgres'")
    return Sqlite(context.dsn.path, options.every)


STRATEGIES: Mapping[str, Callable[[Any, StrategyContext], NotifyStrategy]] = {
    "nats": _nats,
    "polling": _polling,
    "postgres": _postgres,
    "sqlite": _sqlite,
}


def build_stack(plugins: Sequence[Plugin], context: StrategyContext) -> StrategyStack:
    """
    Return the strategies of a configuration as one; nothing connects yet.

    Raises:
        ConfigError: a third-party strategy does not take its options.
    """
    # Polling has to know whether the others hear, and is one of them: it asks the finished stack.
    context = replace(context, deaf=lambda: stack.deaf)
    stack = compose(*(_build(plugin, context) for plugin in plugins))
    return stack


def _build(plugin: Plugin, context: StrategyContext) -> NotifyStrategy:
    if plugin.kind in STRATEGIES:
        return STRATEGIES[plugin.kind](plugin.options, context)
    from ..config.callables import import_callable

    try:
        factory = import_callable(plugin.kind)
        arguments = inspect.signature(factory).bind(subject=context.subject, **dict(plugin.options))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"strategies: {plugin.kind}: {error}") from error
    try:
        strategy: NotifyStrategy = factory(*arguments.args, **arguments.kwargs)
    except (Exception, SystemExit) as error:
        # Its text may repeat an option, and nobody here knows which of them are secret.
        raise ConfigError(f"strategies: {plugin.kind}: cannot be built, it raised {type(error).__name__}") from error
    if not all(callable(getattr(strategy, name, None)) for name in ("start", "notify", "stop")):
        raise ConfigError(f"strategies: {plugin.kind}: expected a strategy with start, notify and stop")
    return strategy
