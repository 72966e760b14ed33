"""What every process of a case writes down, a line at a time, before and after it acts.

A line is synced where what it says is acted on by somebody else: before a publish, after its answer, and after a
delivery was accepted. What a killed process has written is the kernel's by then in any case.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

__all__ = ["Journal", "Pen", "Publishing", "Sighting", "digest", "now"]


@dataclass(frozen=True, slots=True)
class Publishing:
    """A step of publishing one event: `invoke` before, an answer after; `at` is `now()`."""

    id: str
    type: str
    step: Literal["invoke", "ok", "fail", "unknown"]
    at: float
    hash: str = ""
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Sighting:
    """A step of one delivery as its subscriber saw it, in the process `pid`."""

    id: str
    subscription: str
    attempt: int
    step: Literal["begun", "accepted", "failed"]
    at: float
    pid: int
    hash: str


Line = TypeVar("Line", Publishing, Sighting)


class Journal(Generic[Line]):
    """A journal that other processes append to; `read()` costs what is new."""

    def __init__(self, path: Path, line: type[Line]) -> None:
        self.path = path
        self._line: type[Line] = line
        self._lines: list[Line] = []
        self._offset = 0

    def read(self) -> list[Line]:
        """Return every whole line so far."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._offset)
                new, _, _ = file.read().rpartition(b"\n")
            if new:
                self._offset += len(new) + 1
                self._lines += [self._line(**json.loads(line)) for line in new.splitlines()]
        return self._lines


class Pen:
    """Appends to a journal; many processes may write to one, each line is whole."""

    def __init__(self, path: str | Path) -> None:
        self._file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o644)

    def write(self, *lines: Publishing | Sighting, sync: bool = False) -> None:
        """Write the lines, and return once they are on the disk if `sync` says so."""
        os.write(self._file, b"".join(json.dumps(asdict(line)).encode() + b"\n" for line in lines))
        if sync:
            os.fdatasync(self._file)


def digest(body: bytes | None) -> str:
    """Return what tells one body from another."""
    return hashlib.sha256(body or b"").hexdigest()[:16]


def now() -> float:
    """Return the clock all journals of a case share, which no change of the time of day moves; in seconds."""
    return time.monotonic()
