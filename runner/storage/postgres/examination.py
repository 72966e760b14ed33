"""Examine a PostgreSQL server over one connection; every statement only reads."""

from __future__ import annotations

import json
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from ..contract.examination import Clock, Growth, Holder, PostgresExamination, Seats, ServerFacts, TableFacts
from ..errors import mapped_errors
from ..home import TABLES, Home
from .statements import statement

if TYPE_CHECKING:
    import asyncpg

__all__ = ["ConnectionExamination"]

# Rows come and go with every event, or with its retention.
_CHURNED = ("deliveries", "dispatch", "expiries", "paces", "runs", "scheduled", "turns")


class ConnectionExamination(PostgresExamination):
    """`PostgresExamination` on a connection of the driver."""

    def __init__(self, connection: asyncpg.Connection, home: Home) -> None:
        self._connection = connection
        self._home = home

    @override
    async def server(self) -> ServerFacts:
        [row] = await self._fetch("server")
        values = dict(row)
        tls, verified = _encryption(self._connection)
        return ServerFacts(
            pooled=values.pop("pid") != self._connection.get_server_pid(),
            settings=json.loads(values.pop("settings")),
            schema=self._home.schema,
            tls=tls,
            verified=verified,
            **values,
        )

    @override
    async def clock(self) -> Clock:
        await self._fetch("clock")  # so that the statement is prepared
        before = datetime.now(UTC)
        [row] = await self._fetch("clock")
        return Clock(there=row["now"], before=before, after=datetime.now(UTC))

    @override
    async def seats(self) -> Seats:
        [row] = await self._fetch("seats")
        return Seats(**row)

    @override
    async def missing_rights(self) -> Sequence[str]:
        return [row["lacking"] for row in await self._fetch("rights", self._home.schema, TABLES)]

    @override
    async def tables(self) -> Sequence[TableFacts]:
        return [TableFacts(**row) for row in await self._fetch("tables", self._home.schema, _CHURNED)]

    @override
    async def holders(self) -> Sequence[Holder]:
        return [Holder(**row) for row in await self._fetch("holders")]

    @override
    async def growth(self) -> Growth:
        [row] = await self._fetch("growth", self._home.schema, TABLES)
        return Growth(**row)

    async def _fetch(self, name: str, *arguments: Any) -> list[asyncpg.Record]:
        with mapped_errors():
            rows: list[asyncpg.Record] = await self._connection.fetch(
                statement(f"examine_{name}", self._home.schema), *arguments
            )
            return rows


def _encryption(connection: asyncpg.Connection) -> tuple[str, Any]:
    """Return the version of TLS on a connection, and what of the peer's certificate was checked."""
    tls = connection._transport.get_extra_info("ssl_object")  # asyncpg has no public way to its socket
    if tls is None:
        return "", ""
    if tls.context.verify_mode != ssl.CERT_REQUIRED:
        return tls.version() or "TLS", ""
    return tls.version() or "TLS", "name" if tls.context.check_hostname else "authority"
