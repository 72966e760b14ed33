"""`GET /events/stream`: events as they are recorded, as server-sent events (HTML Living Standard §9.2)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING

import orjson
from starlette.requests import HTTPConnection
from starlette.routing import Route

from ..service.clock import utcnow, wait_for
from ..storage.contract.records import EventQuery
from ..subscription import matches_pattern
from .feed import Entry, Feed, Mark, Reader
from .parameters import bad_parameter, moment, parameters
from .problems import Problem

if TYPE_CHECKING:
    from starlette.routing import BaseRoute
    from starlette.types import Receive, Scope, Send

    from .access import Caller
    from .surface import Surface

__all__ = ["Streaming", "routes"]

_HEARTBEAT = timedelta(seconds=15)
_BLOCKED = 30.0  # seconds for which a client may read nothing
_MOST_TYPES = 100  # patterns; every event is compared with each
_PIECE = 64 * 1024  # bytes that are sent at once, about
_HEADERS = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
)
_RETRY = b"retry: 2000\n"  # milliseconds until a client that lost its connection comes back


def routes(surface: Surface) -> list[BaseRoute]:
    """Return the routes."""
    return [Route("/events/stream", Streaming(surface), methods=["GET"])]


class Streaming:
    """Answer `GET /events/stream`, as an ASGI application."""

    def __init__(self, surface: Surface) -> None:
        """Give the events of `surface`."""
        self._surface = surface
        self._feed = Feed(surface.storage.records, surface.vitals.draining)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        request = HTTPConnection(scope)
        caller = self._surface.access.admit(request, "events")
        types, since = _asked(scope["query_string"])
        after = _last_event_id(request.headers.getlist("last-event-id"))
        if self._feed.ended:
            raise Problem(503, "stopping", "this process is stopping; try again", headers={"retry-after": "1"})
        truncated = None if after is None else await self._truncated(after)
        if after is None and since is not None:
            after = await self._before(since)
        async with self._feed.reader() as reader:
            gone = asyncio.ensure_future(_gone(receive))
            gone.add_done_callback(lambda _: reader.woken.set())
            stream = _Stream(self._feed, reader, caller, types, send)
            try:
                await stream.begin(after, truncated)
                while not gone.done() and not self._feed.ended:
                    await stream.go_on(_HEARTBEAT)
                await stream.end()
            except TimeoutError:
                return  # the client reads nothing, and loses its connection
            finally:
                gone.cancel()

    async def _before(self, since: datetime) -> Mark | None:
        """Return the mark before the first event since then; None if there is none."""
        query = EventQuery(since=since, newest_first=False, limit=1, data=False)
        async for view in self._surface.storage.records.events(query):
            return Mark(view.seq - 1, int(view.created_at.timestamp()))
        return None

    async def _truncated(self, after: Mark) -> dict[str, int | None] | None:
        """Return what to tell a client whose mark retention has passed; None if it has not."""
        shortest = self._surface.process.retention().shortest
        if shortest is None:
            return None
        if after.at is not None and utcnow().timestamp() - after.at < shortest.total_seconds():
            return None
        query = EventQuery(after_seq=after.seq, newest_first=False, limit=1, data=False)
        first = [view.seq async for view in self._surface.storage.records.events(query)]
        if first == [after.seq + 1]:
            return None
        return {"after": after.seq, "first": first[0] if first else None}


class _Stream:
    """One stream: what it selects, and its position."""

    def __init__(self, feed: Feed, reader: Reader, caller: Caller, types: Sequence[str], send: Send) -> None:
        self._feed = feed
        self._reader = reader
        self._caller = caller
        self._types = types
        self._send = send
        self._mark = feed.mark
        self._spoke = monotonic()  # when the client was last sent anything

    async def begin(self, after: Mark | None, truncated: dict[str, int | None] | None) -> None:
        """Send the head, and the events recorded after a mark."""
        await self._send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
        self._mark = after or self._mark
        head = _RETRY + _id(self._mark)
        if truncated is not None:
            head += b"event: truncated\ndata: " + orjson.dumps(truncated) + b"\n"
        await self._put(head + b"\n")
        if after is not None:
            await self._catch_up()

    async def go_on(self, heartbeat: timedelta) -> None:
        """Send the next events; while there are none, wait for them and send a comment as a sign of life."""
        entries = self._feed.take(self._reader)
        if entries is None:
            await self._catch_up()
        elif entries:
            await self._give(entries)
        else:
            self._reader.woken.clear()
            await wait_for(self._reader.woken, heartbeat - timedelta(seconds=monotonic() - self._spoke))
            if not self._reader.woken.is_set():
                self._mark = self._feed.mark
        # Events that are not for this client are no sign of life to it, however many there are.
        if monotonic() - self._spoke >= heartbeat.total_seconds():
            await self._put(b":\n" + _id(self._mark) + b"\n")

    async def end(self) -> None:
        """End the answer; a client reconnects, and continues after the last event it has."""
        await self._send({"type": "http.response.body", "body": b""})

    async def _catch_up(self) -> None:
        """Send the events of the store from this stream's position on."""
        entries: list[Entry] = []
        async with contextlib.aclosing(self._feed.history(self._reader, self._mark)) as history:
            async for entry in history:
                entries.append(entry)
                if len(entries) == 100:
                    await self._give(entries)
                    entries = []
                    if self._feed.ended:
                        return
        await self._give(entries)

    async def _give(self, entries: Sequence[Entry]) -> None:
        piece = bytearray()
        for entry in entries:
            self._mark = entry.mark
            if self._wants(entry):
                piece += _id(entry.mark) + entry.text + b"\n\n"
                if len(piece) >= _PIECE:
                    await self._put(bytes(piece))
                    piece.clear()
        if piece:
            await self._put(bytes(piece))

    def _wants(self, entry: Entry) -> bool:
        types = self._types
        return (not types or any(matches_pattern(each, entry.event.type) for each in types)) and self._caller.sees(
            entry.event
        )

    async def _put(self, piece: bytes) -> None:
        async with asyncio.timeout(_BLOCKED):
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        self._spoke = monotonic()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _asked(query: bytes) -> tuple[tuple[str, ...], datetime | None]:
    """Return the patterns of `types`, which may be given several times or with commas, and the time of `since`."""
    given = parameters(query, ("types", "since"), repeated=("types",))
    types = tuple(each for value in given.get("types", ()) for each in value.split(",") if each)
    if len(types) > _MOST_TYPES:
        raise bad_parameter("types", f"{len(types)} patterns, at most {_MOST_TYPES} are taken")
    return types, moment("since", given["since"][0]) if "since" in given else None


def _last_event_id(values: Sequence[str]) -> Mark | None:
    if not values:
        return None
    try:
        if len(values) > 1:
            raise ValueError
        return Mark.parse(values[0])
    except ValueError:
        raise Problem(400, "invalid-parameter", "last-event-id: expected an id of this stream") from None


def _id(mark: Mark) -> bytes:
    return b"id: %s\n" % str(mark).encode()
