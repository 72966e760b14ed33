"""The accounts: count the ends of deliveries as they are written."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

import structlog

from ..delivery import DeliveryState
from ..service.tally import Tally
from ..storage.contract.settlements import DeliveryRecord, Settled

__all__ = ["Accounts"]

log = structlog.get_logger(__name__)

Key = tuple[int, int]  # seq of the event, id of the subscription


class Accounts:
    """
    Count settlements in the tally once the store has taken them: runs as a whole, single deliveries one by one.

    Of the events of a claim only the first and the last are known to have been recorded when they were; the others are
    assumed to be evenly spread between, so a latency is wrong by the span of its claim at most.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._published: dict[Key, float] = {}  # when the events of single deliveries were recorded, until these end

    def expect(self, record: DeliveryRecord, recorded: float | None) -> None:
        """Remember when the event of a delivery that is about to be written was recorded."""
        if recorded is not None and record.state is DeliveryState.DELIVERED:
            self._published[record.seq, record.subscription_id] = recorded

    def ended(self, settled: Settled, held: int) -> None:
        """Count the end of a claim, of whose events so many were still held when it was written."""
        if held:
            self.settled(settled)
        if held < len(settled.works):
            self.late(len(settled.works) - held)

    def late(self, count: int) -> None:
        """Count settlements that came too late, and were not recorded."""
        self._tally.leases_lost += count
        log.warning("late settlements dropped", count=count)

    def settled(self, settled: Settled) -> None:
        """Count the end of a claim."""
        tally, now, start, count = self._tally, monotonic(), 0, len(settled.works)
        tally.dispatched += count
        first, last = settled.recorded or (now, now)
        step = (last - first) / max(count - 1, 1)
        for run in settled.runs:
            end = start + run.length
            for id in run.subscription_ids:
                outcomes = tally.outcomes_of(id)
                outcomes.delivered += run.length
                if settled.recorded is not None:
                    least, most = now - first - step * (end - 1), now - first - step * start
                    outcomes.latency.add_between(max(0.0, least), max(0.0, most), run.length)
            start = end
        middle = None if settled.recorded is None else (first + last) / 2
        for record in settled.records:
            self._count(record, middle, now)

    def written(self, records: Sequence[DeliveryRecord]) -> None:
        """Count single deliveries."""
        now = monotonic()
        for record in records:
            self._count(record, self._published.pop((record.seq, record.subscription_id), None), now)

    def _count(self, record: DeliveryRecord, recorded: float | None, now: float) -> None:
        match record.state:
            case DeliveryState.DELIVERED:
                outcomes = self._tally.outcomes_of(record.subscription_id)
                outcomes.delivered += 1
                if recorded is not None:
                    outcomes.latency.add(max(0.0, now - recorded))
            case DeliveryState.DEAD:
                self._tally.outcomes_of(record.subscription_id).dead += 1
            case DeliveryState.PENDING if record.error is not None:
                self._tally.outcomes_of(record.subscription_id).failed += 1
            case _:
                pass
