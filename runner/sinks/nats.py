"""
The sink that publishes on NATS: CloudEvents in binary or structured mode, on core NATS or to a JetStream stream.

Core NATS delivers at most once: accepted means that the server had the message and did not refuse it, not
that there was a listener. With JetStream it means that a stream has stored the message.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote

from pydantic import AfterValidator, Field, model_validator
from typing_extensions import override

from ..cloudevents import to_nats, to_nats_structured
from ..config.duration import PositiveDuration
from ..config.fields import Context, Model, Number, check_subject
from ..config.size import Size
from ..delivery import ACCEPTED, Delivery, Failed, Outcome, Rejected
from ..errors import EventError
from ..event import Event
from ..nats.errors import BrokerError, MessageRefused
from ..nats.options import LOGIN, NatsConnection
from ..nats.subjects import PLACE, covers, meets, shape
from ..tracing.carrier import trace_headers
from .base import SinkContext

if TYPE_CHECKING:  # nats-py is loaded with the first connection
    from ..nats.connection import Broker
    from ..nats.jetstream import JetStream, Stream

__all__ = ["NatsSink", "NatsSinkOptions", "StreamOptions", "Subject", "examples", "message_id"]

_PLACES = frozenset({"deployment_id", "id", "source", "subject", "type"})
_RESERVED = ("mesh.", "_INBOX", "$")
_LONGEST = 2048  # characters; a server closes the connection, which all share, over a line beyond 4,096 bytes
_MADE_UP = "runner-check"
_SAFE = re.compile(r"[A-Za-z0-9_-]+")
_UNSAFE = re.compile(rb"[^A-Za-z0-9_-]")
_PLAIN = re.compile(r"[A-Za-z0-9._~:-]+")  # what is not percent-encoded in a message id
_STREAM_NAME = re.compile(r"[A-Za-z0-9_-]{1,255}")
_STREAM_SUBJECT = re.compile(r"(?:(?:[A-Za-z0-9_-]+|\*)\.)*(?:[A-Za-z0-9_-]+|\*|>)")
_TIMEOUT = timedelta(seconds=5)
_LONGEST_ID = 256  # characters of `Nats-Msg-Id`, each of which a stream keeps in memory for a while

# The server's names for the options of a stream.
_SETTINGS = {"replicas": "num_replicas", "max_messages": "max_msgs"}


def _stream_name(name: str) -> str:
    if not _STREAM_NAME.fullmatch(name):
        raise ValueError("expected the name of a stream: up to 255 letters, digits, '_' and '-'")
    return name


def _stream_subject(pattern: str) -> str:
    if not _STREAM_SUBJECT.fullmatch(pattern) or pattern == ">":
        raise ValueError(f"expected a subject such as orders.*, or orders.> with tokens below it, got {pattern[:50]!r}")
    return pattern


class StreamOptions(Model):
    """The stream that keeps the events of a sink: made if it is missing, and compared if it is there."""

    name: Annotated[str, AfterValidator(_stream_name)] = Field(description="Name of the stream.")
    subjects: Annotated[tuple[Annotated[str, AfterValidator(_stream_subject)], ...], Field(min_length=1)] | None = (
        Field(default=None, description="Subjects it takes, with `*` and `>`; null: those that the sink publishes to.")
    )
    storage: Literal["file", "memory"] = Field(default="file", description="Where it keeps messages.")
    retention: Literal["limits", "interest", "workqueue"] = Field(
        default="limits",
        description="When a message goes: at a limit (`limits`), once all consumers have it (`interest`), or once one"
        " has it (`workqueue`).",
    )
    replicas: Annotated[Number, Field(ge=1, le=5)] = Field(default=1, description="Servers that keep each message.")
    max_age: PositiveDuration | None = Field(
        default=None, description="Longest time a message is kept; null: no limit."
    )
    max_bytes: Size | None = Field(default=None, description="Most bytes of all messages; null: no limit.")
    max_messages: Annotated[Number, Field(ge=1)] | None = Field(
        default=None, description="Most messages; null: no limit."
    )
    discard: Literal["old", "new"] = Field(
        default="old",
        description="At a limit, drop the oldest messages (`old`), or refuse new ones, which are tried again (`new`).",
    )
    duplicate_window: PositiveDuration = Field(
        default=timedelta(minutes=2),
        description="For how long it knows the events that it has, and keeps no second one.",
    )

    @model_validator(mode="after")
    def _agrees(self) -> StreamOptions:
        if self.max_age is not None and self.duplicate_window > self.max_age:
            raise ValueError("duplicate_window: longer than max_age, which NATS refuses; shorten it, or keep longer")
        return self

    def to_stream(self, subject: str) -> Stream:
        """Return the stream for a sink that publishes to subjects of that template; only what the file says is set."""
        from ..nats.jetstream import Stream

        written = {name: getattr(self, name) for name in sorted(self.model_fields_set - {"name", "subjects"})}
        settings = {_SETTINGS.get(name, name): _wire(value) for name, value in written.items() if value is not None}
        return Stream(self.name, self.subjects or (_whole(subject),), settings)


def _wire(value: Any) -> Any:
    """Return a value of the file as the server has it: times in nanoseconds."""
    return value // timedelta(microseconds=1) * 1000 if isinstance(value, timedelta) else value


def _whole(template: str) -> str:
    """Return the subject that takes all that a template makes."""
    tokens = shape(template)
    several = tokens.index(">") + 1 if ">" in tokens else len(tokens)
    return ".".join(tokens[:several])


class NatsSinkOptions(NatsConnection):
    """Publish every event to NATS. Without `servers`, over the connection of the nats strategy."""

    main = "subject"

    subject: Annotated[str, AfterValidator(lambda subject: check_subject(subject, _PLACES, _RESERVED))] = Field(
        description="Subject; {type}, {source}, {subject}, {id} and {deployment_id} are filled in."
    )
    mode: Literal["binary", "structured"] = Field(
        default="binary",
        description="`binary`: attributes as headers, data as the payload; `structured`: one JSON document.",
    )
    jetstream: bool = Field(default=False, description="Publish to a stream, and wait until it has the event.")
    timeout: PositiveDuration | None = Field(
        default=None, description="Longest wait for the answer of a stream; null: 5 s."
    )
    stream: StreamOptions | None = Field(
        default=None, description="Stream that is made if it is missing; null: one on the server takes the subjects."
    )

    @override
    def check(self, context: Context) -> None:
        if not self.jetstream:
            for name in ("stream", "timeout"):
                if getattr(self, name) is not None:
                    raise ValueError(f"nats.{name}: only a stream needs it; add jetstream: true, or remove it")
        if self.stream is not None:
            self._check_stream(self.stream)
        if self.servers is None and any(getattr(self, name) is not None for name in (*LOGIN, "tls")):
            raise ValueError("nats.servers: this key is required together with credentials, user, token or tls")
        if self.servers is None and not context.nats:
            raise ValueError("nats.servers: this key is required, because no nats strategy says where NATS is")

    def _check_stream(self, stream: StreamOptions) -> None:
        tokens = shape(self.subject)
        if stream.subjects is None and tokens[0] == ">":
            raise ValueError(
                f"nats.stream.subjects: this key is required, because {self.subject!r} may become any subject"
            )
        if stream.subjects is not None and not any(meets(pattern, tokens) for pattern in stream.subjects):
            raise ValueError(
                f"nats.stream.subjects: none of them takes {self.subject!r}, so that no event would be stored; "
                f"add {_whole(self.subject)!r}"
            )

    @override
    def advice(self) -> Iterator[tuple[str, str]]:
        yield from super().advice()
        if self.stream is None or not self.stream.subjects or "{deployment_id}" in self.subject:
            return  # such subjects cover the template, or depend on the deployment, which the options do not know
        if not any(covers(pattern, shape(self.subject)) for pattern in self.stream.subjects):
            whole = _whole(self.subject)
            yield "stream", f"not all that {self.subject!r} may become is taken by its subjects; add {whole!r}"

    @override
    def build(self, context: SinkContext) -> NatsSink:
        broker = context.broker(self)
        return NatsSink(
            broker,
            self.subject,
            deployment_id=context.deployment_id,
            mode=self.mode,
            streams=self.streams(broker, context.deployment_id),
        )

    def streams(self, broker: Broker, deployment_id: str) -> JetStream | None:
        """Return what publishes to streams over a connection; None on core NATS."""
        if not self.jetstream:
            return None
        from ..nats.jetstream import JetStream

        subject = self.subject.replace("{deployment_id}", deployment_id)
        stream = None if self.stream is None else self.stream.to_stream(subject)
        return JetStream(broker, timeout=self.timeout or _TIMEOUT, stream=stream)


class NatsSink:
    """
    Publish each event, and accept it once the server has it.

    The connection is the broker's, which others share; it is started and stopped by its owner.
    """

    def __init__(
        self,
        broker: Broker,
        subject: str,
        *,
        deployment_id: str,
        mode: Literal["binary", "structured"] = "binary",
        streams: JetStream | None = None,
    ) -> None:
        """
        Take the connection.

        Args:
            subject: the template; see `Subject`.
            streams: publishes in place of the broker, and waits until a stream has the event.
        """
        self._broker = broker
        self._subject = Subject(subject, deployment_id)
        self._encode = to_nats if mode == "binary" else to_nats_structured
        self._streams = streams

    async def start(self) -> None:
        """Do nothing: the broker connects on its own."""

    async def deliver(self, delivery: Delivery) -> Outcome:
        """Publish the event and wait for the confirmation of the server, or of a stream."""
        try:
            headers, payload = self._encode(delivery.event)
            headers |= trace_headers(delivery.event)
            subject = self._subject.of(delivery.event)
        except EventError as error:
            return Rejected(f"the event cannot be sent over NATS: {error}")
        try:
            if self._streams is None:
                await self._broker.publish(subject, payload, headers, confirm=True)
            else:
                headers["Nats-Msg-Id"] = message_id(delivery)
                await self._streams.publish(subject, payload, headers)
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

    The value of an event for a placeholder can never change the structure of the subject: every character other than
    A-Z, a-z, 0-9, `-` and `_` becomes `_` and the two hexadecimal digits of each of its bytes, and nothing becomes `_`.
    Only the dots of a type separate tokens, as they do in the type. The template is one that `NatsSinkOptions` has
    checked.
    """

    def __init__(self, template: str, deployment_id: str) -> None:
        self._deployment_id = deployment_id
        # Literal text at even indexes, the name of a place at odd ones.
        self._parts = PLACE.split(template)

    def of(self, event: Event) -> str:
        """Return the subject of `event`. Raise `EventError` when it is too long, or reserved."""
        subject = "".join([self._fill(part, event) if index % 2 else part for index, part in enumerate(self._parts)])
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
                return _tokens(event.type)
            case _:
                return _token(getattr(event, place) or "")


def message_id(delivery: Delivery) -> str:
    """
    Return the `Nats-Msg-Id` of a delivery: the same over its attempts, and another one for any other delivery.

    A stream compares ids whatever the subject, and may keep an event for several subscriptions.
    """
    event = delivery.event
    parts = (event.id, event.source, delivery.subscription)
    text = "/".join([part if _PLAIN.fullmatch(part) else quote(part, safe="-._~:") for part in parts])
    return text if len(text) <= _LONGEST_ID else hashlib.sha256(text.encode()).hexdigest()


def examples(template: str, deployment_id: str, types: Iterable[str]) -> list[str]:
    """Return example subjects for events of these types; values that only an event has are invented."""
    subject = Subject(template, deployment_id)
    made = []
    for pattern in types:
        type = pattern.replace("*", _MADE_UP)
        with contextlib.suppress(EventError):  # no event of this type is ever sent
            made.append(subject.of(Event(type=type, source=_MADE_UP, id=_MADE_UP, subject=_MADE_UP)))
    return list(dict.fromkeys(made))


@lru_cache(maxsize=1024)
def _tokens(type: str) -> str:
    return ".".join(map(_token, type.split(".")))


def _token(text: str) -> str:
    if _SAFE.fullmatch(text):
        return text
    return _UNSAFE.sub(lambda found: b"_%02x" % found[0][0], text.encode()).decode() or "_"
