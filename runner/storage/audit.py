"""The audit log, on both databases."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Row, delete, func, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from typing_extensions import override

from .contract.audit import Action, ActionOutcome, ActionQuery, ActionView, Audit
from .encoding import storable
from .expressions import Later, Now
from .home import home_of
from .selection import fits
from .tables import audit
from .transactions import Transactions

__all__ = ["SqlAudit", "record"]

_MICROSECOND = timedelta(microseconds=1)
_LONGEST = 2000  # characters of a text


class SqlAudit(Audit):
    """`Audit` on SQLAlchemy Core."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._transactions = Transactions(engine)
        self._home = home_of(engine)

    @override
    async def begin(self, action: Action) -> int:
        async with self._transactions.write() as connection:
            return await record(connection, action, self._home.encoding)

    @override
    async def end(self, seq: int, outcome: ActionOutcome, touched: int, detail: str | None = None) -> None:
        said = _text(detail, self._home.encoding)
        begun = update(audit).where(audit.c.seq == seq, audit.c.outcome == ActionOutcome.BEGUN)
        ended = begun.values(outcome=outcome, touched=touched, detail=said, ended_at=Now())
        async with self._transactions.write() as connection:
            await connection.execute(ended)

    @override
    async def actions(self, query: ActionQuery) -> Sequence[ActionView]:
        page = select(audit).where(*_conditions(query)).order_by(audit.c.seq.desc()).limit(query.limit)
        async with self._transactions.read() as connection:
            return [_view(row) for row in await connection.execute(page)]

    @override
    async def prune(self, keep: timedelta, limit: int) -> int:
        oldest = select(audit.c.seq, audit.c.at).order_by(audit.c.seq).limit(limit).subquery()
        past = select(func.max(oldest.c.seq)).where(oldest.c.at < Later(literal(-(keep // _MICROSECOND), BigInteger)))
        async with self._transactions.write() as connection:
            return (await connection.execute(delete(audit).where(audit.c.seq <= past.scalar_subquery()))).rowcount


async def record(
    connection: AsyncConnection,
    action: Action,
    encoding: str,
    outcome: ActionOutcome = ActionOutcome.BEGUN,
    touched: int = 0,
) -> int:
    """Record an action in a transaction at hand, ended unless it is `BEGUN`; return its number."""
    row = {
        "at": Now(),
        "actor": _text(action.actor, encoding),
        "action": action.name,
        "target": _text(action.target, encoding),
        "parameters": dict(action.parameters or {}),
        "outcome": outcome,
        "touched": touched,
        "ended_at": None if outcome is ActionOutcome.BEGUN else Now(),
    }
    seq: int = (await connection.execute(insert(audit).values(row).returning(audit.c.seq))).scalar_one()
    return seq


def _text(text: str | None, encoding: str) -> str | None:
    return storable(text and text[:_LONGEST], encoding)


def _conditions(query: ActionQuery) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[Any]] = []
    if query.actor is not None:
        conditions.append(fits(audit.c.actor, query.actor))
    if query.name is not None:
        conditions.append(fits(audit.c.action, query.name))
    if query.since is not None:
        conditions.append(audit.c.at >= query.since)
    if query.until is not None:
        conditions.append(audit.c.at < query.until)
    if query.before_seq is not None:
        conditions.append(audit.c.seq < query.before_seq)
    return conditions


def _view(row: Row[Any]) -> ActionView:
    parameters = row.parameters if isinstance(row.parameters, dict) else {}
    action = Action(row.actor, row.action, row.target, parameters)
    return ActionView(row.seq, row.at, action, ActionOutcome(row.outcome), row.ended_at, row.touched, row.detail)
