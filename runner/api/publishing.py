"""`POST /events`: publish CloudEvents, in binary, structured and batched mode (HTTP binding 1.0.2)."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.routing import Route

from ..cloudevents import message_from_http
from ..config.duration import parse_duration
from ..errors import EventError
from ..operations.shapes import receipt_json
from ..service.uri import check_references, is_uri, is_uri_reference
from ..storage.contract.events import Publication
from .bodies import Bodies, check_encoding
from .dry_run import dry_run
from .exchange import exchange_of
from .parameters import bad_parameter, boolean, parameters, rfc3339
from .problems import Problem
from .room import Room

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from ..event import Event
    from .access import Caller
    from .exchange import Exchange
    from .surface import Surface

__all__ = ["METHODS", "PATH", "Publishing", "route"]

PATH = "/events"
METHODS = ("POST", "OPTIONS")

_PARAMETERS = ("delay", "deliver_at", "dry_run")
_ORIGIN = re.compile(r"[A-Za-z0-9*._:-]{1,255}\Z", re.ASCII)
_RETRY = {"retry-after": "1"}
_JSON = ((b"content-type", b"application/json"),)
_ACCEPTED = b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
_URIS = {"source": is_uri_reference, "dataschema": is_uri}


def route(surface: Surface) -> Route:
    """Return the route."""
    return Route(PATH, Publishing(surface), methods=METHODS)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The parameters of a publish."""

    delay: timedelta | None = None
    deliver_at: datetime | None = None
    dry_run: bool = False


_NOTHING = _Asked()


class Publishing:
    """Answer `POST` and `OPTIONS` of `/events`, as an ASGI application."""

    def __init__(self, surface: Surface) -> None:
        """Publish into the bus of `surface`."""
        self._surface = surface
        self._bus = surface.bus
        self._limits = surface.options.limits
        self._bodies = Bodies(self._limits.body)
        self._room = Room(self._limits.pending, surface.depths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["method"] == "OPTIONS":
            handshake = _handshake(Headers(scope=scope))
            await _answer(send, 200, b"", [(name.encode(), value.encode()) for name, value in handshake.items()])
            return
        exchange = exchange_of(scope)
        status, content = await self._publish(scope, receive, exchange)
        content = orjson.dumps(content, option=orjson.OPT_UTC_Z)
        if exchange is None or status != 202 or not exchange.answer(_ACCEPTED % len(content), content):
            await _answer(send, status, content, _JSON)

    async def _publish(self, scope: Scope, receive: Receive, exchange: Exchange | None) -> tuple[int, Any]:
        request = HTTPConnection(scope)
        caller = self._surface.access.admit(request, "publish")
        asked = _asked(scope["query_string"])
        await self._check_room()
        lines = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        headers = dict(lines)
        if "content-encoding" in headers:
            check_encoding(scope)
        body = await self._bodies.read(headers, receive, exchange)
        mode, events = message_from_http(lines, body, limit=self._limits.batch)
        batched = mode == "batched"
        if mode == "binary":
            events = [_as_sent(events[0], headers)]
        _check_references(events, batched=batched)
        events = _admitted(caller, events, batched=batched)
        publications = [Publication(each, asked.delay, asked.deliver_at) for each in events]
        if asked.dry_run:
            with _placed(len(publications), batched=batched):
                verdicts = await dry_run(self._surface, publications, whole=caller.reads_all)
            return 200, verdicts if batched else verdicts[0]
        self._room.admitted(len(publications))
        with self._bus.continuing(headers):
            if batched:
                with _placed(len(publications), batched=True):
                    receipts = await self._bus.publish_many(publications)
                return 202, [receipt_json(each) for each in receipts]
            only = publications[0]
            receipt = await self._bus.publish(only.event, delay=only.delay, deliver_at=only.deliver_at)
        return 202, receipt_json(receipt)

    async def _check_room(self) -> None:
        """Raise a `Problem` of status 503 while no more events are accepted."""
        if self._surface.vitals.draining.is_set():
            raise Problem(503, "stopping", "this process is stopping; try again", headers=_RETRY)
        await self._room.check()


@contextlib.contextmanager
def _placed(count: int, *, batched: bool) -> Iterator[None]:
    """Give the error of a batch of one event its place, as those of larger batches have."""
    try:
        yield
    except EventError as error:
        if not batched or count > 1:
            raise
        raise error.in_batch(0, 1) from error


def _as_sent(event: Event, headers: Mapping[str, str]) -> Event:
    """
    Return an event of binary mode with `source` and `dataschema` as they were sent, if only that form is a URI.

    A producer that does not percent-encode header values (HTTP binding §3.1.3.2) sends `/a%20b` as it is. Decoded, as
    the values of other producers must be, it is no longer a URI.
    """
    for name, fits in _URIS.items():
        sent = headers.get(f"ce-{name}", "")
        if "%" in sent and not fits(getattr(event, name)) and fits(sent.strip(" \t")):
            event = event.replace(**{name: sent.strip(" \t")})
    return event


def _check_references(events: Sequence[Event], *, batched: bool) -> None:
    for index, event in enumerate(events):
        try:
            check_references(event.source, event.dataschema)
        except EventError as error:
            if not batched:
                raise
            raise error.in_batch(index, len(events)) from error


def _admitted(caller: Caller, events: Sequence[Event], *, batched: bool) -> list[Event]:
    """Return the events as the caller publishes them. Raise a `Problem` of status 403, with the place of its event."""
    admitted: list[Event] = []
    for index, event in enumerate(events):
        try:
            admitted.append(caller.admitted(event))
        except Problem as problem:
            if batched:
                problem.detail = f"event {index + 1} of {len(events)}: {problem.detail}"
                problem.extensions["index"] = index
            raise
    return admitted


def _asked(query: bytes) -> _Asked:
    """Return the parameters of a query. Raise a `Problem` for one that is unknown or makes no sense."""
    if not query:
        return _NOTHING
    given = {name: values[0] for name, values in parameters(query, _PARAMETERS).items()}
    if "delay" in given and "deliver_at" in given:
        raise bad_parameter("deliver_at", "give either delay or deliver_at, not both")
    return _Asked(
        delay=_delay(given["delay"]) if "delay" in given else None,
        deliver_at=rfc3339("deliver_at", given["deliver_at"]) if "deliver_at" in given else None,
        dry_run=boolean("dry_run", given["dry_run"]) if "dry_run" in given else False,
    )


def _delay(text: str) -> timedelta:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise bad_parameter("delay", str(error)) from None


def _handshake(headers: Headers) -> dict[str, str]:
    """
    Return the headers of the answer to a validation request (Web Hooks for Event Delivery 1.0.2, §4).

    Publishing still needs a token: the handshake only says that this endpoint expects events. A requested callback is
    never called.
    """
    allowed = {"allow": "GET, HEAD, OPTIONS, POST"}
    origin = headers.get("webhook-request-origin")
    if origin is not None and _ORIGIN.match(origin):
        allowed |= {"webhook-allowed-origin": origin, "webhook-allowed-rate": "*"}
    return allowed


async def _answer(send: Send, status: int, content: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    lines = [*headers, (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": content})
