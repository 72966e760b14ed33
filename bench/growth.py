"""How the figures grow, each as a curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .stage import Trial

__all__ = ["CURVES", "Curve", "groups"]


@dataclass(frozen=True, slots=True)
class Curve:
    """
    One figure over one thing that grows.

    Attributes:
        metrics: what is drawn, with its label.
        growing: what the x axis is.
    """

    growing: str
    unit: str
    metrics: Mapping[str, str]


_DRAIN = {"rate": "deliveries/s"}
_BOTH = {"rate": "drained/s", "published": "published/s, in batches"}

CURVES: Mapping[str, Curve] = {
    "subscriptions": Curve("subscriptions per event", "per second", {"rate": "deliveries/s"}),
    "registered": Curve("subscriptions registered, one of which matches", "per second", _BOTH),
    "backlog": Curve("events waiting", "per second", _BOTH),
    "history": Curve("delivered rows on record", "per second", _BOTH),
    "processes": Curve("runner processes", "per second", _DRAIN),
    "payload": Curve("bytes of data", "per second", _BOTH),
    "memory": Curve("bytes of data", "MiB, busy (at its peak)", {"memory": "MiB"}),
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
            _trial("registered", n, {"events": size}, {"bystanders": n - 1}) for n in (10, 100, 1_000, 10_000)
        ],
        "backlog": [
            _trial("backlog", n, {"events": min(n, size), "backlog": n})
            for n in (1_000, 10_000, 100_000, 1_000_000)
            if n <= 50 * size
        ],
        "history": [
            _trial("history", n, {"events": size, "history": n})
            for n in (0, 100_000, 1_000_000, 3_000_000, 10_000_000)
            if n <= 500 * size
        ],
        "processes": [_trial("processes", n, {"events": 10 * size, "processes": n}, measure="crowd") for n in (1, 2, 4)],
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
) -> Trial:
    return Trial(f"{curve}@{x}/runner", measure, options, place or {})
