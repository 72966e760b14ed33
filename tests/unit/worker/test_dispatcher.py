"""The dispatcher, with dispatches and a store that take as long as a clock of the test says."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import cast

import pytest
from structlog.testing import capture_logs

from runner.policies.limits import WorkerLimits
from runner.storage.contract.claims import Claim, Work
from runner.storage.contract.queue import WorkQueue
from runner.storage.contract.registry import Registered, Registry
from runner.storage.contract.settlements import Run, Settled
from runner.worker.outlet import Outlet
from runner.worker.worker import Worker

from .deliveries import FunctionSink, accept, outlet, tick, works

NOW = 1000.0


class Bench:
    """A store, and a clock on which each settlement takes its time."""

    def __init__(self) -> None:
        self.now = NOW
        self.seconds = 0.0  # that a settlement takes
        self.alike = True  # whether dispatches have fronts
        self.flights: dict[Outlet, object] = {}  # of dispatches
        self.settled = 0  # events
        self.ended: float | None = None  # when a dispatch was cut

    def clock(self) -> float:
        return self.now

    async def settle(self, settled: Settled) -> int:
        self.now += self.seconds
        self.settled += len(settled.works)
        return len(settled.works)

    async def subscriptions(self) -> tuple[int, Sequence[Registered]]:
        return 1, ()

    def dispatch(self, claim: Claim, *_: object, until: float, **__: object) -> Keeping:
        return Keeping(self, claim, until)


class Keeping:
    """A dispatch that always keeps up; the time of its waits is that of the bench."""

    def __init__(self, bench: Bench, claim: Claim, until: float) -> None:
        self.claim, self.until, self.flights = claim, until, bench.flights
        self._bench = bench
        self._settled = 0

    @property
    def held(self) -> int:
        return len(self.claim.works) - self._settled

    def start(self) -> None: ...

    async def wait(self, grace: float) -> bool:
        self._bench.now += grace
        return False

    def keeps_up(self, left: float, passed: float) -> bool:
        assert left > 0
        assert passed > 0
        return True

    def front(self, lease: timedelta) -> Settled | None:
        if not self._bench.alike or not self.held:
            return None
        self._settled += 1
        return self._of(self.claim.works[:1])

    def settled(self, lease: timedelta) -> Settled:
        self._bench.ended = self._bench.now
        return self._of(self.claim.works[self._settled :])

    def unfinished(self) -> list[object]:
        return []

    def _of(self, some: Sequence[Work]) -> Settled:
        return Settled(self.claim.token, some, [Run((), len(some))], [], [], [], None)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = Bench()
    monkeypatch.setattr("runner.worker.dispatcher.monotonic", bench.clock)
    monkeypatch.setattr("runner.worker.dispatcher.Dispatch", bench.dispatch)
    return bench


async def worker_of(bench: Bench, lease: float = 30.0) -> Worker:
    limits = WorkerLimits(lease=timedelta(seconds=lease))
    worker = Worker(cast("WorkQueue", bench), cast("Registry", bench), {}, limits, notify=tick)
    await worker.roster.load()
    return worker


async def dispatched(worker: Worker, lease: float = 30.0) -> None:
    worker.dispatcher.take(Claim(1, works(20), 1), NOW + lease)
    await worker.dispatcher.ended(20)


@pytest.mark.parametrize(
    ("lease", "seconds", "alike", "spare"),
    [(30, 0.0, True, 29.0), (5, 0.6, True, 3.3), (1, 0.0, False, 0.5), (1, 0.3, True, 0.2), (0.1, 0.0, True, 0.0)],
    ids=["a second at most", "slow settlements", "a short lease without fronts", "a short lease", "the grace itself"],
)
async def test_a_dispatch_ends_while_much_of_its_lease_is_left(
    bench: Bench, lease: float, seconds: float, alike: bool, spare: float
) -> None:
    bench.seconds, bench.alike = seconds, alike
    await dispatched(await worker_of(bench, lease), lease)
    assert bench.ended is not None
    assert NOW + lease - bench.ended >= spare - 1e-6


async def test_a_dispatch_ends_at_the_first_look_after_an_outlet_of_it_has_been_replaced(bench: Bench) -> None:
    bench.flights = {outlet(FunctionSink(accept)): None}
    await dispatched(await worker_of(bench))
    assert bench.ended == NOW + 0.1


async def test_what_cannot_be_reported_of_a_front_does_not_cost_the_rest(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await worker_of(bench)

    async def report(_: object) -> None:
        raise ValueError("no such subscription")

    monkeypatch.setattr(worker.dispatcher, "_on_written", report)
    with capture_logs() as lines:
        await dispatched(worker)
        await tick()
    assert bench.settled == 20
    assert {(line["event"], line["task"], line["detail"]) for line in lines} == {
        ("task failed", "dispatch", "no such subscription")
    }
