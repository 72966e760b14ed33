"""What a configuration may say, and what its author is likely not to want."""

from __future__ import annotations

from collections.abc import Iterator

from .plugins import PollingOptions
from .schema import Config

__all__ = ["advice"]


def advice(config: Config) -> list[str]:
    """Return the warnings for the author of `config`: its place in the file, what is odd, and the cure."""
    return [*_unused_sinks(config), *_polling_only(config)]


def _unused_sinks(config: Config) -> Iterator[str]:
    used = {name for entry in config.subscriptions for name in (entry.sink, entry.dead_letter)}
    for name in config.sinks:
        if name not in used:
            yield config.locate(("sinks", name), "no subscription uses this sink; name it in one, or remove it")


def _polling_only(config: Config) -> Iterator[str]:
    polling = [plugin.options for plugin in config.strategies if isinstance(plugin.options, PollingOptions)]
    if len(polling) < len(config.strategies):
        return
    if config.storage.dsn.scheme == "sqlite":
        cure = "add - sqlite: 25ms"
    elif config.storage.pgbouncer:
        cure = "add - postgres: {dsn: postgresql://…} with a DSN past pgbouncer, or - nats: nats://…"
    else:
        cure = "add - postgres"
    reason = "these only poll: events of other processes wait for the next look at the database"
    yield config.locate(("strategies",), f"{reason}; {cure}")
