"""The values of an examination: what a database says of itself, for `runner doctor`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, Protocol

__all__ = ["Clock", "FileFacts", "Growth", "Holder", "PostgresExamination", "Seats", "ServerFacts", "TableFacts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """
    A PostgreSQL server, as one connection finds it.

    Attributes:
        number: the version as a number, such as 180004.
        sees_all: whether the role may look at the sessions of others (`pg_read_all_stats`).
        read_only: whether the session takes no writes, for a setting or because the server is a standby.
        tls: the version of TLS towards the next hop; empty in clear.
        verified: what of the peer's certificate was checked: its authority, or its name, too.
        pooled: whether another process than the one that greeted us runs the statements, so that a pooler is between.
        settings: the settings of the server and the session, by name.
    """

    version: str
    number: int
    database: str
    role: str
    schema: str | None
    encoding: str
    sees_all: bool
    standby: bool
    read_only: bool
    tls: str = ""
    verified: Literal["", "authority", "name"] = ""
    pooled: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """The time of the database, and the time here before it was asked and after it answered."""

    there: datetime
    before: datetime
    after: datetime

    @property
    def ahead(self) -> timedelta:
        """By how much this machine is ahead of the database at least; negative where it is behind."""
        if self.before > self.there:
            return self.before - self.there
        return min(self.after - self.there, timedelta(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Seats:
    """
    The connections that a server has, and those in use.

    Attributes:
        most: for all roles without privileges.
        role_most, database_most: the limits of the role and the database; None without one.
    """

    most: int
    used: int
    role_most: int | None = None
    database_most: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFacts:
    """One table of the bus: its rows by the statistics of the server, its size in bytes, indexes included."""

    name: str
    live: int
    dead: int
    size: int
    autovacuum: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """
    A thing that keeps the server from removing dead rows, or old WAL.

    Attributes:
        name: as the server's own views have it: a pid, a transaction's gid, a slot.
        state: of a session, such as `idle in transaction`.
        age: since it began; None for a slot.
        xids: transactions since its horizon; None where it holds no rows.
        wal: bytes of WAL kept; None but for a slot.
    """

    kind: Literal["session", "prepared", "slot"]
    name: str
    state: str
    age: timedelta | None
    xids: int | None
    wal: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """
    The size of what is recorded.

    Attributes:
        size: bytes of all tables of the bus, indexes included.
        since: when the oldest event was recorded; None without any.
        directory: of the server's data, where the role may know it.
    """

    size: int
    since: datetime | None
    now: datetime
    directory: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """
    A file of SQLite, read without a change.

    Attributes:
        version: of the library.
        safe: whether the library has the fix of the WAL-reset bug.
        journal, usual: the journal mode of the file, and whether the bus uses it with this library.
        fault: what a check of the file's structure found; None for nothing.
        checked: whether there was time for that.
        since: when the oldest event was recorded; None without any.
        now: by the clock of the library.
    """

    version: str
    safe: bool
    journal: str
    usual: bool
    size: int
    fault: str | None = None
    checked: bool = False
    since: datetime | None = None
    now: datetime


class PostgresExamination(Protocol):
    """One connection to PostgreSQL, for an examination; each call is one statement that only reads."""

    async def server(self) -> ServerFacts:
        """Return what the server is."""

    async def clock(self) -> Clock:
        """Compare clocks."""

    async def seats(self) -> Seats:
        """Return the connections there are."""

    async def missing_rights(self) -> Sequence[str]:
        """Return the rights on the tables that the role lacks, such as `DELETE on deliveries`."""

    async def tables(self) -> Sequence[TableFacts]:
        """Return the tables of work and of deliveries."""

    async def holders(self) -> Sequence[Holder]:
        """Return what holds the horizon, as far as the role may see it."""

    async def growth(self) -> Growth:
        """Return the size of what is recorded."""
