"""The logins of connections that reconnect: renewed when the file has other passwords."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..config import Config, Dsn

if TYPE_CHECKING:
    from ..strategies.base import Connect

__all__ = ["Logins"]


class Logins:
    """The connectors to PostgreSQL, by the DSN that each was made with."""

    def __init__(self) -> None:
        self._known: list[tuple[Dsn, Callable[[Dsn], None]]] = []

    def add(self, dsn: Dsn, renew: Callable[[Dsn], None]) -> None:
        """Have `renew` called when the password of `dsn` changes."""
        self._known.append((dsn, renew))

    def connector(self, dsn: Dsn) -> Connect:
        """Return what makes connections to `dsn`."""
        from ..storage.postgres.connector import PostgresConnector

        connector = PostgresConnector(dsn)
        self.add(dsn, connector.renew_login)
        return connector.connect

    def renew(self, first: Config, now: Config) -> None:
        """
        Log in as `now` says from the next connection on.

        Args:
            first: the configuration that they were made for; `now` has the same servers.
        """
        renewed = {old: new for (_, old), (_, new) in zip(first.dsns(), now.dsns(), strict=True)}
        for dsn, renew in self._known:
            renew(renewed[dsn])
