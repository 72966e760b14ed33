"""How the figures grow, each as a curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .stage import Trial

__all__ = ["CURVES", "Curve", "groups"]


@dataclass(frozen=True, slots=True)
class Curve:
    """
    What is drawn of the trials `trials@x/runner`.

    Attributes:
        growing: what the x axis is.
        unit: what the y axis is.
        metrics: the lines, with their labels.
    """

    trials: str
    growing: str
    unit: str
    metrics: Mapping[str, str]


_BOTH = {"rate": "drained", "published": "published, in batches"}

CURVES: Mapping[str, Curve] = {
    "subscriptions": Curve("subscriptions", "subscriptions per event", "deliveries/s", {"rate": "drained"}),
    "registered": Curve("registered", "subscriptions registered (one matches)", "events/s", _BOTH),
    "backlog": Curve("backlog", "events waiting", "events/s", _BOTH),
    "history": Curve("history", "delivered rows on record", "events/s", _BOTH),
    "processes": Curve("processes", "runner processes", "events/s", {"rate": "drained"}),
    "payload": Curve("payload", "bytes of data", "events/s", _BOTH),
    "memory": Curve("payload", "bytes of data", "MiB of a busy runner, at its peak", {"memory": "publishes and works"}),
}


def groups(quick: bool) -> Mapping[str, Sequence[Trial]]:
    """Return the trials by curve; the key of each is `curve/x`."""
    size = 2_000 if quick else 20_000
    return {
        "subscriptions": [
            _trial("subscriptions", n, {"events": max(500, min(size, 20 * size // n))}, {"subscriptions": n})
            for n in (1, 3, 10, 30, 100, 300, 1_000)
        ],
        "registered": [
            _trial("registered", n, {"events": size}, {"bystanders": n - 1}) for n in (10, 100, 1_000, 5_000)
        ],
        "backlog": [
            _trial("backlog", n, {"events": min(n, size), "backlog": n})
            for n in (1_000, 10_000, 100_000, 1_000_000)
            if n <= 50 * size
        ],
        "history": [
            _trial("history", n, {"events": size, "history": n}, once=n >= 1_000_000)
            for n in (0, 100_000, 1_000_000, 3_000_000, 10_000_000)
            if n <= 500 * size
        ],
        "processes": [
            _trial("processes", n, {"events": 10 * size, "processes": n}, measure="crowd") for n in (1, 2, 4)
        ],
        "payload": [
            _trial("payload", n, {"events": max(200, min(size, 200_000_000 // n)), "payload": n})
            for n in (100, 1_024, 16_384, 65_536, 262_144)
        ],
    }


def _trial(
    curve: str,
    x: int,
    options: Mapping[str, object],
    place: Mapping[str, object] | None = None,
    measure: str = "drain",
    once: bool = False,
) -> Trial:
    return Trial(f"{curve}@{x}/runner", measure, options, place or {}, once=once)
