"""
Reading an HTTP/1.1 answer (RFC 9112) within limits, apart from any connection.

The status decides once its line has been read. If the rest is missing, malformed, too long or endless, only the excerpt
of the body and the connection are lost: a connection is used again only after an answer with an unambiguous end.
Nothing is decompressed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["MAX_INTERIM", "OVERHEAD", "Answer", "AnswerReader"]

OVERHEAD = 64 * 1024
"""Bytes of one answer that are not its body: heads, those of interim answers, sizes of chunks, trailers."""

MAX_INTERIM = 16
"""Interim answers (1xx) before the answer itself."""

_LONGEST_STATUS_LINE = 8 * 1024
_PREFIX = b"HTTP/1."
_STATUS_LINE = re.compile(rb"HTTP/1\.(\d) ([1-9]\d\d)(?:[ \t][^\r\n]*)?\r?\n")
_HEAD_END = re.compile(rb"\n\r?\n")
_FIELD = re.compile(
    rb"^(connection|content-length|content-type|date|retry-after|transfer-encoding|webhook-allowed-(?:origin|rate))"
    rb"[ \t]*:([^\r\n]*)",
    re.IGNORECASE | re.MULTILINE,
)
_UNTIDY = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[ \t]")  # line ends and folded lines that parsers read differently
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")
_LENGTH = re.compile(r"[0-9]{1,15}", re.ASCII)
_SWITCHING_PROTOCOLS = 101  # ends HTTP on the connection: no interim answer
_BODILESS = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class Answer:
    """
    The part of an answer that was read.

    Attributes:
        headers: those that mean something to a client, named in lower case; repeated ones joined by commas.
        body: its beginning, as far as it was wanted.
        complete: whether that is all of the body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    complete: bool


class _Received:
    """
    The bytes that have arrived and are not read yet.

    Attributes:
        overhead: how many of them may still be something else than the body.
    """

    __slots__ = ("_scanned", "data", "overhead")

    def __init__(self) -> None:
        self.data = bytearray()
        self.overhead = OVERHEAD
        self._scanned = 0  # bytes that have been searched already

    def head_end(self) -> int | None:
        """Return where the head ends that the data begins with; None if that has not arrived."""
        found = _HEAD_END.search(self.data, self._scanned)
        self._scanned = 0 if found else max(0, len(self.data) - 2)
        return found.end() if found else None

    def line(self) -> bytes | None:
        """Drop and return the next line, with its end; None if that has not arrived, nothing if it is too long."""
        end = self.data.find(b"\n", self._scanned) + 1
        if not end and len(self.data) <= self.overhead:
            self._scanned = len(self.data)
            return None
        line = bytes(self.data[:end])
        self._scanned = 0
        return line if end and self.spend(end) else b""

    def spend(self, count: int) -> bool:
        """Drop bytes that are not body; return whether so many are allowed."""
        self.overhead -= count
        del self.data[:count]
        return self.overhead >= 0


class AnswerReader:
    """The answer to one request. `limit` and `OVERHEAD` bound its cost for any input."""

    def __init__(self, limit: int) -> None:
        """
        Expect an answer.

        Args:
            limit: bytes of the body that are wanted; a longer one is not read to its end.
        """
        self.fault: str | None = None
        """The fault of an answer that has no status."""
        self.reusable = False
        """Whether the connection may carry another request: the answer is over, and nothing came after it."""
        self._limit = limit
        self._received = _Received()
        self._buffer = self._received.data
        self._interim = 0
        self._version = b""
        self._status = 0
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._left: int | None = None  # bytes of the body, or of its chunk, that are still to come; None: until the end
        self._complete = False
        self._over = False
        self._step: Callable[[], bool] = self._read_status_line

    @property
    def answer(self) -> Answer | None:
        """The answer as far as it was read; None before its status was."""
        if self._status == 0:
            return None
        return Answer(self._status, self._headers, bytes(self._body), self._complete)

    def feed(self, data: bytes) -> bool:
        """Read on; return whether the answer is over, or no more of it is wanted."""
        self._buffer += data
        while not self._over and self._step():
            pass
        if self._over and self._buffer:
            self.reusable = False
        return self._over

    def end(self) -> None:
        """Handle the end of the input."""
        if self._step == self._read_fields:
            self._headers = _fields(self._buffer)
        self._complete = self._complete or self._step == self._read_until_end

    # --- steps: each returns whether the next one can be taken without more data -----------------

    def _read_status_line(self) -> bool:
        found = _STATUS_LINE.match(self._buffer)
        if found is None:
            started = self._buffer.startswith(_PREFIX[: len(self._buffer)])
            if not started or b"\n" in self._buffer or len(self._buffer) > _LONGEST_STATUS_LINE:
                return self._fail("the answer is not HTTP")
            return False
        status = int(found[2])
        if status >= 200 or status == _SWITCHING_PROTOCOLS:
            self._version, self._status, self._step = found[1], status, self._read_fields
        else:
            self._step = self._skip_interim
        return True

    def _skip_interim(self) -> bool:
        end = self._received.head_end()
        if end is None:
            return False if len(self._buffer) <= self._received.overhead else self._fail("the answer does not begin")
        self._interim += 1
        if self._interim > MAX_INTERIM or not self._received.spend(end):
            return self._fail(f"more than {MAX_INTERIM} interim answers (1xx), or more than {OVERHEAD} bytes of them")
        self._step = self._read_status_line
        return True

    def _read_fields(self) -> bool:
        end = self._received.head_end()
        if end is None and len(self._buffer) <= self._received.overhead:
            return False
        head = bytes(self._buffer[: min(end or self._received.overhead, self._received.overhead)])
        self._headers = _fields(head)
        if end is None or not self._received.spend(end):
            return self._stop()
        return self._begin_body(head)

    def _begin_body(self, head: bytes) -> bool:
        """Determine the length of the body (RFC 9112 §6.3), and whether it is unambiguous."""
        coding, length = self._headers.get("transfer-encoding"), self._headers.get("content-length")
        kept = self._version == b"1" and "close" not in self._headers.get("connection", "").lower()
        self.reusable = kept and _UNTIDY.search(head) is None
        if self._status in _BODILESS:
            self.reusable = self.reusable and coding is None and length in (None, "0")
            return self._finish()
        if coding is not None:
            self.reusable = self.reusable and length is None
            self._step = self._read_chunk_size
            return coding.lower() == "chunked" or self._stop()
        if length is None:
            self.reusable = False
            self._step = self._read_until_end
            return True
        if not _LENGTH.fullmatch(length):
            return self._stop()
        self._left, self._step = int(length), self._read_sized
        return True

    def _read_until_end(self) -> bool:
        self._take(len(self._buffer))
        return False if len(self._body) < self._limit else self._stop()

    def _read_sized(self) -> bool:
        return self._finish() if self._read_data() else False

    def _read_chunk_size(self) -> bool:
        line = self._line()
        if line is None:
            return False
        found = _CHUNK_SIZE.match(line)
        if found is None:
            return self._stop()
        self._left = int(found[1], 16)
        self._complete = self._left == 0
        self._step = self._read_trailer if self._complete else self._read_chunk
        return True

    def _read_chunk(self) -> bool:
        if not self._read_data():
            return False
        self._step = self._read_chunk_end
        return True

    def _read_chunk_end(self) -> bool:
        line = self._line()
        if line is None:
            return False
        self._step = self._read_chunk_size
        return line == b"\r\n" or self._stop()

    def _read_trailer(self) -> bool:
        line = self._line()
        if line is None:
            return False
        return self._finish() if line == b"\r\n" else True

    # --- parts of steps ---------------------------------------------------------------------------

    def _line(self) -> bytes | None:
        """Return the next line of the framing of a body, with its end; stop if it is too long."""
        line = self._received.line()
        if line == b"":
            self._stop()
        return line or None

    def _read_data(self) -> bool:
        """Take received bytes of a body of known length; return whether it is complete."""
        assert self._left is not None
        self._left -= self._take(self._left)
        if self._left and len(self._body) == self._limit:
            self._stop()
        return self._left == 0

    def _take(self, count: int) -> int:
        """Move up to `count` bytes into the body, as far as it is wanted; return how many."""
        count = min(count, len(self._buffer), self._limit - len(self._body))
        self._body += self._buffer[:count]
        del self._buffer[:count]
        return count

    def _finish(self) -> bool:
        self._complete = self._over = True
        return False

    def _stop(self) -> bool:
        """Stop reading: the rest is not wanted, or has no meaning."""
        self._take(len(self._buffer))
        self.reusable, self._over = False, True
        return False

    def _fail(self, fault: str) -> bool:
        self.fault, self._over = fault, True
        return False


def _fields(head: bytes | bytearray) -> dict[str, str]:
    """Return the fields of a head that the client uses."""
    values: dict[str, list[str]] = {}
    for name, value in _FIELD.findall(head):
        values.setdefault(name.decode().lower(), []).append(value.decode("latin-1").strip(" \t"))
    return {name: ", ".join(given) for name, given in values.items()}
