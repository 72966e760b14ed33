"""The outage: log when the database is lost and when it is back."""

from __future__ import annotations

from time import monotonic
from types import TracebackType

import structlog

from ...errors import StorageError

__all__ = ["Outage"]

log = structlog.get_logger(__name__)


class Outage:
    """
    Log once that the database is lost, and once that it is back.

    It is lost when no connection can be made any more; that one broke need not mean that. Make every connection in a
    `with` block of it.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._connected = False  # ever

    def __enter__(self) -> None:
        """Begin to make a connection."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._back()
        elif isinstance(error, StorageError) and self._connected:
            self._lost(error)

    def _lost(self, error: StorageError) -> None:
        error.logged = True
        if self._since is None:
            self._since = monotonic()
            log.error("database lost", detail=str(error))

    def _back(self) -> None:
        self._connected = True
        if self._since is not None:
            log.info("database back", after=round(monotonic() - self._since, 1))
            self._since = None
