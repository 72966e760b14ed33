"""The rest of a connection between two requests, on a clock of the test's own."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, cast

import pytest
import uvicorn
from uvicorn.server import ServerState

from runner.api.connection import Connection

if TYPE_CHECKING:
    import asyncio

    from starlette.types import Receive, Scope, Send

REST = 75  # seconds
REQUEST = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
TRAILER = b"authorization: Bearer good\r\n\r\n"


class Timer:
    def __init__(self, when: float, callback: Callable[[], object]) -> None:
        self._when, self.callback = when, callback
        self.over = False

    def when(self) -> float:
        return self._when

    def cancel(self) -> None:
        self.over, self.callback = True, lambda: None


class Task:
    def add_done_callback(self, callback: Callable[[Task], object]) -> None:
        callback(self)


class Loop:
    """A loop whose time passes when it is told to, and whose tasks end where they begin."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        self.timers.append(Timer(when, callback))
        return self.timers[-1]

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        return self.call_at(self.now + delay, callback)

    def create_task(self, coroutine: Coroutine[Any, Any, None]) -> Task:
        with pytest.raises(StopIteration):
            coroutine.send(None)
        return Task()

    def advance(self, to: float) -> None:
        while due := [each for each in self.timers if not each.over and each.when() <= to]:
            first = min(due, key=Timer.when)
            self.now, first.over = first.when(), True
            first.callback()
        self.now = to


class Transport:
    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def get_extra_info(self, name: str) -> None:
        return None

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def get_write_buffer_size(self) -> int:
        return 0

    def resume_reading(self) -> None:
        """Do nothing."""


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def transport() -> Transport:
    return Transport()


@pytest.fixture
def connection(loop: Loop, transport: Transport) -> Connection:
    return connected(loop, transport)


def connected(loop: Loop, transport: Transport) -> Connection:
    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, timeout_keep_alive=REST)
    config.load()
    connection = Connection(config, ServerState(), {}, cast("asyncio.AbstractEventLoop", loop), most=10)
    connection.connection_made(cast("asyncio.Transport", transport))
    return connection


def test_a_rest_begins_with_each_answer(loop: Loop, connection: Connection, transport: Transport) -> None:
    for at in (0, 70, 140, 210):
        loop.advance(at)
        connection.data_received(REQUEST)
    assert transport.written.count(b"HTTP/1.1 200 OK") == 4
    assert connection.waits_since == 210
    loop.advance(210 + REST - 1)
    assert not transport.closed
    loop.advance(210 + REST)
    assert transport.closed


def test_many_requests_need_one_timer(loop: Loop, connection: Connection) -> None:
    for _ in range(1000):
        connection.data_received(REQUEST)
    assert len([each for each in loop.timers if not each.over]) == 1
    assert len(loop.timers) == 2  # and that of the first head


def test_a_request_leaves_nothing_for_the_collector(connection: Connection) -> None:
    """It runs once in many thousand objects, and what it finds only then are megabytes of bodies."""
    cycles: weakref.WeakSet[object] = weakref.WeakSet()
    gc.disable()
    try:
        for _ in range(100):
            connection.data_received(REQUEST)
            cycles.add(connection.cycle)
        assert list(cycles) == [connection.cycle]
    finally:
        gc.enable()


def test_a_connection_leaves_nothing_for_the_collector(loop: Loop) -> None:
    gc.disable()
    try:
        connection = connected(loop, Transport())
        connection.data_received(REQUEST)
        connection.connection_lost(None)
        gone = weakref.ref(connection)
        del connection
        assert gone() is None
    finally:
        gc.enable()


def test_nothing_is_closed_during_a_request(loop: Loop, connection: Connection, transport: Transport) -> None:
    connection.data_received(REQUEST)
    loop.advance(REST - 1)
    connection.data_received(REQUEST[:-2])
    loop.advance(REST)
    assert not transport.closed
    connection.data_received(REQUEST[-2:])
    assert transport.written.count(b"HTTP/1.1 200 OK") == 2
    loop.advance(2 * REST - 1)
    assert not transport.closed
    loop.advance(2 * REST)
    assert transport.closed


def test_what_is_no_request_prolongs_no_rest(loop: Loop, connection: Connection, transport: Transport) -> None:
    connection.data_received(REQUEST)
    for at in range(1, REST):
        loop.advance(at)
        connection.data_received(b"\r\n")
    assert not transport.closed
    loop.advance(REST)
    assert transport.closed


def test_a_connection_that_is_lost_leaves_no_timer(loop: Loop, connection: Connection) -> None:
    connection.data_received(REQUEST)
    connection.connection_lost(None)
    assert [each for each in loop.timers if not each.over] == []


@pytest.mark.parametrize(
    "piece",
    [b"t: x\r\n" * 1000, b"x" * 6000, b"t: x" + b"y" * 6000 + b"\r\n"],
    ids=["many", "a-name", "long"],
)
def test_trailers_have_an_end(connection: Connection, transport: Transport, piece: bytes) -> None:
    """They came without limit after an answer that needs no token."""
    connection.data_received(CHUNKED)
    connection.data_received(b"0\r\n")
    sent = 0
    while not transport.closed and sent < 200_000:
        connection.data_received(piece)
        sent += len(piece)
    assert transport.closed
    assert sent < 80_000
    assert transport.written.count(b"HTTP/1.1 ") == 1  # the answer that it had


def test_extensions_of_a_chunk_have_an_end(connection: Connection, transport: Transport) -> None:
    connection.data_received(CHUNKED + b"1;")
    for _ in range(20):
        if not transport.closed:
            connection.data_received(b"x" * 6000)
    assert transport.closed


def test_a_body_may_be_larger_than_a_head(connection: Connection, transport: Transport) -> None:
    connection.data_received(CHUNKED)
    for _ in range(100):
        connection.data_received(b"1000;a=b\r\n" + b"x" * 4096 + b"\r\n")
    connection.data_received(b"0\r\nt: x\r\n\r\n")
    connection.data_received(REQUEST)
    assert not transport.closed
    assert transport.written.count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize("pieces", [[CHUNKED + b"0\r\n" + TRAILER], [CHUNKED, b"0\r\n", TRAILER]], ids=["one", "more"])
def test_trailers_are_no_headers(connection: Connection, pieces: list[bytes]) -> None:
    """RFC 9110 §6.5.1; they counted where the request came in one piece."""
    for piece in pieces:
        connection.data_received(piece)
    assert connection.cycle.scope["headers"] == [(b"host", b"localhost"), (b"transfer-encoding", b"chunked")]
    assert connection.headers == []


def test_what_is_wrong_in_a_body_is_no_other_answer(connection: Connection, transport: Transport) -> None:
    connection.data_received(CHUNKED)
    connection.data_received(b"zz\r\n")
    assert transport.closed
    assert transport.written.count(b"HTTP/1.1 ") == 1
