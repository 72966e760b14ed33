"""One run of one case: what it does, how often its faults bit, and what the checker says at its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.eventually import eventually
from tests.support.load import slowness
from tests.support.nats import NatsServer
from tests.support.process import RunnerProcess

from .checker import Verdict, judge
from .deployment import BATCH, CONCURRENCY, LEASE, Deployment, Subscriber, freeze, least_wait, thaw
from .journals import now

__all__ = ["Outcome", "Trial", "Violation"]


class Violation(AssertionError):
    """What must hold does not. Nothing else counts as having caught a mutant."""


@dataclass(slots=True)
class Outcome:
    """A row of the report."""

    case: str
    what: str
    seed: int
    postgres: int | None
    published: int = 0
    delivered: int = 0
    lost: int = 0
    duplicated: int = 0
    bound: int = 0
    recovered: float | None = None
    limit: float | None = None
    bites: dict[str, int] = field(default_factory=dict)
    mutant: str = ""
    found: str = ""  # how the mutant was caught

    def dump(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


class Trial:
    """
    The run of a case.

    A case starts a deployment, lets a publisher publish, hurts something, and ends with `verify()`. Every choice it
    makes comes from `random`, and every fault it commits goes into `note()` and `bite()`.
    """

    def __init__(self, directory: Path, outcome: Outcome, dsn: str, nats: str | None) -> None:
        self.directory = directory
        self.outcome = outcome
        self.dsn = dsn
        self.nats = nats
        self.random = random.Random(f"{outcome.case}:{outcome.seed}")
        self.schedule: list[str] = []
        self.violations: list[str] = []
        self.faults: list[float] = []  # from when recovery counts
        self.verified = False
        self._began = now()
        self._deployment: Deployment | None = None
        self._publishers: list[RunnerProcess] = []
        self._servers: list[NatsServer] = []

    @property
    def deployment(self) -> Deployment:
        """The deployment, once `start()` has been called."""
        assert self._deployment is not None, "call start() first"
        return self._deployment

    @property
    def runners(self) -> Sequence[RunnerProcess]:
        """The runners that are there now."""
        return [runner for runner in self.deployment.runners if runner.returncode is None]

    def deploy(self, *subscribers: Subscriber, sabotage: str = "", **options: Any) -> Deployment:
        """Make the deployment and start nothing; options as `Deployment`."""
        broken = ",".join(filter(None, (sabotage, self.outcome.mutant)))
        self._deployment = Deployment(
            self.directory, self.dsn, nats=self.nats, subscribers=subscribers, sabotage=broken, **options
        )
        return self._deployment

    async def start(self, *subscribers: Subscriber, runners: int = 3, **options: Any) -> Deployment:
        """Make the deployment and start its runners; options as `Deployment`."""
        deployment = self.deploy(*subscribers, **options)
        await deployment.start(runners)
        await deployment.audit()
        self._began = now()
        return deployment

    def nats_server(self, config: str = "") -> NatsServer:
        """Start a nats-server of this case's own; the deployment has to be told of it."""
        self._servers.append(NatsServer(config))
        self._servers[-1].start()
        return self._servers[-1]

    def close(self) -> None:
        """Kill what still runs."""
        if self._deployment is not None:
            self._deployment.close()
        for server in self._servers:
            server.discard()

    def publish(self, count: int, rate: float = 200.0, **plan: Any) -> RunnerProcess:
        """Start to publish; further arguments as `publisher.Plan`."""
        plan = {"count": count, "rate": rate, "seed": f"{self.outcome.case}:{self.outcome.seed}"} | plan
        self._publishers.append(self.deployment.publish(plan))
        return self._publishers[-1]

    def answered(self) -> int:
        """Return how many events have been acknowledged so far."""
        return sum(line.step == "ok" for line in self.deployment.published.read())

    @property
    def processes(self) -> Sequence[RunnerProcess]:
        """The runners and publishers that are there now."""
        runners = [] if self._deployment is None else self._deployment.runners
        return [each for each in (*runners, *self._publishers) if each.returncode is None]

    def bound(self, seconds: float) -> float:
        """Return how long what takes `seconds` at most may take here: on a busy machine everything takes longer."""
        return seconds * slowness([os.getpid(), *(process.pid for process in self.processes)])

    async def reach(self, count: int, timeout: float = 30.0) -> None:
        """Return once `count` events have been acknowledged; or at the end of `timeout`, for the checker to see why."""
        with contextlib.suppress(AssertionError):
            await eventually(lambda: self.answered() >= count, self.bound(timeout))

    async def finished(self, publisher: RunnerProcess) -> None:
        """Return once a publisher has ended, however long it takes; `AssertionError` if it writes nothing more."""

        def goes_on(written: int) -> bool:
            return publisher.returncode is not None or len(self.deployment.published.read()) > written

        while publisher.returncode is None:
            await eventually(partial(goes_on, len(self.deployment.published.read())))
        assert publisher.returncode == 0, publisher.report()

    def moments(self, count: int, of: int) -> list[int]:
        """Return `count` random moments in the course of `of` publishes, in order, not at the beginning or the end."""
        return sorted(self.random.sample(range(of // 10, of * 9 // 10), count))

    def note(self, text: str) -> None:
        """Put a fault down in the schedule."""
        self.schedule.append(f"{now() - self._began:6.2f} s, {self.answered():5} published: {text}")

    def bite(self, name: str, count: int = 1) -> None:
        """Count how often a fault met what it was for; a case in which one never did has proved nothing."""
        bites = self.outcome.bites
        bites[name] = bites.get(name, 0) + count

    def fault(self) -> None:
        """Let recovery count from now: a fault has just ended, or has just happened and has no end."""
        self.faults.append(now())

    def require(self, holds: object, message: str) -> None:
        """Report `message` at the end unless it holds."""
        if not holds:
            self.violations.append(message)

    async def require_soon(self, check: Callable[[], Awaitable[Any] | Any], message: str, timeout: float) -> None:
        """Report `message` at the end unless it comes to hold within `timeout` seconds."""
        try:
            await eventually(check, self.bound(timeout))
        except AssertionError:
            self.violations.append(f"{message} (not within {timeout:g} s)")

    async def busy(self, among: Sequence[RunnerProcess] | None = None) -> RunnerProcess:
        """Return one of the runners that deliver now; one of `among`, if given."""

        def candidates() -> list[RunnerProcess]:
            there = self.runners if among is None else [runner for runner in among if runner.returncode is None]
            return [runner for runner in there if self.deployment.running(runner) > 0]

        return self.random.choice(await eventually(candidates))

    async def catch(self, victim: RunnerProcess) -> int:
        """Stop a runner (SIGSTOP) at a moment when it delivers, and return how many deliveries it is at."""
        for _ in range(100):
            await eventually(lambda: self.deployment.running(victim) > 0)
            await freeze(victim)
            if count := self.deployment.running(victim):
                return count
            thaw(victim)
        raise AssertionError("the victim never delivered anything")

    async def kill(self, *victims: RunnerProcess) -> None:
        """Kill runners while they deliver (kill -9)."""
        running = [await self.catch(victim) for victim in victims]
        for victim in victims:
            victim.kill()
        self.note(f"kill -9 of {len(victims)}, {sum(running)} deliveries running")
        self.bite("deliveries running at a kill", sum(running))

    def held(self, times: int = 1) -> int:
        """Return the most deliveries that `times` runners can hold at once, and so the most that may come twice."""
        # Two claims of events on their way to every subscription, and as many single deliveries as may run.
        return times * (
            2 * BATCH * len(self.deployment.subscriptions) + CONCURRENCY + len(self.deployment.subscriptions)
        )

    async def drain(self, timeout: float = 15.0) -> None:
        """Wait until everything is published and settled; what is not by then, the checker finds."""
        timeout = self.bound(timeout)
        with contextlib.suppress(AssertionError):
            await eventually(lambda: all(each.returncode is not None for each in self._publishers), timeout)
        with contextlib.suppress(AssertionError, OSError):
            await eventually(self.deployment.idle, timeout, every=0.1)

    async def verify(
        self,
        *,
        duplicates: int = 0,
        recovery: float | None = None,
        timeout: float = 15.0,
        paced: bool = True,
        written_off: Collection[str] = (),
    ) -> Verdict:
        """
        Wait for the end, hold everything against the invariants, and raise `Violation` for what does not hold.

        Args:
            duplicates: at most so many.
            recovery: seconds, at most so many after each fault.
            paced: whether retries wait as the deployment says; False where receivers decide it.
            written_off: ids that the case may lose, and has accounted for.
        """
        await self.drain(timeout)
        deployment = self.deployment
        await asyncio.sleep(0.1)  # a late duplicate would have come by now
        verdict = judge(
            [line for line in deployment.published.read() if line.id not in written_off],
            [line for line in deployment.deliveries.read() if line.id not in written_off],
            await deployment.tables(),
            deployment.subscriptions,
            faults=self.faults,
            series=LEASE + 1.0,
            least_wait=least_wait if paced else lambda attempt: 0.0,
        )
        self._report(verdict, duplicates, recovery)
        found = [f"lost: {each}" for each in verdict.lost]
        found += [f"unexpected: {each}" for each in verdict.unexpected]
        found += [f"stale: {each}" for each in verdict.untrue]
        if verdict.duplicated > duplicates:
            found.append(f"{verdict.duplicated} duplicates, expected at most {duplicates}")
        if recovery is not None and verdict.recovered > self.bound(recovery):
            found.append(f"recovered after {verdict.recovered:.2f} s, expected at most {recovery:g}")
        self.conclude(*found)
        return verdict

    def conclude(self, *found: str) -> None:
        """Raise `Violation` for what was found, and fail when a fault never bit; for a case without events."""
        found = (*self.violations, *found, *self.deployment.complaints())
        if found:
            self.outcome.found = found[0]
            raise Violation("\n".join(found[:20] + ((f"… and {len(found) - 20} more",) if len(found) > 20 else ())))
        idle = [name for name, count in self.outcome.bites.items() if not count]
        assert not idle, f"this fault never bit, so the case proves nothing: {', '.join(idle)}"
        self.verified = True

    def _report(self, verdict: Verdict, duplicates: int, recovery: float | None) -> None:
        outcome = self.outcome
        outcome.published, outcome.delivered = verdict.published, verdict.delivered
        outcome.lost, outcome.duplicated, outcome.bound = len(verdict.lost), verdict.duplicated, duplicates
        outcome.recovered = verdict.recovered if self.faults else None
        outcome.limit = recovery
        print(f"\n{outcome.case}, seed {outcome.seed}" + (f", under {outcome.mutant}" if outcome.mutant else ""))
        for line in self.schedule:
            print(f"  {line}")
        print(
            f"  published {verdict.published} (no answer: {verdict.unknown}), delivered {verdict.delivered},"
            f" lost {len(verdict.lost)}, duplicated {verdict.duplicated} (at most {duplicates}),"
            f" recovered in {verdict.recovered:.2f} s, bites {outcome.bites}"
        )
