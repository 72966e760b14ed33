"""Where NATS is and how to prove who we are: parsed and checked before nats-py sees any of it."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

from .config.value_file import read_value
from .errors import ConfigError, StrategyError
from .redaction import know

if TYPE_CHECKING:
    from .config.plugins import NatsConnection

__all__ = ["BrokerOptions", "Material", "Server"]

_CREDENTIALS = re.compile(
    r"-----BEGIN NATS USER JWT-----\s+(?P<jwt>[\w-]+\.[\w-]+\.[\w-]+)\s+-.*"
    r"-----BEGIN USER NKEY SEED-----\s+(?P<seed>S[A-Z2-7]{57})\s+-",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Server:
    """One server's address, and the credentials that were written into its URL."""

    host: str
    port: int
    tls: bool = False
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    tls_hostname: str | None = None

    @classmethod
    def parse(cls, url: str) -> Server:
        """
        Return the server `url` names: `nats://` or `tls://`, with or without user:password@ or token@.

        Raises:
            ConfigError: it is no such URL. The message does not repeat it, because it may hold a password.
        """
        try:
            parts = urlsplit(url if "://" in url else f"nats://{url}")
            host, port = parts.hostname, parts.port or 4222
        except ValueError:
            host, port, parts = None, 0, SplitResult("", "", "", "", "")
        if parts.scheme not in ("nats", "tls") or not host or parts.path.strip("/") or parts.query or parts.fragment:
            raise ConfigError(
                "servers: expected URLs such as nats://host:4222 or tls://user:password@host:4222;"
                " write special characters of a password as %XX"
            )
        user, password = (unquote(part) if part else None for part in (parts.username, parts.password))
        token = user if password is None else None
        return cls(host, port, parts.scheme == "tls", None if token else user, password, token)

    @property
    def address(self) -> str:
        """Host and port, fit for a log."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """What nats-py is given: never with credentials, which it would not decode nor use for other nodes."""
        return f"{'tls' if self.tls else 'nats'}://{self.address}"


@dataclass(frozen=True, slots=True)
class Material:
    """What was read from files for one connection."""

    tls: ssl.SSLContext | None = None
    credentials: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerOptions:
    """
    How to reach NATS. Equal options mean the same connection.

    `credentials` is the file nsc writes: a user's JWT and its nkey seed. Naming any TLS file, or
    `tls`, or a `tls://` URL makes encryption a condition: without it no credentials are sent. With
    `tls_insecure` nobody checks who the server is.

    Raises:
        ConfigError: there is no server, or its URL is wrong.
    """

    servers: tuple[str, ...] = field(repr=False)
    credentials: Path | None = None
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    tls: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_hostname: str | None = None
    tls_handshake_first: bool = False
    tls_insecure: bool = False

    @classmethod
    def of(cls, connection: NatsConnection) -> BrokerOptions:
        """Return the options a configuration gives."""
        tls = connection.tls
        return cls(
            servers=tuple(connection.servers or ()),
            credentials=connection.credentials,
            user=connection.user,
            password=connection.password.reveal() if connection.password else None,
            token=connection.token.reveal() if connection.token else None,
            tls=tls is not None,
            tls_ca=tls.ca if tls else None,
            tls_cert=tls.cert if tls else None,
            tls_key=tls.key if tls else None,
            tls_handshake_first=tls.handshake_first if tls else False,
            tls_insecure=tls.insecure if tls else False,
        )

    def __post_init__(self) -> None:
        if not self.parsed():
            raise ConfigError("servers: expected at least one URL such as nats://host:4222")

    def parsed(self) -> tuple[Server, ...]:
        """Return the servers; one entry may hold several URLs, separated by commas."""
        urls = [url.strip() for entry in self.servers for url in entry.split(",")]
        return tuple(Server.parse(url) for url in urls if url)

    def needs_tls(self, server: Server) -> bool:
        """Return whether nothing may be said to `server` in clear."""
        return bool(server.tls or self.tls or self.tls_ca or self.tls_cert or self.tls_handshake_first)

    def material(self, server: Server) -> Material:
        """
        Read the files a connection to `server` needs. Blocks.

        Raises:
            StrategyError: the credentials file is not complete.
            OSError: a file cannot be read, or holds no certificate.
        """
        context = None
        if self.needs_tls(server):
            context = ssl.create_default_context(cafile=self.tls_ca)
            if self.tls_insecure:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if self.tls_cert:
                context.load_cert_chain(self.tls_cert, self.tls_key)
        return Material(context, _read_credentials(self.credentials) if self.credentials else None)


def _read_credentials(path: Path) -> str:
    """
    Return the two blocks of a credentials file, in the form nats-py takes.

    Given a file without a JWT it would read for ever and hold the event loop; one cut short breaks it.
    """
    try:
        found = _CREDENTIALS.search(read_value(path))
    except ValueError as error:
        raise StrategyError(f"{path} {error}") from error
    if found is None:
        raise StrategyError(
            f"{path}: expected a NATS credentials file, with a user JWT and an nkey seed;"
            " write the new one beside it and rename it into place"
        )
    know(found["seed"])
    return (
        f"-----BEGIN NATS USER JWT-----\n{found['jwt']}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{found['seed']}\n------END USER NKEY SEED------\n"
    )
