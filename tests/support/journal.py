"""What subscribers saw: a file that every process appends to, a line a delivery."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

HANDLERS = '''\
import asyncio, json, os, time

_journal = os.open("journal.jsonl", os.O_APPEND | os.O_CREAT | os.O_WRONLY)


def _note(event, **more):
    line = {"id": event.id, "type": event.type, "at": time.time(), "pid": os.getpid(), **more}
    os.write(_journal, (json.dumps(line) + "\\n").encode())


async def note(event, delivery):
    _note(event, attempt=delivery.attempt)


async def work(event, delivery):
    """Take some time, so that a kill finds deliveries running."""
    await asyncio.sleep(0.02)
    _note(event, attempt=delivery.attempt)


async def slow(event):
    await asyncio.sleep(5)
'''


@dataclass(frozen=True, slots=True)
class Entry:
    """One delivery, as its subscriber saw it; `at` is the wall clock in seconds."""

    id: str
    type: str
    at: float
    pid: int
    attempt: int


class Journal:
    """The journal in `directory`, where a configuration names `handlers:note` or `handlers:work`."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "journal.jsonl"
        (directory / "handlers.py").write_text(HANDLERS)

    def entries(self) -> list[Entry]:
        """Return every delivery so far."""
        if not self.path.exists():
            return []
        return [Entry(**json.loads(line)) for line in self.path.read_text().splitlines()]

    def find(self, id: str) -> Entry | None:
        """Return the first delivery of an event, if it came."""
        return next((entry for entry in self.entries() if entry.id == id), None)

    def counts(self) -> Counter[str]:
        """Return how often each event was delivered."""
        return Counter(entry.id for entry in self.entries())
