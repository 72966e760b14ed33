"""The options of every kind of strategy and sink."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field, ValidationInfo, field_serializer, model_validator

from ..http.address import Address
from ..redaction import MASK, know, looks_secret, redacted
from .callables import import_callable, import_exception, is_reference
from .duration import Duration, PositiveDuration
from .errors import got
from .fields import Context, DsnField, FilePath, Model, Number, check_subject, context_of
from .plugin import Options, Plugin, PluginField
from .secret import Secret

__all__ = [
    "SINKS",
    "STRATEGIES",
    "NatsConnection",
    "NatsOptions",
    "NatsSinkOptions",
    "NatsTls",
    "PollingOptions",
    "PostgresOptions",
    "PythonOptions",
    "SinkField",
    "SqliteOptions",
    "StdoutOptions",
    "StrategyField",
    "WebhookOptions",
]

_LOGIN = ("credentials", "user", "password", "token")
_SUBJECT_TOKENS = frozenset({"deployment_id", "id", "source", "subject", "type"})
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)  # RFC 9110 §5.6.2, token
_OUR_HEADERS = ("ce-", "runner-", "webhook-")
_RESERVED_HEADERS = frozenset({"host", "content-length", "content-type", "transfer-encoding", "connection"})


def _split_server(server: Any) -> tuple[Any, dict[str, str]]:
    """Return the URL without user, password and token, and those."""
    if not isinstance(server, str) or "@" not in server:
        return server, {}
    scheme, separator, rest = server.partition("://")
    if not separator:
        scheme, rest = "", server
    userinfo, _, host = rest.rpartition("@")
    user, colon, password = userinfo.partition(":")
    login = {"user": unquote(user), "password": unquote(password)} if colon else {"token": unquote(user)}
    return f"{scheme}{separator}{host}", login


def _server(url: str) -> str:
    """Check one server; the URL is never repeated, it may hold what is wrongly placed."""
    expected = "expected a URL such as nats://host:4222 or tls://host:4222"
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        valid = parts.scheme in ("nats", "tls") and parts.hostname and parts.port != 0
        valid = valid and not (parts.path.strip("/") or parts.query or parts.fragment)
    except ValueError:
        raise ValueError(f"{expected}; host or port cannot be read") from None
    if not valid or re.search(r"[\x00-\x20,]", url):
        raise ValueError(expected)
    return parts.geturl()


def _web_address(url: str) -> str:
    for part in re.split("[/?&=]", Address.parse(url).target):
        if looks_secret(unquote(part)):
            know(part)
            know(unquote(part))
    return url


def _password_of(credentials: str) -> str:
    """Return the password in those of HTTP's scheme Basic; nothing where there is none."""
    try:
        return b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _importable(target: str, info: ValidationInfo) -> str:
    if context_of(info).imports:
        import_callable(target)
    elif not is_reference(target):
        raise ValueError(f"expected module:function, such as acme.audit:handle, got {got(target)}")
    return target


def _exception(name: str, info: ValidationInfo) -> str:
    if context_of(info).imports or ":" not in name:
        import_exception(name)
    elif not is_reference(name):
        raise ValueError(f"expected an exception, such as ValueError or acme.errors:Bad, got {got(name)}")
    return name


class PollingOptions(Options):
    """Look for work at regular times, whatever was or was not heard."""

    main = "every"

    every: PositiveDuration = Field(
        default=timedelta(seconds=30), description="Time between two looks at the database."
    )
    deaf: PositiveDuration = Field(
        default=timedelta(seconds=2), description="The same while no other strategy is known to hear."
    )


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

    servers: tuple[Annotated[str, AfterValidator(_server)], ...] | None = Field(
        default=None,
        min_length=1,
        description="URLs of the servers: `nats://host:4222`, or `tls://…`, several also in one text with commas.",
    )
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
        """nats-py forgets what a URL says for the servers it discovers, and does not decode it."""
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
        if len(found) > 1 or (found and any(data.get(name) is not None for name in _LOGIN)):
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


class NatsOptions(NatsConnection):
    """Signals over NATS."""

    main = "servers"

    servers: tuple[Annotated[str, AfterValidator(_server)], ...] = Field(
        min_length=1,
        description="URLs of the servers: `nats://host:4222`, or `tls://…`, several also in one text with commas.",
    )


class PostgresOptions(Options):
    """Signals by LISTEN and NOTIFY."""

    main = "dsn"

    dsn: DsnField | None = Field(
        default=None,
        description="DSN to listen on, past any pooler. The store's by default, which then must not be pgbouncer.",
    )
    password: Secret | None = Field(default=None, description="Password, apart from the DSN.")

    @model_validator(mode="after")
    def _complete(self, info: ValidationInfo) -> PostgresOptions:
        if self.dsn is None and self.password is not None:
            raise ValueError("password: there is no dsn that it belongs to; the store's goes into storage.password")
        if self.dsn is None or self.dsn.scheme != "postgresql":
            return self
        context = context_of(info)
        dsn = self.dsn.completed(password=self.password, tls=context.tls, environ=context.environ)
        return self if dsn == self.dsn else self.model_copy(update={"dsn": dsn})

    def check(self, context: Context) -> None:
        """LISTEN needs PostgreSQL, and a session of its own."""
        if self.dsn is not None:
            if self.dsn.scheme != "postgresql":
                raise ValueError("postgres.dsn: expected postgresql://…, LISTEN is PostgreSQL's")
        elif context.dsn is not None and context.dsn.scheme != "postgresql":
            raise ValueError(
                "strategy 'postgres' needs a store on PostgreSQL; use 'sqlite' with storage.dsn sqlite://…"
            )
        elif context.pgbouncer:
            raise ValueError(
                "LISTEN does not work through pgbouncer; give the strategy a direct DSN: postgres: {dsn: postgresql://…}"
            )


class SqliteOptions(Options):
    """Watch the database file for commits of other processes."""

    main = "every"

    every: Duration = Field(
        default=timedelta(milliseconds=25),
        ge=timedelta(milliseconds=1),
        description="Time between two looks at the file.",
    )

    def check(self, context: Context) -> None:
        """Only SQLite has a file to watch."""
        if context.dsn is not None and context.dsn.scheme != "sqlite":
            raise ValueError(
                "strategy 'sqlite' needs a store on SQLite; use 'postgres' with storage.dsn postgresql://…"
            )


class StdoutOptions(Options):
    """Print every event."""

    main = "format"

    format: Literal["text", "json"] = Field(default="text", description="`text`, or `json`: one CloudEvent per line.")


class PythonOptions(Options):
    """Call a Python function."""

    main = "target"
    batches = True

    target: Annotated[str, AfterValidator(_importable)] = Field(
        description="`module:function`; modules of the working directory are found too."
    )
    permanent: tuple[Annotated[str, AfterValidator(_exception)], ...] = Field(
        default=(), description="Exceptions that no retry can help: `ValueError`, `acme.errors:Bad`."
    )


class WebhookOptions(Options):
    """Send every event by HTTP POST."""

    main = "url"
    batches = True

    url: Annotated[str, AfterValidator(_web_address)] = Field(repr=False, description="`https://…` or `http://…`.")
    secret: Secret | None = Field(
        default=None,
        description="Signs each request.",
        json_schema_extra={
            "inactive": "requests would go out unsigned; remove it, and let the receiver check"
            " headers: {Authorization: …}"
        },
    )
    timeout: PositiveDuration = Field(default=timedelta(seconds=10), description="Longest wait for the answer.")
    headers: Mapping[str, Secret] = Field(default_factory=dict, description="Further headers, such as Authorization.")
    mode: Literal["binary", "structured"] = Field(
        default="binary",
        description="`binary`: attributes as headers, data as the body; `structured`: one JSON document, also used "
        "where the headers would pass 8 KiB.",
    )
    permanent: tuple[Annotated[Number, Field(ge=300, le=599)], ...] = Field(
        default=(), description="Statuses that no retry can help, besides 400, 410, 413, 415, 422 and 431."
    )
    deferred: PositiveDuration | None = Field(
        default=None,
        description="A receiver that answers 202 acknowledges later, within this time; null: 202 is success.",
    )

    @model_validator(mode="after")
    def _check_headers(self) -> WebhookOptions:
        for name, value in self.headers.items():
            scheme, _, credentials = value.reveal().partition(" ")
            if credentials:
                know(credentials)
            if scheme.lower() == "basic":
                know(_password_of(credentials))
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError(f"headers: {got(name)} is no header name (RFC 9110)")
            if name.lower().startswith(_OUR_HEADERS) or name.lower() in _RESERVED_HEADERS:
                raise ValueError(f"headers: {got(name)} is set by the sink itself; leave it out")
        return self

    @field_serializer("url", when_used="json")
    def _shown(self, url: str) -> str:
        """Many receivers put their key in the query, some in the path."""
        parts = urlsplit(redacted(url))
        return parts._replace(query=MASK if parts.query else "").geturl()


class NatsSinkOptions(NatsConnection):
    """Publish every event to NATS. Without `servers`, over the connection of the nats strategy."""

    main = "subject"

    subject: Annotated[
        str, AfterValidator(lambda subject: check_subject(subject, _SUBJECT_TOKENS, ("mesh.", "_INBOX", "$")))
    ] = Field(description="Subject; {type}, {source}, {subject}, {id} and {deployment_id} are filled in.")
    jetstream: bool = Field(
        default=False,
        description="Publish to a stream and wait for its answer.",
        json_schema_extra={
            "inactive": "nobody would wait for a stream; remove it: a stream on the server that covers the"
            " subject stores what is published"
        },
    )

    def check(self, context: Context) -> None:
        """Somebody has to say where NATS is."""
        if self.servers is None and any(getattr(self, name) is not None for name in (*_LOGIN, "tls")):
            raise ValueError("nats.servers: this key is required together with credentials, user, token or tls")
        if self.servers is None and not context.nats:
            raise ValueError("nats.servers: this key is required, because no nats strategy says where NATS is")


STRATEGIES: Mapping[str, type[Options]] = {
    "nats": NatsOptions,
    "polling": PollingOptions,
    "postgres": PostgresOptions,
    "sqlite": SqliteOptions,
}
SINKS: Mapping[str, type[Options]] = {
    "nats": NatsSinkOptions,
    "python": PythonOptions,
    "stdout": StdoutOptions,
    "webhook": WebhookOptions,
}


StrategyField = Annotated[Plugin, PluginField(STRATEGIES)]
SinkField = Annotated[Plugin, PluginField(SINKS)]
