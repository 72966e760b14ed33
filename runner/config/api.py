"""The HTTP interface in the file: its address, its tokens, its limits."""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from ..errors import ConfigError
from .certificates import Certificates, identify
from .errors import got, quoted
from .fields import FilePath, Model, Name, Number, OneOrList, context_of, is_near
from .secret import Secret
from .size import Size
from .source import PlacedText

__all__ = ["Api", "ApiLimits", "ApiTls", "Place", "Scope", "TokenEntry", "place_of"]

Scope = Literal["publish", "read", "subscribe", "admin"]

_SOCKET = "unix:"
_LIVE = 2  # tokens that may have the same name: the old one and the new one
_HOST = re.compile(r"(?:\*\.)?[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})|\[[0-9a-fA-F:.]+\]", re.ASCII)
_ATTRIBUTE = re.compile(r"[a-z0-9]{1,20}", re.ASCII)
_EXPECTED = "expected address:port or unix:/path, such as 127.0.0.1:8080, [::1]:8080 or unix:/run/runner.sock"

_EXPECTED_TIME = "expected a date such as 2027-01-01, or a time with an offset"


class Place(NamedTuple):
    """A place to listen: a host and its port, or the path of a socket."""

    host: str
    port: int
    path: Path | None = None

    @property
    def near(self) -> bool:
        """Whether only this machine can connect."""
        return self.path is not None or is_near(self.host)


def place_of(listen: str) -> Place:
    """
    Return where `listen` is.

    Raises:
        ValueError: it is neither `address:port` nor `unix:/path`.
    """
    if listen.startswith("unix:"):
        path = listen.removeprefix("unix:")
        if not path or "\0" in path or len(path.encode()) > 100:
            raise ValueError(f"expected unix: and the path of a socket, at most 100 bytes long, got {got(listen)}")
        return Place("", 0, Path(path))
    host, _, port = listen.rpartition(":")
    if not re.fullmatch(r"\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+", host) or not re.fullmatch(r"[0-9]{1,5}", port):
        raise ValueError(f"{_EXPECTED}, got {got(listen)}")
    if int(port) > 65535:
        raise ValueError(f"expected a port from 0 to 65535, got {got(listen)}")
    host = host.strip("[]")
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(f"{_EXPECTED}, got {got(listen)}") from None
    return Place(host, int(port))


def _root_path(value: str) -> str:
    if value and not re.fullmatch(r"(?:/[A-Za-z0-9._~-]+)+", value):
        raise ValueError(f"expected a path such as /bus, without a slash at its end, or nothing, got {got(value)}")
    return value


def _host(value: str) -> str:
    if not _HOST.fullmatch(value):
        raise ValueError(f"expected a name without a port, such as bus.example.com or *.example.com, got {got(value)}")
    return value.lower()


def _sha256(value: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        # The value is not repeated: it may be the token itself, in the wrong place.
        raise ValueError("expected the SHA-256 of the token, 64 hexadecimal digits: printf %s TOKEN | sha256sum")
    return value.lower()


def _expiry(value: object) -> object:
    """Read a date as its first moment in UTC, and a time without an offset as UTC."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{_EXPECTED_TIME}, got {got(value)}") from None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if not isinstance(value, datetime):
        raise ValueError(f"{_EXPECTED_TIME}, got {got(value)}")
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _type(value: str) -> str:
    if not re.fullmatch(r"[^\x00-\x20\x7f]{1,2048}", value):
        raise ValueError(f"expected text without spaces, in which '*' stands for anything, got {got(value)}")
    return value


class TokenEntry(Model):
    """A bearer token: its name, its secret, and its scopes."""

    name: Name = Field(description="Who has it; two tokens may have the same name, the old one and the new one.")
    secret: Secret | None = Field(default=None, description="The token, of 256 random bits; or its `sha256`.")
    sha256: Annotated[str, AfterValidator(_sha256)] | None = Field(
        default=None, description="SHA-256 of the token, in place of `secret`."
    )
    scopes: tuple[Scope, ...] = Field(
        min_length=1, description="What it allows: `publish`, `read`, `subscribe`, `admin`."
    )
    types: Annotated[tuple[Annotated[str, AfterValidator(_type)], ...], OneOrList()] | None = Field(
        default=None, min_length=1, description="Event types it may publish; `*` stands for any characters. Null: all."
    )
    attributes: Mapping[str, str] = Field(
        default_factory=dict, description="Attributes that every event it publishes has to have, with these values."
    )
    expires: Annotated[datetime, BeforeValidator(_expiry)] | None = Field(
        default=None, description="When it ends, a date or a time; null: never."
    )

    @field_validator("attributes")
    @classmethod
    def _named(cls, attributes: Mapping[str, str]) -> Mapping[str, str]:
        for name in attributes:
            if not _ATTRIBUTE.fullmatch(name):
                raise ValueError(f"expected names of up to 20 lower-case letters and digits, got {got(name)}")
        return attributes

    @model_validator(mode="after")
    def _one_secret(self) -> TokenEntry:
        if (self.secret is None) == (self.sha256 is None):
            raise ValueError("expected either secret or sha256")
        if "admin" in self.scopes and (self.types or self.attributes):
            raise ValueError("types and attributes limit the events of a token; they do not go with scope admin")
        return self


class ApiLimits(Model):
    """Limits of one request, and of all together."""

    body: Size = Field(default=1024 * 1024, description="Largest body of a request; above it the answer is 413.")
    batch: Number = Field(default=1000, ge=1, le=10_000, description="Most events in one batch.")
    pending: Number | None = Field(
        default=None, ge=1, description="Waiting events above which a publish is answered with 503; null: no limit."
    )
    connections: Number | None = Field(
        default=None,
        ge=10,
        le=100_000,
        description="Most connections at once; one more closes one that waits, or is a 503. null: half of the files "
        "that the process may have open, at most 20,000.",
    )
    definitions: Number = Field(
        default=1000, ge=0, description="Most subscriptions, and most schedules, made by the API; one more is a 409."
    )


class ApiTls(Certificates):
    """TLS of the listener."""

    cert: FilePath = Field(description="File of the certificate, with those between it and the root.")
    key: FilePath = Field(description="File of its key, without a password.")

    def context(self) -> ssl.SSLContext:
        """Return the context. Raise `ConfigError`, which names the file that cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            identify(context, self.cert, self.key)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return context


def _placed(value: object) -> object:
    """Make the path of a socket absolute where it stands in an included file."""
    if isinstance(value, PlacedText) and value.startswith(_SOCKET):
        return f"{_SOCKET}{value.base / value.removeprefix(_SOCKET)}"
    return value


class Api(Model):
    """The HTTP interface."""

    listen: Annotated[str, BeforeValidator(_placed)] = Field(
        default="127.0.0.1:8080", description="`address:port`, or `unix:/path`."
    )
    root_path: Annotated[str, AfterValidator(_root_path)] = Field(
        default="", description="Path under which a proxy shows it, such as `/bus`."
    )
    hosts: Annotated[tuple[Annotated[str, AfterValidator(_host)], ...], OneOrList()] = Field(
        default=(),
        description="Host names it answers to. Left out: those of the loopback, or any where it listens beyond that.",
    )
    tokens: tuple[TokenEntry, ...] = Field(
        default=(), description="Bearer tokens; needed unless `listen` is a loopback address or a socket."
    )
    limits: ApiLimits = Field(default=ApiLimits(), description="What one request may bring.")
    metrics: bool = Field(
        default=True, description="Serve `/metrics`: without a token on the loopback, else to the scope `read`."
    )
    dashboard: bool = Field(
        default=True, description="Serve the dashboard at `/`, to tokens with the scope `read`; `admin` may act."
    )
    reuse_port: bool = Field(default=False, description="Let several processes of one machine share the port.")
    tls: ApiTls | None = Field(default=None, description="TLS by files; null: none.")

    @field_validator("listen")
    @classmethod
    def _address(cls, value: str, info: ValidationInfo) -> str:
        place = place_of(value)
        if place.path is None:
            return value
        return f"{_SOCKET}{context_of(info).base / place.path}"

    @field_validator("tokens")
    @classmethod
    def _few(cls, tokens: tuple[TokenEntry, ...]) -> tuple[TokenEntry, ...]:
        names = [each.name for each in tokens]
        for name in dict.fromkeys(names):
            if names.count(name) > _LIVE:
                raise ValueError(f"{names.count(name)} tokens are called {quoted(name)}; at most two may be")
        return tokens

    @field_validator("reuse_port")
    @classmethod
    def _shareable(cls, value: bool, info: ValidationInfo) -> bool:
        if value and str(info.data.get("listen", "")).startswith("unix:"):
            raise ValueError("a socket cannot be shared; leave reuse_port out, or listen on address:port")
        return value

    @model_validator(mode="after")
    def _guarded(self) -> Api:
        if not self.tokens and not self.place.near:
            raise ValueError("tokens: expected at least one, because listen is not a loopback address")
        return self

    @property
    def place(self) -> Place:
        """Where it listens."""
        return place_of(self.listen)
