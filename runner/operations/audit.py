"""The audit log: every action by hand is on record before it begins, and its outcome after it."""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
from asyncio import CancelledError
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import structlog

from ..errors import RunnerError, StorageError
from ..log.redaction import redacted
from ..storage.contract.audit import Action, ActionOutcome

if TYPE_CHECKING:
    from ..storage import Storage
    from ..storage.contract.corrections import ReplayQuery
    from ..storage.contract.records import DeliveryQuery

__all__ = ["LIBRARY", "AuditLog", "Entry", "conditions_of", "who"]

log = structlog.get_logger(__name__)

LIBRARY = "library"
"""The actor of a program that calls the methods of a `Runner`."""


@dataclass(slots=True)
class Entry:
    """
    The entry of an action that runs.

    Attributes:
        touched: how many deliveries, events, subscriptions or schedules it has changed so far.
        refusal: why it was refused, where no error says so.
    """

    touched: int = 0
    refusal: str | None = None


class AuditLog:
    """
    Record the actions of one actor.

    An action is recorded, and that committed, before it begins, and its outcome after it: so an action of many
    transactions leaves exactly one row, also if a crash interrupts it.
    """

    def __init__(self, storage: Storage, actor: str = LIBRARY) -> None:
        """Args: actor is `cli:USER@HOST`, `api:TOKEN`, `dashboard:TOKEN`, `library`, or `runner` for the bus itself."""
        self._storage = storage
        self.actor = actor

    @contextlib.asynccontextmanager
    async def action(
        self,
        name: str,
        target: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        *,
        recorded: bool = True,
    ) -> AsyncIterator[Entry]:
        """
        Record that an action begins, and with which outcome it ends.

        Args:
            name: such as `deliveries.retry`.
            target: what it is done to; None for a selection, which the parameters describe.
            parameters: those that were given; None is left out, times and durations are written out. No secrets.
            recorded: false for a dry run.

        Raises:
            StorageError: it cannot be recorded, and does not begin.
        """
        entry = Entry()
        if not recorded:
            yield entry
            return
        seq = await self._storage.audit.begin(self.entry(name, target, parameters))
        try:
            yield entry
        except BaseException as error:
            outcome, detail = _judged(error)
            await self._end(seq, outcome, entry.touched, detail)
            raise
        if entry.refusal is None:
            await self._end(seq, ActionOutcome.DONE, entry.touched)
        else:
            await self._end(seq, ActionOutcome.REFUSED, entry.touched, redacted(entry.refusal))

    def selection(
        self,
        name: str,
        which: DeliveryQuery | ReplayQuery | tuple[str, ...],
        every: timedelta | None = None,
        *,
        recorded: bool,
    ) -> contextlib.AbstractAsyncContextManager[Entry]:
        """Record an action on all that a query describes, or on one target, a tuple of names; see `action()`."""
        if isinstance(which, tuple):
            return self.action(name, " ".join(which), {"every": every}, recorded=recorded)
        return self.action(name, None, conditions_of(which, every), recorded=recorded)

    def by(self, name: str | None) -> Mapping[str, str | None]:
        """Return the parameter for the person behind the actor, unless the actor names that person."""
        return {"by": None if name is None or self.actor.endswith(f":{name}") else name}

    def entry(self, name: str, target: str | None, parameters: Mapping[str, Any] | None) -> Action:
        """Return an action of this actor, without the secrets this process knows."""
        given = {key: _written(value) for key, value in (parameters or {}).items() if value is not None}
        return Action(self.actor, name, None if target is None else redacted(target), given)

    async def _end(self, seq: int, outcome: ActionOutcome, touched: int, detail: str | None = None) -> None:
        """Record the outcome; what was done stays done where that fails."""
        try:
            await self._storage.audit.end(seq, outcome, touched, detail)
        except StorageError as error:
            log.warning("outcome not in the audit log", action=seq, outcome=outcome.value, detail=str(error))


def who() -> str:
    """Return the user and the host of this process, as far as the system knows them."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a number without a name, as in a container
        return f"{os.getuid()}@{socket.gethostname()}"


def conditions_of(query: DeliveryQuery | ReplayQuery, every: timedelta | None = None) -> dict[str, Any]:
    """Return what a selection says, as the parameters of an action."""
    said = {each.name: getattr(query, each.name) for each in fields(query)}
    return {name: value for name, value in said.items() if value not in (None, False)} | {"every": every}


def _judged(error: BaseException) -> tuple[ActionOutcome, str]:
    """Return the outcome of an action that raised: an error of the caller is a refusal, one of the store a failure."""
    if isinstance(error, CancelledError | KeyboardInterrupt | GeneratorExit):
        return ActionOutcome.INTERRUPTED, "interrupted; what was done stays"
    if not isinstance(error, RunnerError):
        return ActionOutcome.FAILED, type(error).__name__  # its text may carry a payload
    outcome = ActionOutcome.FAILED if isinstance(error, StorageError) else ActionOutcome.REFUSED
    return outcome, redacted(str(error))


def _written(value: Any) -> Any:
    """Return a parameter as JSON has it."""
    match value:
        case bool() | int() | float():
            return value
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case timedelta():
            return f"{value.total_seconds():g}s"
        case list() | tuple() | set() | frozenset():
            return [_written(each) for each in value]
        case _:
            return redacted(str(value))
