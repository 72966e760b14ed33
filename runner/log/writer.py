"""The log writer: accepts lines immediately, and writes them in a thread."""

from __future__ import annotations

import errno
import io
import os
import select
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import TextIO

from ..service.backoff import doubling
from .redaction import redacted

__all__ = ["LogWriter"]

_LIMIT = 4 * 1024 * 1024  # bytes that may wait for the stream
_LONGEST = 0.5  # seconds between two tries while there is no room on the disk
_REPORT_WITHIN = 1.0  # seconds within which dropped lines are reported while others are written
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})  # errors that may pass; all others are final


class LogWriter:
    """
    Write lines to a stream that may be slow, unread, full, closed or missing.

    `write()` never raises and never waits: a thread writes to the descriptor, past Python's buffers, and holds at most
    `limit` bytes meanwhile. Lines beyond that are dropped and counted, as are those for a reader that has gone. Writing
    to a full disk is retried until there is room. A stream without a descriptor, such as a test's, is written to
    directly.

    Attributes:
        report: makes the line that says how many were dropped, once the stream takes lines again.
        patience: seconds that a caller waits until its message is written; None for no limit.
    """

    def __init__(self, stream: TextIO | None, *, limit: int = _LIMIT) -> None:
        """Args: stream is None where the process has none."""
        self.stream = stream
        self.report: Callable[[int], str] = "{} log lines dropped".format
        self.patience: float | None = None
        self._limit = limit
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._threaded = _is_file(stream)
        self._forget()

    def _forget(self) -> None:
        # Reentrant, because a signal handler may log while one of them is held.
        self._lock = threading.RLock()
        self._queue: SimpleQueue[bytes | threading.Event | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._waiting = 0  # bytes
        self._dropped = 0
        self._dropped_at = 0.0  # the first of them
        self._full = False  # whether the last try found no room

    def write(self, line: str) -> None:
        """Accept a line; it is written soon, with secrets redacted, or counted as dropped."""
        line = redacted(line)
        if not self._threaded:
            self._write_in_place(line)
            return
        data = line.encode(self._encoding, "backslashreplace") + b"\n"
        with self._lock:
            if self._waiting + len(data) > self._limit or not self._running():
                self._drop(1)
                return
            self._waiting += len(data)
        self._queue.put(data)

    def flush(self, timeout: float | None = 1.0) -> None:
        """
        Return once every line taken so far is written or dropped.

        Args:
            timeout: seconds, after which it returns all the same; None waits for the reader, but not for room.
        """
        if self._thread is None:
            return
        reached = threading.Event()
        self._queue.put(reached)
        ends = None if timeout is None else time.monotonic() + timeout
        while not reached.wait(0.1 if ends is None else min(0.1, max(0.0, ends - time.monotonic()))):
            if self._full if ends is None else time.monotonic() >= ends:
                return

    def close(self) -> None:
        """Let the thread end after the lines it has; wait for it as `flush()` does."""
        self.flush()
        self._queue.put(None)

    def forget(self) -> None:
        """Reset the writer in a forked child, which has no thread and must not write its parent's lines."""
        self._forget()

    def _running(self) -> bool:
        """Start the thread if there is none; return whether there is one."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, args=(self._queue,), name="log", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads for this process; the next line tries again
                return False
            self._thread = thread
        return True

    def _run(self, queue: SimpleQueue[bytes | threading.Event | None]) -> None:
        while (item := queue.get()) is not None:
            if isinstance(item, threading.Event):
                if self._dropped:
                    self._report()
                item.set()
                continue
            written = self._write(item)
            with self._lock:
                self._waiting -= len(item)
                if not written:
                    self._drop(1)
            if written and self._dropped and (queue.empty() or time.monotonic() - self._dropped_at >= _REPORT_WITHIN):
                self._report()

    def _drop(self, count: int) -> None:
        with self._lock:
            self._dropped_at = self._dropped_at if self._dropped else time.monotonic()
            self._dropped += count

    def _report(self) -> None:
        """Write how many lines were dropped."""
        with self._lock:
            count, self._dropped = self._dropped, 0
        if not self._write(self.report(count).encode(self._encoding, "backslashreplace") + b"\n"):
            self._drop(count)

    def _write(self, data: bytes) -> bool:
        """Write all of `data`, however long that takes; return False if the stream is closed for good."""
        assert self.stream is not None
        pauses = doubling(0.02, _LONGEST)
        while data:
            try:
                descriptor = self.stream.fileno()
                data = data[os.write(descriptor, data) :]
                self._full = False
            except BlockingIOError:  # another process made the shared pipe non-blocking
                _await_room(descriptor)
            except (OSError, ValueError) as error:
                if getattr(error, "errno", None) not in _FULL:
                    return False
                self._full = True
                time.sleep(next(pauses))
        return True

    def _write_in_place(self, line: str) -> None:
        try:
            if self.stream is None:
                raise ValueError("there is no stream")
            self.stream.write(f"{line}\n")
            self.stream.flush()
        except Exception:  # a foreign stream may raise anything
            self._dropped += 1
            return
        if self._dropped:
            count, self._dropped = self._dropped, 0
            self._write_in_place(self.report(count))


def _is_file(stream: TextIO | None) -> bool:
    """Return whether a stream is one of Python's own on a file descriptor."""
    try:
        buffer = getattr(stream, "buffer", None)
    except ValueError:  # it was detached
        return False
    return isinstance(getattr(buffer, "raw", buffer), io.FileIO)


def _await_room(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.poll(1000)
