"""
The sink that publishes on NATS: CloudEvents in binary mode, on core NATS.

Core NATS delivers at most once: accepted means that the server had the message and did not refuse it, not
that anybody listened. Who must not miss an event reads it from a JetStream stream on the same subjects.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field
from typing_extensions import override

from ..cloudevents import to_nats
from ..config.fields import Context, check_subject
from ..delivery import ACCEPTED, Delivery, Failed, Outcome, Rejected
from ..errors import EventError
from ..event import Event
from ..nats.errors import BrokerError, MessageRefused
from ..nats.options import LOGIN, NatsConnection
from .base import SinkContext

if TYPE_CHECKING:  # nats-py is loaded with the first connection
    from ..nats.connection import Broker

__all__ = ["NatsSink", "NatsSinkOptions", "Subject", "examples"]

_PLACES = frozenset({"deployment_id", "id", "source", "subject", "type"})
_PLACE = re.compile(r"\{([^{}]*)\}")
_RESERVED = ("mesh.", "_INBOX", "$")
_LONGEST = 2048  # characters; a server closes the connection, which all share, over a line beyond 4,096 bytes
_MADE_UP = "runner-check"
_UNSAFE = re.compile(rb"[^A-Za-z0-9_-]")


class NatsSinkOptions(NatsConnection):
    """Publish every event to NATS. Without `servers`, over the connection of the nats strategy."""

    main = "subject"

    subject: Annotated[str, AfterValidator(lambda subject: check_subject(subject, _PLACES, _RESERVED))] = Field(
        description="Subject; {type}, {source}, {subject}, {id} and {deployment_id} are filled in."
    )
    jetstream: bool = Field(
        default=False,
        description="Publish to a stream and wait for its answer.",
        json_schema_extra={
            "inactive": "nobody would wait for a stream; remove it: a stream on the server that covers the"
            " subject stores what is published"
        },
    )

    @override
    def check(self, context: Context) -> None:
        if self.servers is None and any(getattr(self, name) is not None for name in (*LOGIN, "tls")):
            raise ValueError("nats.servers: this key is required together with credentials, user, token or tls")
        if self.servers is None and not context.nats:
            raise ValueError("nats.servers: this key is required, because no nats strategy says where NATS is")

    @override
    def build(self, context: SinkContext) -> NatsSink:
        return NatsSink(context.broker(self), self.subject, deployment_id=context.deployment_id)


class NatsSink:
    """
    Publish each event, and accept it once the server has it.

    The connection is the broker's, which others share; it is started and stopped by who made it.
    """

    def __init__(self, broker: Broker, subject: str, *, deployment_id: str) -> None:
        """Take the template of the subject; see `Subject`."""
        self._broker = broker
        self._subject = Subject(subject, deployment_id)

    async def start(self) -> None:
        """Do nothing: the broker connects on its own."""

    async def deliver(self, delivery: Delivery) -> Outcome:
        """Publish the event and wait for the server's confirmation."""
        try:
            headers, payload = to_nats(delivery.event)
            subject = self._subject.of(delivery.event)
        except EventError as error:
            return Rejected(f"the event cannot be sent over NATS: {error}")
        try:
            await self._broker.publish(subject, payload, headers, confirm=True)
        except MessageRefused as error:
            return Rejected(str(error))
        except BrokerError as error:
            return Failed(str(error))
        return ACCEPTED

    async def stop(self) -> None:
        """Do nothing: the broker belongs to the runner."""


class Subject:
    """
    A template such as `orders.{type}`, with placeholders for type, source, subject, id and deployment_id.

    What an event puts into a place can never change the structure of the subject: every character other
    than A-Z, a-z, 0-9, `-` and `_` becomes `_` and the two hexadecimal digits of each of its bytes, and
    nothing becomes `_`. Only the dots of a type separate tokens, as they do in the type. The template is one that
    `NatsSinkOptions` has checked.
    """

    def __init__(self, template: str, deployment_id: str) -> None:
        self._deployment_id = deployment_id
        # Literal text at even indexes, the name of a place at odd ones.
        self._parts = _PLACE.split(template)

    def of(self, event: Event) -> str:
        """Return the subject of `event`. Raise `EventError` when it is too long, or reserved."""
        subject = "".join(self._fill(part, event) if index % 2 else part for index, part in enumerate(self._parts))
        if len(subject) > _LONGEST:
            raise EventError(f"subject: {len(subject)} characters, at most {_LONGEST} are sent")
        if subject.startswith(_RESERVED):
            raise EventError(f"subject {subject!r}: {', '.join(_RESERVED)} are reserved")
        return subject

    def _fill(self, place: str, event: Event) -> str:
        match place:
            case "deployment_id":
                return self._deployment_id
            case "type":
                return ".".join(_token(part) for part in event.type.split("."))
            case _:
                return _token(getattr(event, place) or "")


def examples(template: str, deployment_id: str, types: Iterable[str]) -> list[str]:
    """Return example subjects for events of these types; values that only an event has are invented."""
    subject = Subject(template, deployment_id)
    made = []
    for pattern in types:
        type = pattern.replace("*", _MADE_UP)
        with contextlib.suppress(EventError):  # no event of this type is ever sent
            made.append(subject.of(Event(type=type, source=_MADE_UP, id=_MADE_UP, subject=_MADE_UP)))
    return list(dict.fromkeys(made))


def _token(text: str) -> str:
    return _UNSAFE.sub(lambda found: b"_%02x" % found[0][0], text.encode()).decode() or "_"
