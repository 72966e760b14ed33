"""Parameters and results of the statements on PostgreSQL: values, columns and rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from time import monotonic
from typing import TYPE_CHECKING, Any

from ...errors import EventError
from ...event import Event
from ..contract.claims import UNREADABLE, ClaimedDelivery, ExpiredDeferral, UnreadableDelivery, Work
from ..contract.settlements import AttemptRecord, DeliveryRecord, Settled, Turn
from ..encoding import storable
from ..event_rows import check_size, read_event, write_extensions
from ..identity import shortened
from ..runs import RunRow, few, in_runs, stretches
from .statements import NOTHING, SEPARATOR

if TYPE_CHECKING:
    import asyncpg

__all__ = [
    "attempt_columns",
    "claimed_deliveries",
    "claimed_event",
    "claimed_works",
    "event_columns",
    "event_values",
    "joined_columns",
    "record_columns",
    "settling",
    "turn_columns",
]

_TIME, _DATA = 4, 8  # columns of an event that are no texts
_MILLENNIUM = datetime(2000, 1, 1, tzinfo=UTC)


def event_values(event: Event) -> tuple[Any, ...]:
    """Return the nine values of an event in the order in which statements take them."""
    event = shortened(event)
    return (
        event.id,
        event.source,
        event.type,
        event.subject,
        event.time,
        event.datacontenttype,
        event.dataschema,
        write_extensions(event.extensions),
        event.data,
    )


def event_columns(events: Sequence[Event]) -> list[Any]:
    """Return the nine columns of events; None for one that is empty, which `unnest` pads with nulls."""
    return [
        None if column.count(None) == len(column) else column for column in zip(*map(event_values, events), strict=True)
    ]


def joined_columns(events: Sequence[Event]) -> list[Any]:
    """Return the nine columns of events as `event_columns()` does, but each column of texts as one text."""
    return [
        column if column is None or index in (_TIME, _DATA) else _joined(column)
        for index, column in enumerate(event_columns(events))
    ]


def _joined(column: Sequence[str | None]) -> str:
    """Return the texts as one, for `texts.sql` to take apart."""
    joined = SEPARATOR.join([NOTHING if each is None else each for each in column])
    if joined.count(SEPARATOR) != len(column) - 1 or joined.count(NOTHING) != column.count(None):
        raise EventError("an attribute holds a control character, which is not allowed (CloudEvents 1.0 §3.1)")
    return joined


def record_columns(
    records: Sequence[DeliveryRecord], tokens: Sequence[int | None], encoding: str
) -> tuple[Sequence[Any], ...]:
    """Return the columns of single deliveries, each with the token it is to have or to be held under."""
    return (
        [record.seq for record in records],
        [record.subscription_id for record in records],
        [record.state.value for record in records],
        [record.attempts for record in records],
        [record.due_in for record in records],
        tokens,
        [storable(record.error, encoding) for record in records],
    )


def attempt_columns(attempts: Sequence[AttemptRecord], encoding: str) -> tuple[Sequence[Any], ...]:
    """Return the columns of attempts for `record_attempts.sql`."""
    return (
        [each.seq for each in attempts],
        [each.subscription_id for each in attempts],
        [each.number for each in attempts],
        [each.duration // timedelta(microseconds=1) for each in attempts],
        [each.status for each in attempts],
        [storable(each.error, encoding) for each in attempts],
        [storable(each.excerpt, encoding) for each in attempts],
    )


def turn_columns(turns: Sequence[Turn]) -> tuple[Sequence[Any], ...]:
    """Return the columns of turns for `record_turns.sql`."""
    return (
        [turn.subscription_id for turn in turns],
        [turn.key for turn in turns],
        [turn.position for turn in turns],
        [turn.seq for turn in turns],
    )


def settling(settled: Settled) -> tuple[str, tuple[Any, ...]]:
    """Return the statement that settles a claim, and its arguments."""
    positions = stretches([work.position for work in settled.works])
    if len(settled.runs) == len(positions) == 1 and few(settled):
        return "settle_few", (settled.token, *positions[0], settled.runs[0].subscription_ids)
    runs, rows = in_runs(settled)
    arguments = (
        settled.token,
        [first for first, _ in positions],
        [last for _, last in positions],
        [_multirange(run) for run in runs],
        [f"{{{','.join(map(str, run.subscription_ids))}}}" for run in runs],
    )
    if not rows and not any([work.attempt != 1 for work in settled.works]):
        return "settle_runs", (*arguments, len(settled.works))
    return "settle", (*arguments, [seq for seq, _ in rows], [id for _, id in rows])


def _multirange(run: RunRow) -> str:
    """Return the seqs of a run as PostgreSQL reads them."""
    return f"{{{','.join([f'[{first},{last}]' for first, last in run.seqs])}}}"


def claimed_works(rows: Sequence[asyncpg.Record]) -> list[Work]:
    """Return the works in the rows of `claim.sql`. Raise one of `UNREADABLE` if an event cannot be read."""
    return [
        Work(
            position,
            attempt,
            seq,
            read_event(type, source, id, subject, _moment(sent), mime, schema, more, data),
            0 if size is None else check_size(size),
        )
        for position, attempt, seq, type, source, id, subject, sent, mime, schema, more, data, size, *_ in rows
        if position is not None
    ]


def claimed_event(row: asyncpg.Record) -> Event:
    """Return the event in the row of `event.sql`. Raise one of `UNREADABLE` if it cannot be read."""
    type, source, id, subject, sent, *rest, size = row
    check_size(size or 0)
    return read_event(type, source, id, subject, _moment(sent), *rest)


def claimed_deliveries(
    rows: Sequence[asyncpg.Record],
) -> tuple[list[ClaimedDelivery], list[UnreadableDelivery]]:
    """Return the deliveries in the rows of a claim of them, and apart those of which the event cannot be read."""
    claimed: list[ClaimedDelivery] = []
    unreadable: list[UnreadableDelivery] = []
    now = monotonic()
    for row in rows:
        seq, id, attempt, suspect = row[:4]
        if seq is None:
            continue
        try:
            event = claimed_event(row[5:15])
        except UNREADABLE as error:
            unreadable.append(UnreadableDelivery(seq, id, attempt, f"{type(error).__name__}: {error}"))
            continue
        age, size = row["age"] or timedelta(0), row["size"] or 0
        recorded = now - row["recorded_ago"]
        claimed.append(
            ClaimedDelivery(seq, id, attempt, suspect, event, age, _expired_deferral(row), size, recorded=recorded)
        )
    return claimed, unreadable


def _expired_deferral(row: asyncpg.Record) -> ExpiredDeferral | None:
    return None if row["waited"] is None else ExpiredDeferral(row["waited"], row["refusal"])


@lru_cache(maxsize=4096)
def _moment(sent: bytes) -> datetime:
    """
    Return the time in the eight bytes of `timestamptz_send()`: microseconds since 2000.

    asyncpg takes longer for a timestamp than for the rest of a row, and events of one commit share it.
    """
    return _MILLENNIUM + timedelta(microseconds=int.from_bytes(sent, "big", signed=True))
