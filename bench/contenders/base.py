"""What every contender can do, so that one piece of code measures all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Contender", "Counts", "Handler", "Place", "Session"]

Handler = Callable[[bytes], None]
"""Called with the data of each delivery, from inside the contender's own asynchronous handler."""


@dataclass(frozen=True, slots=True)
class Place:
    """
    Where a contender works, and how wide.

    Attributes:
        contender: its name.
        dsn: of a database of its own.
        nats: URL of a server with JetStream.
        directory: for files of its own, such as a configuration.
        subscriptions: how many want every event; a queue of jobs enqueues as many jobs per event.
        bystanders: subscriptions that want none of them.
        callers: how many publish at once.
    """

    contender: str
    dsn: str
    nats: str
    directory: str
    subscriptions: int = 1
    bystanders: int = 0
    callers: int = 1

    @property
    def in_database(self) -> bool:
        """Whether the contender records in the database of `dsn`; FastStream does in JetStream."""
        return not self.contender.startswith("faststream")


@dataclass(frozen=True, slots=True)
class Counts:
    """What is on record: events stored, and deliveries recorded as done."""

    stored: int
    delivered: int


class Session(Protocol):
    """A process that publishes, and that works too when it was given a handler."""

    async def publish(self, data: bytes) -> None:
        """Return once one event is acknowledged."""

    async def publish_many(self, batch: Sequence[bytes]) -> None:
        """Return once all are acknowledged, recorded in the way that is fastest for a batch."""


class Contender(Protocol):
    """One system in its best configuration, in an empty place."""

    async def prepare(self) -> None:
        """Make what must be there before anything else: tables, streams, subscriptions."""

    def session(self, handler: Handler | None = None) -> AbstractAsyncContextManager[Session]:
        """Publish in here, and work too if there is a handler."""

    async def idle(self) -> bool:
        """Return whether every delivery is on record. Cheap: asked again and again."""

    async def counts(self) -> Counts:
        """Return what is on record, counted row by row."""
