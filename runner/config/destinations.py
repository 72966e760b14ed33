"""Subscriptions made at run time: the keys of their secrets, and the addresses that are allowed."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema, field_validator

from ..policies.sealing import SHORTEST_KEY, Keyring
from .errors import got
from .fields import Model, Number
from .secret import Secret

__all__ = ["Allow", "Destinations", "Origin", "Sealing"]

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_HOST = re.compile(r"(?:\*\.)?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?", re.ASCII)


def _host(value: str) -> str:
    if not _HOST.fullmatch(value):
        raise ValueError(f"expected a host name, or *.example.com for all below it, got {got(value)}")
    return value


def _network(value: object) -> _Network:
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    try:
        return ipaddress.ip_network(str(value))
    except ValueError:
        raise ValueError(f"expected a network such as 10.0.0.0/8 or fd00::/8, got {got(value)}") from None


def _key(secret: Secret) -> Secret:
    if len(secret.reveal().strip()) < SHORTEST_KEY:
        raise ValueError(f"expected at least {SHORTEST_KEY} random characters; make them with: openssl rand -base64 32")
    return secret


NetworkField = Annotated[
    _Network,
    PlainValidator(_network),
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "examples": ["10.0.0.0/8", "fd00::/8"]}),
]
"""A network of IP addresses."""


Origin = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$")]
"""The DNS name of a sender."""


class Allow(Model):
    """Limits of the destinations of posts: https and public addresses, except those named here."""

    hosts: tuple[Annotated[str, AfterValidator(_host)], ...] = Field(
        default=(), description="Host names that may be at any address; `*.example.com` for all below it."
    )
    cidrs: tuple[NetworkField, ...] = Field(
        default=(), description="Networks that are allowed besides the public ones, such as 10.1.0.0/16."
    )
    http: bool = Field(default=False, description="Allow http:// as well.")


class Sealing(Model):
    """Keys that seal the secrets in the tables."""

    keys: tuple[Annotated[Secret, AfterValidator(_key)], ...] = Field(
        min_length=1,
        description="At least 32 random characters each; the first one seals, each one opens.",
    )

    @property
    def keyring(self) -> Keyring:
        """The keys."""
        return Keyring([each.reveal().strip() for each in self.keys])


class Destinations(Model):
    """Limits of the destinations that subscriptions bring: https and public addresses by default."""

    allow: Allow = Field(default=Allow(), description="What is allowed besides https and public addresses.")
    ports: tuple[Annotated[Number, Field(ge=1, le=65535)], ...] | None = Field(
        default=(443, 8443), min_length=1, description="Ports; null: any."
    )

    handshake: Literal["required", "warn"] | None = Field(
        default=None,
        description="What is asked of their receivers at least, as by `handshake` of a webhook; null: what each says"
        " itself.",
    )
    origin: Origin | None = Field(
        default=None, description="DNS name that their handshakes give as the sender; null: the deployment_id."
    )

    @field_validator("ports")
    @classmethod
    def _each_once(cls, ports: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if ports is None else tuple(dict.fromkeys(ports))
