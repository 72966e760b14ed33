"""What a configuration may say, and what its author is likely not to want."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from .errors import KeyPath, quoted
from .plugins import NatsConnection, PollingOptions, WebhookOptions
from .schema import Config

__all__ = ["advice"]

_NO_PROMISE = ("disable", "allow", "prefer")  # the modes in which anything is sent in clear, if the server likes
_PROOF = re.compile(r"auth|cookie|key|pass|secret|sign|token", re.IGNORECASE)  # headers that prove who calls


def advice(config: Config) -> list[str]:
    """Return the warnings for the author of `config`: its place in the file, what is odd, and the cure."""
    return [*_storage_in_clear(config), *_unused_sinks(config), *_polling_only(config), *_logins_in_clear(config)]


def _storage_in_clear(config: Config) -> Iterator[str]:
    for path, dsn in config.dsns():
        if dsn.sslmode not in _NO_PROMISE:
            continue
        far = [host for host, _ in dsn.hosts if not _is_near(host)]
        if far:
            yield config.locate(
                path,
                f"with sslmode={dsn.sslmode} a server at {quoted(far[0])} that says no to TLS is given the password and"
                " the events in clear; set storage.tls: verify-full, or at least required",
            )
        elif dsn.sslrootcert is not None:
            reason = f"with sslmode={dsn.sslmode} nothing is checked against the root certificate"
            yield config.locate(path, f"{reason}; set storage.tls: verify-full")


def _logins_in_clear(config: Config) -> Iterator[str]:
    plugins: list[tuple[KeyPath, object]] = [
        *((("strategies", index, each.kind), each.options) for index, each in enumerate(config.strategies)),
        *((("sinks", name, each.kind), each.options) for name, each in config.sinks.items()),
    ]
    for path, options in plugins:
        if isinstance(options, NatsConnection) and (host := _nats_in_clear(options)):
            message = (
                f"the login goes to {quoted(host)} in clear unless the server asks for TLS; write tls:// for nats://"
            )
            yield config.locate((*path, "servers"), message)
        elif isinstance(options, WebhookOptions) and (host := _webhook_in_clear(options)):
            yield config.locate((*path, "url"), f"what proves who calls goes to {quoted(host)} in clear; use https://")


def _nats_in_clear(options: NatsConnection) -> str | None:
    if options.tls is not None or (options.user is None and options.token is None):
        return None  # credentials are a signature, which is of no use to others
    plain = [server.removeprefix("nats://") for server in options.servers or () if not server.startswith("tls:")]
    return next((host for each in plain if not _is_near(host := urlsplit(f"//{each}").hostname or "")), None)


def _webhook_in_clear(options: WebhookOptions) -> str | None:
    url = urlsplit(options.url)
    if url.scheme != "http" or _is_near(host := url.hostname or ""):
        return None
    return host if url.query or any(_PROOF.search(name) for name in options.headers) else None


def _is_near(host: str) -> bool:
    """Return whether nobody else can listen on the way to `host`: a socket, or this machine itself."""
    if host.startswith("/") or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


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
