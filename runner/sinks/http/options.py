"""Sections of the options of a post: authentication, TLS, allowed destinations, signatures."""

from __future__ import annotations

import contextlib
import re
import ssl
from base64 import b64encode
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    field_serializer,
    model_validator,
)

from ...config.certificates import Certificates, identify, trust
from ...config.destinations import Allow
from ...config.errors import got
from ...config.fields import FilePath, Model
from ...config.secret import Secret
from ...errors import SinkError
from ...log.redaction import MASK, know, looks_secret, redacted
from .address import Address
from .client import Client
from .guard import Guard
from .hosts import Hosts
from .oauth import TokenSource, token_request
from .signatures import Signer, parse_key

__all__ = [
    "Auth",
    "Basic",
    "MomentField",
    "OAuth2",
    "SigningSecret",
    "Tls",
    "WebAddress",
    "guard_of",
    "shown_url",
    "signer",
]

_TOKEN = re.compile(r"[\x21-\x7e]+")


def _web_address(url: str) -> str:
    for part in re.split("[/?&=]", Address.parse(url).target):
        if looks_secret(unquote(part)):
            know(part)
            know(unquote(part))
    return url


def shown_url(url: str) -> str:
    """Return the URL without secrets: many receivers put their key in the query, some in the path."""
    parts = urlsplit(redacted(url))
    return parts._replace(query=MASK if parts.query else "").geturl()


def _signing_secret(secret: Secret) -> Secret:
    parse_key(secret.reveal())
    return secret


def _moment(value: object) -> datetime:
    moment = value
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            moment = datetime.fromisoformat(value)
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise ValueError(f"expected a time with its offset, such as 2026-01-31T12:00:00Z, got {got(value)}")
    return moment


MomentField = Annotated[
    datetime,
    PlainValidator(_moment),
    PlainSerializer(datetime.isoformat, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""A point in time by RFC 3339."""

WebAddress = Annotated[str, AfterValidator(_web_address)]
"""The URL of something to post to; what looks like a secret in it is known as one from then on."""

SigningSecret = Annotated[Secret, AfterValidator(_signing_secret)]
"""A secret of Standard Webhooks: `whsec_…`, or `whsk_…` for ed25519."""


class Tls(Certificates):
    """TLS towards a receiver."""

    ca: FilePath | None = Field(default=None, description="File of the authorities to trust; the system's by default.")
    cert: FilePath | None = Field(default=None, description="File of the client certificate.")
    key: FilePath | None = Field(default=None, description="File of the key to `cert`, without a password.")

    @model_validator(mode="after")
    def _pair(self) -> Tls:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key go together; give both or none")
        return self

    def context(self) -> ssl.SSLContext:
        """Return the context. Raise `SinkError`, which names the file that cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(["http/1.1"])
        try:
            if self.ca is None:
                context.load_default_certs()
            else:
                trust(context, "ca", self.ca)
            if self.cert is not None and self.key is not None:
                identify(context, self.cert, self.key)
        except ValueError as error:
            raise SinkError(f"tls.{error}") from error
        return context


class Basic(Model):
    """A user and a password, as HTTP's scheme Basic sends them (RFC 7617)."""

    user: str = Field(description="User name, without a colon.")
    password: Secret = Field(description="Password.")

    @model_validator(mode="after")
    def _check_user(self) -> Basic:
        if ":" in self.user:
            raise ValueError("user: a colon would end it (RFC 7617)")
        return self


class OAuth2(Model):
    """OAuth 2.0 by client credentials (RFC 6749 §4.4)."""

    token_url: WebAddress = Field(repr=False, description="Where tokens are given out.")
    client_id: str = Field(min_length=1, description="Id of the client.")
    client_secret: Secret = Field(description="Secret of the client.")
    scopes: tuple[Annotated[str, Field(pattern=r"^[\x21\x23-\x5b\x5d-\x7e]+$")], ...] = Field(
        default=(), description="Scopes to ask for."
    )
    parameters: Mapping[str, str] = Field(
        default_factory=dict, description="Further parameters of the request, such as `audience`."
    )
    send: Literal["header", "body"] = Field(
        default="header", description="How id and secret are sent: HTTP Basic, or as parameters of the body."
    )
    tls: Tls | None = Field(default=None, description="TLS towards `token_url`.")

    @field_serializer("token_url", when_used="json")
    def _shown(self, url: str) -> str:
        return shown_url(url)

    def source(self, hosts: Hosts, guard: Guard, timeout: timedelta) -> TokenSource:
        """Return the source of the tokens: one for all sinks with the same options."""
        return hosts.tokens(self, lambda: self._make(hosts, guard, timeout))

    def _make(self, hosts: Hosts, guard: Guard, timeout: timedelta) -> TokenSource:
        headers, body = token_request(
            self.client_id,
            self.client_secret.reveal(),
            scopes=self.scopes,
            parameters=self.parameters,
            send=self.send,
        )
        address = Address.parse(self.token_url)
        pool = hosts.pool(address, tls=self.tls, guard=guard)
        return TokenSource(
            Client(address, pool, headers={"User-Agent": "eventbus-runner"}, timeout=timeout), headers, body
        )


class Auth(Model):
    """Authentication to the receiver; exactly one of these."""

    bearer: Secret | None = Field(default=None, description="A token that is sent as it is.")
    basic: Basic | None = Field(default=None, description="User and password.")
    oauth2: OAuth2 | None = Field(default=None, description="A token that is fetched and renewed.")

    @model_validator(mode="after")
    def _check_one(self) -> Auth:
        given = [name for name in ("bearer", "basic", "oauth2") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of bearer, basic and oauth2, got {' and '.join(given) or 'none'}")
        if self.bearer is not None and not _TOKEN.fullmatch(self.bearer.reveal()):
            raise ValueError(
                "bearer: a token has neither spaces nor characters outside ASCII; leave out the word Bearer"
            )
        return self

    @property
    def header(self) -> str | None:
        """The value of `Authorization` where it is always the same."""
        if self.bearer is not None:
            return f"Bearer {self.bearer.reveal()}"
        if self.basic is not None:
            credentials = f"{self.basic.user}:{self.basic.password.reveal()}".encode()
            return f"Basic {b64encode(credentials).decode()}"
        return None


def guard_of(allow: Allow) -> Guard:
    """Return the policy of the section `allow`."""
    return Guard(http=allow.http, hosts=allow.hosts, cidrs=allow.cidrs)


def signer(secret: Secret | None, previous: Secret | None, until: datetime | None) -> Signer | None:
    """Return what signs with these secrets."""
    if secret is None:
        return None
    return Signer(parse_key(secret.reveal()), None if previous is None else parse_key(previous.reveal()), until)
