"""What `make bench` measures, and what it must show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .stage import Trial

__all__ = ["TARGETS", "Target", "groups"]

QUEUES = ("runner", "pgqueuer", "procrastinate", "faststream")
FLOORS = ("floor", "floor-rows")  # which records in runs as ours, and which in rows


def groups(quick: bool) -> Mapping[str, Sequence[Trial]]:
    """Return the trials by group; those of a group are run in turns, A B C A B C."""
    size = 5_000 if quick else 20_000
    return {
        "drain": _drains(size),
        "fan-out": _fan_outs(size),
        "publish": _publishes(size, quick),
        "latency": _latencies(200 if quick else 1_000),
        "claims": _claims(quick),
        "sqlite": [
            Trial("sqlite-publish/runner", "publish", {"events": size}, {"callers": 200}, sqlite=True),
            Trial("sqlite-drain/runner", "drain", {"events": size}, sqlite=True),
            Trial("sqlite-fan-out-10/runner", "drain", {"events": size // 2}, {"subscriptions": 10}, sqlite=True),
        ],
        "idle": [
            Trial("idle/runner", "idle", {"settle": 5, "seconds": 15 if quick else 60}, once=True),
        ],
    }


def _drains(size: int) -> list[Trial]:
    names = ("runner", *FLOORS, "pgqueuer", "faststream", "faststream-batch")
    trials = [Trial(f"drain/{name}", "drain", {"events": size}) for name in names]
    # It would take two minutes for all of them; the first are not the slowest.
    trials.insert(4, Trial("drain/procrastinate", "drain", {"events": size // 10, "backlog": size}))
    return trials


def _fan_outs(size: int) -> list[Trial]:
    trials = [
        Trial(f"fan-out-10/{name}", "drain", {"events": size // 2}, {"subscriptions": 10})
        for name in ("runner", *FLOORS)
    ]
    trials.append(Trial("fan-out-10/pgqueuer", "drain", {"events": size // 8}, {"subscriptions": 10}))
    trials += [
        Trial(f"fan-out-100/{name}", "drain", {"events": size // 4}, {"subscriptions": 100})
        for name in ("runner", *FLOORS)
    ]
    return trials


def _publishes(size: int, quick: bool) -> list[Trial]:
    """One at a time, 16 and 200 at once, and in batches; ours with 1, 10 and 1,000 matching subscriptions too."""
    trials = []
    widths = {"1": 1, "16": 16, "200": 200, "batch": 1}
    for label, callers in widths.items():
        batch = 500 if label == "batch" else 1
        for name in ("runner", "floor", "pgqueuer", "procrastinate", "faststream"):
            events = {"1": size // 10, "16": size // 2, "200": size, "batch": 4 * size}[label]
            if name in ("pgqueuer", "procrastinate", "faststream"):
                events //= 2 if label in ("1", "batch") else 4
            options = {"events": events, "batch": batch}
            trials.append(Trial(f"publish-{label}/{name}", "publish", options, {"callers": callers}))
            if name == "runner":
                trials += [
                    Trial(f"publish-{label}-{n}/runner", "publish", options, {"callers": callers, "subscriptions": n})
                    for n in ((1_000,) if quick else (10, 1_000))
                ]
    return trials


def _latencies(samples: int) -> list[Trial]:
    return [
        Trial(f"{key}/{name}", "latency", {"samples": samples, "across": key == "across"})
        for key in ("within", "across")
        for name in QUEUES
    ]


def _claims(quick: bool) -> list[Trial]:
    million = 100_000 if quick else 1_000_000
    hold = {"hold": 10, "after": 10} if quick else {"hold": 60, "after": 60}
    return [
        Trial("claim-empty/runner", "claims"),
        Trial("claim-history/runner", "claims", {"history": million}),
        Trial("claim-backlog/runner", "claims", {"backlog": million}),
        Trial("horizon/runner", "horizon", hold, once=True),
    ]


@dataclass(frozen=True, slots=True)
class Target:
    """
    One thing the run must show: a median, or the ratio of two, against a bound.

    Attributes:
        measured: `key:metric`.
        against: the same, below the line; None for an absolute figure.
        at_least: whether the bound is the smallest value, and not the largest.
    """

    number: int
    text: str
    measured: str
    against: str | None
    bound: float
    at_least: bool = True


def _publish_targets() -> list[Target]:
    bounds = {"1": 0.8, "16": 2.0, "200": 4.0, "batch": 0.7}
    titles = {"1": "one at a time", "16": "16 at once", "200": "200 at once", "batch": "batches of 500"}
    targets = [
        Target(
            3,
            f"publish, {titles[label]}: of the floor",
            f"publish-{label}/runner:rate",
            f"publish-{label}/floor:rate",
            bound,
        )
        for label, bound in bounds.items()
    ]
    targets += [
        Target(
            3,
            f"publish, {titles[label]}: 1,000 subscriptions against 1",
            f"publish-{label}-1000/runner:rate",
            f"publish-{label}/runner:rate",
            0.9,
        )
        for label in bounds
    ]
    return targets


TARGETS: Sequence[Target] = (
    Target(1, "drain: times pgqueuer", "drain/runner:rate", "drain/pgqueuer:rate", 5),
    Target(1, "drain: times procrastinate", "drain/runner:rate", "drain/procrastinate:rate", 60),
    Target(1, "drain: times FastStream in batches", "drain/runner:rate", "drain/faststream-batch:rate", 2.5),
    Target(1, "drain: the floor itself, times pgqueuer", "drain/floor:rate", "drain/pgqueuer:rate", 5),
    Target(1, "drain: of the floor", "drain/runner:rate", "drain/floor:rate", 0.7),
    Target(1, "drain: of the floor with rows", "drain/runner:rate", "drain/floor-rows:rate", 0.7),
    Target(2, "fan-out to 10: of the floor", "fan-out-10/runner:rate", "fan-out-10/floor:rate", 0.6),
    Target(2, "fan-out to 10: of the floor with rows", "fan-out-10/runner:rate", "fan-out-10/floor-rows:rate", 1),
    Target(
        2,
        "fan-out to 10: WAL of a delivery, of the floor with rows",
        "fan-out-10/runner:wal",
        "fan-out-10/floor-rows:wal",
        0.2,
        at_least=False,
    ),
    Target(
        2,
        "fan-out to 10: disk of a delivery, of the floor with rows",
        "fan-out-10/runner:disk",
        "fan-out-10/floor-rows:disk",
        0.35,
        at_least=False,
    ),
    Target(2, "publish and fan-out to 10: times pgqueuer", "fan-out-10/runner:whole", "fan-out-10/pgqueuer:whole", 15),
    Target(2, "fan-out: deliveries/s at 100 against 10", "fan-out-100/runner:rate", "fan-out-10/runner:rate", 1),
    *_publish_targets(),
    Target(4, "two processes, p50: of pgqueuer's", "across/runner:p50", "across/pgqueuer:p50", 0.45, at_least=False),
    Target(4, "one process, p50: of pgqueuer's", "within/runner:p50", "within/pgqueuer:p50", 0.3, at_least=False),
    Target(4, "one process, p50: of FastStream's", "within/runner:p50", "within/faststream:p50", 1, at_least=False),
    Target(4, "two processes: p99 over p50", "across/runner:spread", None, 3, at_least=False),
    Target(4, "one process: p99 over p50", "within/runner:spread", None, 3, at_least=False),
    Target(
        5, "claim, 1M rows of history", "claim-history/runner:claim", "claim-empty/runner:claim", 1.5, at_least=False
    ),
    Target(
        5, "claim, 1M rows of backlog", "claim-backlog/runner:claim", "claim-empty/runner:claim", 1.5, at_least=False
    ),
    Target(5, "claim, at the end of a 60 s transaction", "horizon/runner:slowdown", None, 3, at_least=False),
    Target(5, "claim, a minute after it", "horizon/runner:rest", None, 1.5, at_least=False),
    Target(6, "SQLite: publishes/s, 200 at once", "sqlite-publish/runner:rate", None, 10_000),
    Target(6, "SQLite: deliveries/s drained", "sqlite-drain/runner:rate", None, 60_000),
    Target(7, "idle: % of a CPU", "idle/runner:cpu", None, 1, at_least=False),
    Target(7, "idle: queries/s", "idle/runner:queries", None, 1, at_least=False),
    Target(7, "idle: MiB of memory", "idle/runner:memory", None, 120, at_least=False),
)
