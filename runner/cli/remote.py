"""`runner events tail --url`: the stream of a bus over HTTP."""

from __future__ import annotations

import http.client
import os
import ssl
import time
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import SplitResult, urlencode, urlsplit

import click
import orjson

from ..cloudevents import decode_json
from ..errors import RunnerError, readable
from ..log.redaction import know
from ..storage.contract.records import EventView
from .output import tell

__all__ = ["RemoteTail"]

_TOKEN = "RUNNER_TOKEN"
_SILENCE = 45.0  # seconds without a byte; the stream sends at least a comment every 15
_PAUSE = 2.0  # seconds before a reconnect
_REMEMBERED = 10_000  # seqs, because the stream repeats some events after a reconnect
_LINE = 16 * 1024 * 1024


class RemoteTail:
    """
    Read the events of a bus over HTTP, and continue at the same position after a lost connection.

    The token is that of `$RUNNER_TOKEN`.
    """

    def __init__(self, url: str, pattern: str | None, since: datetime | None) -> None:
        """
        Prepare to read.

        Raises:
            click.BadParameter: the URL is invalid.
            click.UsageError: the token is invalid.
        """
        self._at = _checked(url)
        query = {"types": pattern, "since": None if since is None else since.astimezone(UTC).isoformat()}
        given = urlencode({name: value for name, value in query.items() if value is not None})
        self._token = _token()
        self._path = f"{self._at.path.rstrip('/')}/events/stream" + (f"?{given}" if given else "")
        self._last_id: str | None = None
        self._seen: deque[int] = deque(maxlen=_REMEMBERED)

    def views(self) -> Iterator[tuple[EventView, bytes]]:
        """
        Yield each event once, with the JSON object that it came as; without end.

        Raises:
            RunnerError: the server refuses.
        """
        lost = False
        while True:
            try:
                for kind, data in self._messages():
                    if lost:
                        tell(f"{self._at.netloc} is back")
                        lost = False
                    yield from self._read(kind, data)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if not lost:
                    tell(f"{self._at.netloc} is away ({readable(str(error)) or type(error).__name__}); trying again")
                lost = True
            time.sleep(_PAUSE)

    def _read(self, kind: str, data: bytes) -> Iterator[tuple[EventView, bytes]]:
        if kind == "truncated":
            tell("retention has removed events that were not seen yet; the rest follows")
        elif kind == "message" and data:
            document = orjson.loads(data)
            if document["seq"] not in self._seen:
                self._seen.append(document["seq"])
                yield _view(document), data

    def _messages(self) -> Iterator[tuple[str, bytes]]:
        """Yield the messages of one connection (HTML Living Standard §9.2.6); a sign of life is one without data."""
        connection = self._connect()
        try:
            connection.request("GET", self._path, headers=self._headers())
            answer = connection.getresponse()
            if answer.status != 200:
                _refuse(answer)
            kind, data, last_id = "message", b"", self._last_id
            while line := answer.readline(_LINE):
                name, colon, value = line.rstrip(b"\r\n").partition(b":")
                value = value.removeprefix(b" ")
                match name:
                    case b"event":
                        kind = value.decode()
                    case b"data":
                        data += value
                    case b"id":
                        last_id = value.decode()
                    case b"" if not colon:
                        yield kind, data
                        self._last_id = last_id
                        kind, data = "message", b""
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._at.hostname or "", self._at.port
        if self._at.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=_SILENCE)
        return http.client.HTTPSConnection(host, port, timeout=_SILENCE, context=ssl.create_default_context())

    def _headers(self) -> dict[str, str]:
        headers = {"accept": "text/event-stream"}
        if self._last_id is not None:
            headers["last-event-id"] = self._last_id
        if self._token:
            headers["authorization"] = f"Bearer {self._token}"
        return headers


def _token() -> str:
    """Return the token of the environment; empty without. Raise `UsageError`, which does not repeat it."""
    token = os.environ.get(_TOKEN, "").strip()
    know(token)
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise click.UsageError(f"${_TOKEN}: a token has neither spaces nor characters that are not ASCII")
    return token


def _checked(url: str) -> SplitResult:
    parts = urlsplit(url)
    try:
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment:
        raise click.BadParameter("expected https://host:port, with the path of a proxy if need be", param_hint="--url")
    if parts.username is not None or parts.password is not None:
        raise click.BadParameter(f"no login stands in a URL; the token is that of ${_TOKEN}", param_hint="--url")
    return parts


def _refuse(answer: http.client.HTTPResponse) -> None:
    """Raise for an answer that is no stream: an error to retry, or a final one."""
    try:
        detail = orjson.loads(answer.read(65_536)).get("detail") or answer.reason
    except (ValueError, AttributeError):
        detail = answer.reason
    if answer.status >= 500 or answer.status == 429:
        raise http.client.HTTPException(f"{answer.status}: {detail}")
    cure = f"; set ${_TOKEN} to a token with the scope read" if answer.status in (401, 403) else ""
    raise RunnerError(f"the server refuses with {answer.status}: {detail}{cure}")


def _view(document: dict[str, Any]) -> EventView:
    return EventView(
        seq=document["seq"],
        event=decode_json(orjson.dumps(document["event"])),
        created_at=datetime.fromisoformat(document["created_at"]),
        state=document["state"],
    )
