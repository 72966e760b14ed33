"""Warnings about valid settings that their author probably did not intend."""

from __future__ import annotations

from collections.abc import Iterator

from .errors import KeyPath, quoted
from .fields import is_near
from .plugin import Options, Plugin
from .schema import Config

__all__ = ["advice"]

# the modes in which the server decides whether the connection is encrypted
_NO_PROMISE = ("disable", "allow", "prefer")


def advice(config: Config) -> list[str]:
    """Return the warnings about `config`: the place in the file, the oddity, and the cure."""
    return [
        *_storage_in_clear(config),
        *_unused_sinks(config),
        *_polling_only(config),
        *_idle(config),
        *_open_to_all(config),
        *_advised_by_options(config),
    ]


def _idle(config: Config) -> Iterator[str]:
    if not config.worker.enabled and config.api is None:
        yield config.locate(
            ("worker", "enabled"), "a process without a worker that serves nothing does nothing; add an api section"
        )


def _open_to_all(config: Config) -> Iterator[str]:
    """Yield a warning if a proxy exposes the interface to others, and no tokens are configured."""
    api = config.api
    if api is None or api.tokens:
        return
    key = "hosts" if any(not is_near(host.removeprefix("*.")) for host in api.hosts) else "root_path"
    if key == "hosts" or api.root_path:
        cure = "add api.tokens, unless the proxy asks everybody who it is"
        yield config.locate(("api", key), f"without tokens whoever a proxy lets through may do everything; {cure}")


def _storage_in_clear(config: Config) -> Iterator[str]:
    for path, dsn in config.dsns():
        if dsn.sslmode not in _NO_PROMISE:
            continue
        far = [host for host, _ in dsn.hosts if not is_near(host)]
        if far:
            yield config.locate(
                path,
                f"with sslmode={dsn.sslmode} a server at {quoted(far[0])} that says no to TLS is given the password and"
                " the events in clear; set storage.tls: verify-full, or at least required",
            )
        elif dsn.sslrootcert is not None:
            reason = f"with sslmode={dsn.sslmode} nothing is checked against the root certificate"
            yield config.locate(path, f"{reason}; set storage.tls: verify-full")


def _advised_by_options(config: Config) -> Iterator[str]:
    plugins: list[tuple[KeyPath, Plugin]] = [
        *((("strategies", index), plugin) for index, plugin in enumerate(config.strategies)),
        *((("sinks", name), plugin) for name, plugin in config.sinks.items()),
    ]
    for path, plugin in plugins:
        if isinstance(plugin.options, Options):
            for key, message in plugin.options.advice():
                yield config.locate((*path, plugin.kind, key), message)


def _unused_sinks(config: Config) -> Iterator[str]:
    used = {name for entry in config.subscriptions for name in (entry.sink, entry.dead_letter)}
    for name in config.sinks:
        if name not in used:
            yield config.locate(("sinks", name), "no subscription uses this sink; name it in one, or remove it")


def _polling_only(config: Config) -> Iterator[str]:
    if any(plugin.kind != "polling" for plugin in config.strategies):
        return
    if config.storage.dsn.scheme == "sqlite":
        cure = "add - sqlite: 25ms"
    elif config.storage.pgbouncer:
        cure = "add - postgres: {dsn: postgresql://…} with a DSN past pgbouncer, or - nats: nats://…"
    else:
        cure = "add - postgres"
    reason = "these only poll: events of other processes wait for the next look at the database"
    yield config.locate(("strategies",), f"{reason}; {cure}")
