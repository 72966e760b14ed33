"""JetStream: messages that a stream keeps and acknowledges, and the stream that is to keep them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import orjson
import structlog

from .errors import BrokerError, MessageRefused, NoResponders

if TYPE_CHECKING:  # nats-py is loaded with the first connection
    from .connection import Broker

__all__ = ["JetStream", "PubAck", "Stream", "StreamRefusal"]

log = structlog.get_logger(__name__)

_API = "$JS.API"
_API_TIMEOUT = 3.0  # seconds

# `err_code` of the server's errors, from its errors.json.
_MESSAGE_TOO_LARGE = 10054
_NAME_IN_USE = 10058
_NOT_FOUND = 10059


class StreamRefusal(BrokerError):
    """The server answered with an error; `code` is its `err_code`. The message may be sent again."""

    def __init__(self, reason: str, code: int = 0) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, slots=True)
class PubAck:
    """The acknowledgement of a stream; `duplicate` if it already had a message with that id."""

    stream: str
    seq: int
    duplicate: bool = False

    @classmethod
    def parse(cls, answer: bytes) -> PubAck:
        """
        Return what the answer to a message says.

        Raises:
            MessageRefused: the stream will never take this message.
            StreamRefusal: it did not take it this time, or the answer is not that of a stream.
        """
        document = _document(answer)
        stream, seq = document.get("stream"), document.get("seq")
        if not isinstance(stream, str) or not stream or type(seq) is not int or seq < 1:
            raise StreamRefusal("no stream answered: somebody else listens on the subject")
        return cls(stream, seq, document.get("duplicate") is True)


@dataclass(frozen=True, slots=True)
class Stream:
    """
    A stream as the file wants it.

    Attributes:
        subjects: what it is to take, with the wildcards `*` and `>`.
        settings: the server's names of what the file says, and its values; lengths of time in nanoseconds.
    """

    name: str
    subjects: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def differences(self, found: Mapping[str, Any]) -> Iterator[str]:
        """Say how a stream on the server differs from this one; of what the file leaves open, nothing."""
        taken = found.get("subjects") or []
        missing = [subject for subject in self.subjects if subject not in taken]
        if missing:
            yield f"it takes {', '.join(taken) or 'no subjects'}, and not {', '.join(missing)}"
        for name, wanted in self.settings.items():
            if found.get(name) != wanted:
                yield f"its {name} is {_shown(found.get(name))}, the file says {_shown(wanted)}"

    def request(self) -> bytes:
        """Return the body of the request that makes it."""
        return orjson.dumps({"name": self.name, "subjects": self.subjects, **self.settings})


class JetStream:
    """
    Publish to streams, and create the one of the file.

    Many messages are in flight at once; each gets its own answer.
    """

    def __init__(self, broker: Broker, *, timeout: timedelta, stream: Stream | None = None) -> None:
        """
        Take the connection.

        Args:
            timeout: the longest wait for the acknowledgement of a message.
            stream: made if it is missing. Without one, a stream on the server has to take the subjects.
        """
        self._broker = broker
        self._timeout = timeout.total_seconds()
        self._stream = stream
        self._looked = -1  # the connection on which the stream was looked at, by its number
        self._looking = asyncio.Lock()

    async def publish(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> PubAck:
        """
        Return once a stream has the message, on as many replicas as it needs.

        Raises:
            MessageRefused: it can never be sent.
            BrokerError: it was not acknowledged, and may be sent again. It may have been kept all the same.
        """
        if self._looked != self._broker.counts.connects:
            await self.prepare()
        if self._stream is not None:
            headers = {**headers, "Nats-Expected-Stream": self._stream.name}
        try:
            answer = await self._broker.request(subject, payload, headers, timeout=self._timeout)
        except NoResponders as error:
            self._looked = -1  # it may have been deleted
            raise StreamRefusal(f"no stream takes {subject!r}") from error
        return PubAck.parse(answer)

    async def prepare(self) -> None:
        """
        Make the stream of the file, unless it is there; report how one that is there differs.

        Raises:
            BrokerError: it is not there, and could not be made.
        """
        async with self._looking:
            connection = self._broker.counts.connects
            if self._looked == connection:
                return
            if self._stream is not None:
                for difference in await self._agree(self._stream):
                    log.warning("nats stream differs", stream=self._stream.name, detail=difference)
            self._looked = connection

    async def complaints(self, subjects: Iterable[str]) -> list[str]:
        """Return why messages to these subjects would not be stored, or not as the file says; nothing is changed."""
        try:
            found = None if self._stream is None else await self._find(self._stream.name)
            told = []
            if self._stream is not None and found is not None:
                told = [f"stream {self._stream.name!r}: {each}" for each in self._stream.differences(found)]
            for subject in subjects:
                taker = await self._taker(subject)
                if taker is None and (self._stream is None or found is not None):
                    told.append(f"no stream takes {subject!r}")
                elif self._stream is not None and taker not in (None, self._stream.name):
                    told.append(f"stream {taker!r} takes {subject!r}, the file says {self._stream.name!r}")
        except BrokerError as error:
            return [str(error)]
        return told

    async def _taker(self, subject: str) -> str | None:
        names = (await self._ask("STREAM.NAMES", orjson.dumps({"subject": subject}))).get("streams")
        return str(names[0]) if names else None

    async def _agree(self, stream: Stream) -> list[str]:
        found = await self._find(stream.name)
        if found is None:
            try:
                await self._ask(f"STREAM.CREATE.{stream.name}", stream.request())
            except StreamRefusal as error:
                if error.code != _NAME_IN_USE:
                    raise StreamRefusal(f"stream {stream.name!r} cannot be made: {error}", error.code) from error
                found = await self._find(stream.name)  # another process created it first
            else:
                log.info("nats stream made", stream=stream.name, subjects=stream.subjects)
        return [] if found is None else list(stream.differences(found))

    async def _find(self, name: str) -> Mapping[str, Any] | None:
        """Return the configuration of a stream; None if there is none."""
        try:
            found = (await self._ask(f"STREAM.INFO.{name}")).get("config")
        except StreamRefusal as error:
            if error.code == _NOT_FOUND:
                return None
            raise
        return found if isinstance(found, dict) else {}

    async def _ask(self, what: str, body: bytes = b"") -> Mapping[str, Any]:
        try:
            return _document(await self._broker.request(f"{_API}.{what}", body, timeout=_API_TIMEOUT))
        except NoResponders as error:
            raise StreamRefusal("the server has no JetStream for this account; enable it there") from error


def _document(answer: bytes) -> Mapping[str, Any]:
    """Return the object that the server answered with. Raise the error that it says."""
    try:
        document = orjson.loads(answer)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise StreamRefusal("no stream answered: somebody else listens on the subject")
    error = document.get("error")
    if not isinstance(error, dict):
        return document
    code = error.get("err_code")
    reason = str(error.get("description") or f"error {code}")[:200]
    if code == _MESSAGE_TOO_LARGE:
        raise MessageRefused(f"the stream refused: {reason}")
    raise StreamRefusal(f"the stream refused: {reason}", code if type(code) is int else 0)


def _shown(value: object) -> str:
    return "not set" if value is None else str(value)
