"""Addresses and credentials of NATS, parsed and checked before nats-py gets them."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field, model_validator
from typing_extensions import override

from ..config.certificates import identify, trust
from ..config.errors import quoted
from ..config.fields import FilePath, Model, is_near
from ..config.plugin import Options
from ..config.secret import Secret
from ..config.value_file import read_value
from ..errors import StrategyError
from ..log.redaction import know

__all__ = ["LOGIN", "SERVERS", "BrokerOptions", "Material", "NatsConnection", "NatsTls", "Server", "ServerUrl"]

LOGIN = ("credentials", "user", "password", "token")
"""The options that say who we are."""

SERVERS = "URLs of the servers: `nats://host:4222`, or `tls://…`, several also in one text with commas."

_CREDENTIALS = re.compile(
    r"-----BEGIN NATS USER JWT-----\s+(?P<jwt>[\w-]+\.[\w-]+\.[\w-]+)\s+-.*"
    r"-----BEGIN USER NKEY SEED-----\s+(?P<seed>S[A-Z2-7]{57})\s+-",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Server:
    """One server's address; `tls_hostname` is what its certificate names, where that is not the host."""

    host: str
    port: int
    tls: bool = False
    tls_hostname: str | None = None

    @classmethod
    def parse(cls, url: str) -> Server:
        """
        Return the server `url` names: `nats://` or `tls://`, without a login.

        Raises:
            ValueError: it is no such URL. The message does not repeat it, because it may hold a password.
        """
        expected = "expected a URL such as nats://host:4222 or tls://host:4222"
        try:
            parts = urlsplit(_with_scheme(url))
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ValueError(f"{expected}; host or port cannot be read") from None
        beyond = parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc
        if parts.scheme not in ("nats", "tls") or not host or port == 0 or beyond or re.search(r"[\x00-\x20,]", url):
            raise ValueError(expected)
        return cls(host, port or 4222, parts.scheme == "tls")

    @property
    def address(self) -> str:
        """Host and port, fit for a log."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL for nats-py: never with credentials, which it would not decode nor use for other nodes."""
        return f"{'tls' if self.tls else 'nats'}://{self.address}"


def _with_scheme(url: str) -> str:
    return url if "://" in url else f"nats://{url}"


def _server_url(url: str) -> str:
    Server.parse(url)
    return urlsplit(_with_scheme(url)).geturl()


ServerUrl = Annotated[str, AfterValidator(_server_url)]
"""A field that holds the URL of a server, without a login."""


def _split_server(server: Any) -> tuple[Any, dict[str, str]]:
    """Split user, password and token from the URL; return all of them."""
    if not isinstance(server, str) or "@" not in server:
        return server, {}
    scheme, separator, rest = server.partition("://")
    if not separator:
        scheme, rest = "", server
    userinfo, _, host = rest.rpartition("@")
    user, colon, password = userinfo.partition(":")
    login = {"user": unquote(user), "password": unquote(password)} if colon else {"token": unquote(user)}
    return f"{scheme}{separator}{host}", login


class NatsTls(Model):
    """TLS towards NATS. With this section a connection that is not encrypted is refused."""

    ca: FilePath | None = Field(default=None, description="File of the authorities to trust; the system's by default.")
    cert: FilePath | None = Field(default=None, description="File of the client certificate.")
    key: FilePath | None = Field(default=None, description="File of the key to `cert`.")
    handshake_first: bool = Field(
        default=False, description="Start TLS before the server's first line, as it is set to."
    )
    insecure: bool = Field(default=False, description="Do not check who the server is. For tests only.")

    @model_validator(mode="after")
    def _pair(self) -> NatsTls:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key go together; give both or none")
        return self


class NatsConnection(Options):
    """How to reach NATS. A user, password or token inside a server's URL is moved to its own option."""

    servers: tuple[ServerUrl, ...] | None = Field(default=None, min_length=1, description=SERVERS)
    credentials: FilePath | None = Field(default=None, description="Credentials file (JWT and seed).")
    user: str | None = Field(default=None, description="User name.")
    password: Secret | None = Field(default=None, description="Password of `user`.")
    token: Secret | None = Field(default=None, description="Token, instead of a user.")
    tls: NatsTls | None = Field(
        default=None, description="TLS settings; without them TLS is used if the server asks for it."
    )

    @model_validator(mode="before")
    @classmethod
    def _split_userinfo(cls, data: Any) -> Any:
        """Move the login of a URL to its own options; nats-py neither decodes it nor uses it for discovered servers."""
        if not isinstance(data, dict):
            return data
        servers = data.get("servers")
        if isinstance(servers, str):
            servers = [servers]
        if not isinstance(servers, list):
            return data
        servers = [part for entry in servers for part in (entry.split(",") if isinstance(entry, str) else [entry])]
        split = [_split_server(server) for server in servers]
        found = {tuple(sorted(login.items())) for _, login in split if login}
        if len(found) > 1 or (found and any(data.get(name) is not None for name in LOGIN)):
            raise ValueError("servers: a user is given in several ways; give user and password, or token, once")
        return {**data, "servers": [server for server, _ in split], **(dict(found.pop()) if found else {})}

    @model_validator(mode="after")
    def _one_way(self) -> NatsConnection:
        ways = [name for name in ("credentials", "user", "token") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise ValueError(f"expected one of: credentials, user, token, got {' and '.join(ways)}")
        if self.password is not None and self.user is None:
            raise ValueError("password: there is no user that it belongs to; give both")
        return self

    @override
    def advice(self) -> Iterator[tuple[str, str]]:
        if self.servers is not None:
            try:
                BrokerOptions.of(self).check()
            except StrategyError as error:
                # No fault of the file: the files are read again at each connection, and nothing waits for NATS.
                yield "tls", f"{str(error).removeprefix('tls.')}; until it can be used, there is no connection to NATS"
        if self.tls is not None or (self.user is None and self.token is None):
            return  # credentials are a signature, which is of no use to others
        servers = map(Server.parse, self.servers or ())
        host = next((each.host for each in servers if not each.tls and not is_near(each.host)), None)
        if host is not None:
            message = f"the login goes to {quoted(host)} in clear unless the server asks for TLS"
            yield "servers", f"{message}; write tls:// for nats://"


@dataclass(frozen=True, slots=True)
class Material:
    """Certificates and credentials read from files for one connection."""

    tls: ssl.SSLContext | None = None
    credentials: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerOptions:
    """
    How to reach NATS. Equal options mean the same connection.

    `credentials` is the file nsc writes: a user's JWT and its nkey seed. Naming any TLS file, or
    `tls`, or a `tls://` URL makes encryption a condition: without it no credentials are sent. With
    `tls_insecure` the certificate of the server is not verified.
    """

    servers: tuple[str, ...]
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
        """Return the options of a configuration."""
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

    def parsed(self) -> tuple[Server, ...]:
        """Return the servers."""
        return tuple(map(Server.parse, self.servers))

    def needs_tls(self, server: Server) -> bool:
        """Return whether the connection to `server` must be encrypted."""
        return bool(server.tls or self.tls or self.tls_ca or self.tls_cert or self.tls_handshake_first)

    def material(self, server: Server) -> Material:
        """
        Read the files a connection to `server` needs. Blocks.

        Raises:
            StrategyError: a file of TLS cannot be used, or the credentials file is not complete.
            OSError: the credentials file cannot be read.
        """
        context = None
        if self.needs_tls(server):
            context = self._context()
        return Material(context, _read_credentials(self.credentials) if self.credentials else None)

    def check(self) -> None:
        """Raise `StrategyError` if a file of TLS cannot be used. Blocks."""
        if any(map(self.needs_tls, self.parsed())):
            self._context()

    def _context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context()
            if self.tls_ca:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                trust(context, "ca", self.tls_ca)
            if self.tls_insecure:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if self.tls_cert and self.tls_key:
                identify(context, self.tls_cert, self.tls_key)
        except ValueError as error:
            raise StrategyError(f"tls.{error}") from error
        return context


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
    know(found["jwt"])  # a server may take it without the proof of the seed (`bearer`)
    return (
        f"-----BEGIN NATS USER JWT-----\n{found['jwt']}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{found['seed']}\n------END USER NKEY SEED------\n"
    )
