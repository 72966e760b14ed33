from __future__ import annotations

import io
import socket
import time
from collections.abc import Iterable
from http.client import HTTPResponse
from itertools import pairwise
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.sinks.http.answer import MAX_INTERIM, OVERHEAD, Answer, AnswerReader

LIMIT = 64 * 1024
OK = b"HTTP/1.1 200 OK\r\n"
Read = tuple[Answer | None, bool, bool]


def read(*pieces: bytes, limit: int = LIMIT, ended: bool = False) -> Read:
    """Return the answer, whether it is over, and whether another may follow on its connection."""
    reader, over = AnswerReader(limit), False
    for piece in pieces:
        over = over or reader.feed(piece)
    if ended and not over:
        reader.end()
    return reader.answer, over, over and reader.reusable


def status_of(*pieces: bytes, ended: bool = False) -> tuple[int | None, bool, bool]:
    answer, over, reusable = read(*pieces, ended=ended)
    return answer.status if answer else None, over, reusable


# --- answers as they should be ---------------------------------------------------------------------


def chunked(pieces: Iterable[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in pieces if each) + b"0\r\n\r\n"


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """An answer after interim ones, framed in one of the ways that leave no doubt."""
    head = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * draw(st.integers(0, 3))
    status = draw(st.sampled_from([200, 201, 202, 204, 304, 400, 410, 429, 500, 503, 599]))
    head += b"HTTP/1.1 %d%b\r\n" % (status, draw(st.sampled_from([b"", b" ", b" Text with blanks"])))
    head += draw(st.sampled_from([b"", b"Retry-After: 5\r\n", b"X: y\r\nDATE:Wed, 21 Oct 2015 07:28:10 GMT\r\n"]))
    if status in (204, 304):
        return head + b"\r\n"
    body = draw(st.binary(max_size=300))
    if draw(st.booleans()):
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(body[at : at + 70] for at in range(0, len(body), 70))


class _Socket:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def oracle(data: bytes) -> tuple[int, bytes, str | None]:
    while data.startswith(b"HTTP/1.1 1"):
        data = data.partition(b"\r\n\r\n")[2]
    response = HTTPResponse(cast(socket.socket, _Socket(data)), method="POST")
    response.begin()
    return response.status, response.read(), response.headers.get("retry-after")


@given(answers(), st.lists(st.integers(1, 600), max_size=20))
def test_an_answer_is_what_the_standard_library_reads_however_it_is_cut(data: bytes, cuts: list[int]) -> None:
    places = [0, *sorted({cut % len(data) for cut in cuts}), len(data)]
    answer, over, reusable = read(*(data[start:end] for start, end in pairwise(places)))
    assert answer is not None
    assert (answer.status, answer.body, answer.headers.get("retry-after")) == oracle(data)
    assert (answer.complete, over, reusable) == (True, True, True)


@given(answers(), st.binary(min_size=1, max_size=50))
def test_a_connection_with_more_than_was_asked_for_is_not_used_again(data: bytes, more: bytes) -> None:
    answer, over, reusable = read(data + more)
    assert (answer, over, reusable) == (read(data)[0], True, False)


def test_a_body_until_the_end_of_the_connection() -> None:
    assert status_of(OK, b"\r\nsome", b"more") == (200, False, False)
    answer, _, reusable = read(OK, b"\r\nsome", b"more", ended=True)
    assert answer == Answer(200, {}, b"somemore", True)
    assert not reusable


# --- what makes a connection doubtful --------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "reusable"),
    [
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 \r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nConnection: Upgrade, CLOSE\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nConnection: x\r\nconnection: close\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n 5\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 7\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: +0\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", False),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n", False),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nhi", False),
        (b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", False),
        (b"HTTP/1.1 101 Switching Protocols\r\nContent-Length: 0\r\n\r\n", True),  # as long as it frames itself
    ],
)
def test_what_makes_a_connection_doubtful(head: bytes, reusable: bool) -> None:
    status, over, kept = status_of(head)
    assert (status, over, kept) == (int(head[9:12]), True, reusable)


# --- the status decides ----------------------------------------------------------------------------

BROKEN = [
    pytest.param([OK], id="nothing after the status line"),
    pytest.param([b"HTTP/1.1 200\n"], id="a bare line feed"),
    pytest.param([OK, b"X: " + b"x" * 9 * 1024, b"\r\n\r\n"], id="a header of 9 KB"),
    pytest.param([OK, *[b"X: " + b"x" * 1000 + b"\r\n"] * 2000], id="2 MB of headers"),
    pytest.param([OK, b"X: y\r\n" * 200_000], id="200,000 headers"),
    pytest.param([OK, b"\x00\xff: \x16garbage\r\n : :\r\n\r\n"], id="headers that are none"),
    pytest.param([OK, b"Content-Length: 100\r\n\r\npart"], id="cut off"),
    pytest.param([OK, b"Transfer-Encoding: chunked\r\n\r\n5\r\npa"], id="a chunk cut off"),
    pytest.param([OK, b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n"], id="a chunk without a size"),
    pytest.param([OK, b"Transfer-Encoding: chunked\r\n\r\n2\r\nhixx\r\n"], id="a chunk longer than it says"),
    pytest.param([OK, b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\n"], id="a chunk of exabytes"),
    pytest.param([OK, b"Transfer-Encoding: chunked\r\n\r\n0\r\n", *[b"T: x\r\n" * 1000] * 100], id="trailers"),
    pytest.param([OK, b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope"], id="no gzip"),
]


@pytest.mark.parametrize("pieces", BROKEN)
def test_the_status_decides_once_its_line_is_read(pieces: list[bytes]) -> None:
    assert status_of(*pieces, ended=True)[0] == 200


@given(st.sampled_from([b"", b"Transfer-Encoding: chunked\r\n\r\n", b"\r\n"]), st.lists(st.binary(max_size=200)))
def test_nothing_that_follows_the_status_line_takes_it_back(head: bytes, pieces: list[bytes]) -> None:
    assert status_of(OK, head, *pieces, ended=True)[0] == 200


@given(st.lists(st.binary(max_size=100)))
def test_no_bytes_raise(pieces: list[bytes]) -> None:
    read(*pieces, ended=True)


def test_headers_of_a_head_that_never_ends_count() -> None:
    answer, over, _ = read(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nX: ", ended=True)
    assert answer is not None
    assert answer.headers == {"retry-after": "7"}
    answer, over, _ = read(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\n" + b"X: y\r\n" * 20_000)
    assert answer is not None
    assert (answer.headers, over) == ({"retry-after": "7"}, True)


@pytest.mark.parametrize(
    "spoken",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x03\x01",
        b"HTTP/2 200\r\n",
        b"HTTP/1.1  200 OK\r\n",
        b"HTTP/1.1 20 OK\r\n",
        b"HTTP/1.1 2000 OK\r\n",
        b"HTTP/1.1 999999 No\r\n\r\n",
        b"HTTP/1.1 \xb2\xb0\xb0 OK\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 " + b"x" * 100_000,
    ],
)
def test_what_is_no_answer_is_known_at_once(spoken: bytes) -> None:
    reader = AnswerReader(LIMIT)
    assert reader.feed(spoken)
    assert reader.answer is None
    assert reader.fault == "the answer is not HTTP"


def test_a_status_line_that_is_cut_is_none() -> None:
    assert status_of(b"HTTP/1.1 204 No Con", ended=True) == (None, False, False)


# --- budgets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [b"HTTP/1.1 102\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"])
def test_interim_answers_are_counted(head: bytes) -> None:
    assert status_of(head * MAX_INTERIM, OK, b"Content-Length: 0\r\n\r\n") == (200, True, True)
    reader = AnswerReader(LIMIT)
    assert reader.feed(head * (MAX_INTERIM + 1) + OK)
    assert reader.answer is None
    assert "interim" in (reader.fault or "")


def test_interim_answers_are_weighed() -> None:
    reader, sent = AnswerReader(LIMIT), 0
    assert not reader.feed(b"HTTP/1.1 103 Early Hints\r\n")
    while not reader.feed(b"Link: " + b"x" * 1000 + b"\r\n"):
        sent += 1000
        assert sent <= OVERHEAD
    assert reader.answer is None
    assert reader.fault


@pytest.mark.parametrize(
    "piece",
    [
        pytest.param(b";ext=" + b"x" * 1000, id="an extension without end"),
        pytest.param(b"1;ext=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\nx\r\n", id="an extension on each chunk"),
        pytest.param(b"1\r\nx\r\n", id="chunks of one byte"),
        pytest.param(b"0\r\nT: x\r\n", id="trailers"),
        pytest.param(b"10000\r\n" + b"x" * 65536 + b"\r\n", id="large chunks"),
    ],
)
def test_a_body_without_end_is_not_read_on(piece: bytes) -> None:
    reader = AnswerReader(LIMIT)
    assert not reader.feed(OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * piece.startswith(b";"))
    sent = 0
    while not reader.feed(piece):
        sent += len(piece)
        assert sent <= LIMIT + OVERHEAD
    answer = reader.answer
    assert answer is not None
    assert answer.status == 200
    assert not reader.reusable
    assert len(answer.body) <= LIMIT


@pytest.mark.parametrize("framing", [b"Content-Length: 10000000000\r\n\r\n", b"\r\n"])
def test_no_more_of_a_body_is_read_than_is_wanted(framing: bytes) -> None:
    answer, over, reusable = read(OK, framing, b"x" * 1000, b"x" * 1000, limit=1500)
    assert answer == Answer(200, answer.headers if answer else {}, b"x" * 1500, False)
    assert (over, reusable) == (True, False)


@pytest.mark.parametrize(
    "spoken",
    [
        pytest.param(b"HTTP/1.1 102\r\n\r\n" * 16_000, id="interim"),
        pytest.param(OK + b"X:" + b" " * 250_000, id="blanks"),
        pytest.param(OK + b"Connection:" + b", " * 30_000 + b"\r\n\r\n", id="a list"),
        pytest.param(OK + b"Connection: a\r\n" * 4_000 + b"\r\n", id="a header again and again"),
        pytest.param(OK + b":\n" * 125_000, id="lines"),
        pytest.param(OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 40_000, id="chunks"),
        pytest.param(OK + b"Transfer-Encoding: chunked\r\n\r\n1;" + b" \t" * 125_000, id="extension"),
        pytest.param(b"HTTP/1.1 200 " + b" " * 250_000, id="a status line"),
    ],
)
def test_one_piece_of_an_answer_costs_little(spoken: bytes) -> None:
    """A processor's time, not the clock's, and a bound that only what grows with the square exceeds."""
    began = time.process_time()
    read(spoken)
    assert time.process_time() - began < 0.5


def test_a_head_that_drips_is_not_searched_again_and_again() -> None:
    reader = AnswerReader(LIMIT)
    began = time.process_time()
    for byte in OK + b"X:y\r\n" * 12_000:
        assert not reader.feed(bytes([byte]))
    assert time.process_time() - began < 2.0
