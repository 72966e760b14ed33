"""Files of events: one CloudEvent in JSON on each line."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

from ..cloudevents import decode_json
from ..errors import EventError
from ..event import Event

__all__ = ["check", "is_stream", "read_batches"]

_CHUNK = 1 << 20  # bytes read at once
_LINE = 8 << 20  # bytes of a line: the largest event as JSON, each of its bytes as `\u0000`, and room
_FAULTS = 20  # bad lines reported at once


def _anything(event: Event) -> None:
    """Accept every event."""


def is_stream(name: str) -> bool:
    """Return whether `name` can be read only once: standard input (`-`), a pipe."""
    return name == "-" or not stat.S_ISREG(os.stat(name).st_mode)


def check(name: str, accept: Callable[[Event], object] = _anything) -> int:
    """
    Read all of `name` and return how many events it holds.

    Args:
        accept: raises `EventError` for an event that would not be taken.

    Raises:
        EventError: with a line for each bad line of the file.
    """
    faults: list[str] = []
    number = 0
    with open(_open(name), "rb", closefd=name != "-") as file:
        for place, line in _numbered(name, iter(lambda: file.readline(_LINE + 1), b"")):
            try:
                _decode(place, line, accept)
                number += 1
            except EventError as error:
                faults.append(str(error))
                if len(line) > _LINE or len(faults) == _FAULTS:
                    faults.append("and perhaps more")
                    break
    if faults:
        raise EventError("\n".join(faults))
    return number


async def read_batches(
    name: str, size: int, accept: Callable[[Event], object] = _anything
) -> AsyncIterator[list[tuple[str, Event]]]:
    """
    Yield the events in the order of the lines, each with its place (`events.jsonl:17`).

    At most `size` come at once, without waiting for a stream to fill a batch; `accept` as in `check()`.

    Raises:
        EventError: at the first bad line, after all events before it.
    """
    batch: list[tuple[str, Event]] = []
    try:
        async for lines in _arriving(name):
            for place, line in lines:
                batch.append((place, _decode(place, line, accept)))
                if len(batch) == size:
                    yield batch
                    batch = []
            if batch:
                yield batch
                batch = []
    except EventError:
        if batch:
            yield batch
        raise


def _decode(place: str, line: bytes, accept: Callable[[Event], object]) -> Event:
    if len(line) > _LINE:
        raise EventError(f"{place}: the line has more than {_LINE} bytes; expected one CloudEvent in JSON on each line")
    try:
        event = decode_json(line)
        accept(event)
        return event
    except EventError as error:
        raise EventError(f"{place}: {error}") from error


async def _arriving(name: str) -> AsyncIterator[list[tuple[str, bytes]]]:
    """Yield, after each read, the complete lines with their places; only the beginning of one that is too long."""
    descriptor = _open(name)
    try:
        rest, count = bytearray(), 0
        while True:
            await _readable(descriptor)
            chunk = os.read(descriptor, _CHUNK)
            complete, newline, after = (chunk or b"\n").rpartition(b"\n")
            if newline:
                lines = bytes(rest + complete).split(b"\n")
                yield list(_numbered(name, lines, count))
                count += len(lines)
                rest.clear()
            rest += after
            if len(rest) > _LINE:
                yield list(_numbered(name, [bytes(rest)], count))
            if not chunk:
                return
    finally:
        if name != "-":
            os.close(descriptor)


async def _readable(descriptor: int) -> None:
    """Wait for input without a thread, because a thread could not be interrupted."""
    loop = asyncio.get_running_loop()
    arrived = asyncio.Event()
    try:
        loop.add_reader(descriptor, arrived.set)
    except PermissionError:  # epoll takes no regular files: they are always readable
        return
    try:
        await arrived.wait()
    finally:
        loop.remove_reader(descriptor)


def _open(name: str) -> int:
    return sys.stdin.fileno() if name == "-" else os.open(name, os.O_RDONLY)


def _numbered(name: str, lines: Iterable[bytes], count: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield the lines that are not blank, each with its place; `count` lines came before."""
    for number, line in enumerate(lines, count + 1):
        if not line.isspace() and line:
            yield f"{name}:{number}", line
