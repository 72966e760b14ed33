"""A subscription: the events that match, the sink, and the policies."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

import msgspec

from .errors import ConfigError, EventError
from .event import Event, check_type
from .policies.breaker import BreakerPolicy
from .policies.filter import Predicate, compile_filter
from .policies.rate import Rate
from .policies.retry import RetryPolicy

__all__ = [
    "DEAD_LETTER_SUFFIX",
    "DESTINATION_PREFIX",
    "Destination",
    "Matcher",
    "Subscription",
    "check_dead_letters",
    "matches_pattern",
]

DEAD_LETTER_SUFFIX = ".dead-letter"
"""The end of the name of every subscription for dead letters, and of no other."""

DESTINATION_PREFIX = "destination:"
"""The beginning of the name of every sink that a subscription brought with it; its own name follows."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """
    The sink that a subscription brought with it, as it is kept.

    Attributes:
        kind: of the sink, such as `webhook`.
        shown: its options as they may be shown, `***` in place of what is secret.
        options: its options, where nothing of them is secret.
        sealed: else the same, sealed (see `policies/sealing.py`).
    """

    kind: str
    shown: Mapping[str, Any]
    options: Mapping[str, Any] | None = None
    sealed: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the stored form."""
        kept = {"options": dict(self.options)} if self.options is not None else {"sealed": self.sealed}
        return {"kind": self.kind, "shown": dict(self.shown), **kept}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """
    The events that match, and their sink.

    `types` and `source` are patterns in which `*` stands for any run of characters; no types, or no
    source, means all. `filter` narrows further (see `filter.py`). At most `concurrency` deliveries
    run at once in one process, each for at most `timeout`. With `batch` the sink is given up to so many
    at a time, which count as one. `breaker` says when none is tried for a while; None for never.

    Over all processes at most `rate` start. Those whose attribute `order_by` is equal are delivered one
    after the other, in the order of the events.

    What is dead goes to the sink `dead_letter`, as a delivery of another subscription, which matches no
    event: the one `for_dead_letters()` returns, and `dead_letter_of` names this one there.

    With a `destination` the sink is its own, and has the name `destination:NAME`. From `expires_at` on it matches
    no event; what it has by then is still delivered.
    """

    name: str
    sink: str
    types: tuple[str, ...] = ()
    source: str | None = None
    filter: Mapping[str, Any] | None = None
    concurrency: int = 64
    batch: int | None = None
    timeout: timedelta = timedelta(seconds=25)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    breaker: BreakerPolicy | None = field(default_factory=BreakerPolicy)
    rate: Rate | None = None
    order_by: str | None = None
    dead_letter: str | None = None
    dead_letter_of: str | None = None
    destination: Destination | None = None
    expires_at: datetime | None = None

    def __post_init__(self) -> None:
        if self.dead_letter_of is None and self.name.endswith(DEAD_LETTER_SUFFIX):
            raise ConfigError(f"subscription {self.name!r}: names that end in {DEAD_LETTER_SUFFIX!r} are taken")

    @property
    def regulated(self) -> bool:
        """Whether an order or a rate is kept over all processes, so that the database decides what may start."""
        return self.rate is not None or self.order_by is not None

    def for_dead_letters(self) -> Subscription | None:
        """Return the subscription that delivers the dead letters; None without a `dead_letter`."""
        if self.dead_letter is None:
            return None
        return Subscription(
            name=self.name + DEAD_LETTER_SUFFIX,
            sink=self.dead_letter,
            concurrency=self.concurrency,
            timeout=self.timeout,
            dead_letter_of=self.name,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the stored form: JSON types only, durations in seconds."""
        return {
            "types": list(self.types),
            "source": self.source,
            "filter": self.filter,
            "sink": self.sink,
            "concurrency": self.concurrency,
            "batch": self.batch,
            "timeout": self.timeout.total_seconds(),
            "retry": {
                "max_attempts": self.retry.max_attempts,
                "delay": self.retry.delay.total_seconds(),
                "max_delay": self.retry.max_delay.total_seconds(),
                "jitter": self.retry.jitter,
                "schedule": [wait.total_seconds() for wait in self.retry.schedule],
                "max_age": None if self.retry.max_age is None else self.retry.max_age.total_seconds(),
            },
            "breaker": None
            if self.breaker is None
            else {
                "failures": self.breaker.failures,
                "pause": self.breaker.pause.total_seconds(),
                "max_pause": self.breaker.max_pause.total_seconds(),
            },
            "dead_letter": self.dead_letter,
            "dead_letter_of": self.dead_letter_of,
            "rate": self.rate and str(self.rate),
            "order_by": self.order_by,
            # Only if set, so that the stored form stays equal to that of earlier versions.
            **({} if self.destination is None else {"destination": self.destination.to_json()}),
            **({} if self.expires_at is None else {"expires_at": self.expires_at.isoformat()}),
        }

    @classmethod
    def from_json(cls, name: str, stored: Mapping[str, Any]) -> Subscription:
        """Read the output of `to_json()`, of this version or an earlier one."""
        # Keys that an older version did not write have their defaults.
        rate = stored.get("rate")
        found = msgspec.convert({**stored, "name": name, "rate": None}, cls, strict=False)
        return found if rate is None else replace(found, rate=Rate.parse(rate))


def matches_pattern(pattern: str, text: str) -> bool:
    """
    Return whether `text` fits `pattern`, in which `*` stands for any run of characters.

    In time proportional to the text, where a regular expression of many `*` could take hours.
    """
    start, *middle = pattern.split("*")
    if not middle:
        return pattern == text
    end = middle.pop()
    if len(text) < len(start) + len(end) or not text.startswith(start) or not text.endswith(end):
        return False
    position, last = len(start), len(text) - len(end)
    for part in middle:
        found = text.find(part, position, last)
        if found < 0:
            return False
        position = found + len(part)
    return True


class Matcher(Generic[T]):
    """
    Find the targets of events, indexed by type.

    Compiled once per version of the subscription set. The candidates of a type are looked up once and kept, so that an
    event costs what matches it, however many subscriptions there are. Equal results are the same tuple object unless a
    source pattern or a filter takes part.
    """

    _KEPT = 10_000  # event types whose candidates are remembered

    def __init__(self, targets: Iterable[tuple[Subscription, T]]) -> None:
        self._exact: dict[str, list[tuple[int, Predicate | None, T]]] = {}
        self._patterns: list[tuple[int, str, Predicate | None, T]] = []
        self._kept: dict[str, tuple[tuple[T, ...], Sequence[tuple[Predicate | None, T]] | None]] = {}
        self._targets: list[T] = []
        for rank, (subscription, target) in enumerate(targets):
            if subscription.dead_letter_of is not None:
                continue
            self._targets.append(target)
            predicate = _predicate(subscription)
            for pattern in dict.fromkeys(subscription.types or ("*",)):
                if "*" in pattern:
                    self._patterns.append((rank, pattern, predicate, target))
                else:
                    self._exact.setdefault(pattern, []).append((rank, predicate, target))

    def match(self, event: Event) -> tuple[T, ...]:
        """
        Return the targets of `event`, each once, in the order of the subscriptions.

        Raises:
            Exception: an attribute used by a source pattern or a filter is invalid.
        """
        kept = self._kept.get(event.type)
        if kept is None:
            kept = self._candidates(event.type)
        everyone, conditional = kept
        if conditional is None:
            return everyone
        return tuple(target for predicate, target in conditional if predicate is None or predicate(event))

    def concerned(self, type: object) -> tuple[T, ...]:
        """Return the possible targets of an event of which at most the type can be read."""
        try:
            check_type(type)
        except EventError:
            return tuple(self._targets)
        return self._candidates(str(type))[0]

    def _candidates(self, type: str) -> tuple[tuple[T, ...], Sequence[tuple[Predicate | None, T]] | None]:
        check_type(type)  # once for each type
        found = {rank: (predicate, target) for rank, predicate, target in self._exact.get(type, ())}
        for rank, pattern, predicate, target in self._patterns:
            if rank not in found and matches_pattern(pattern, type):
                found[rank] = (predicate, target)
        candidates = [found[rank] for rank in sorted(found)]
        conditional = candidates if any(predicate for predicate, _ in candidates) else None
        kept = (tuple(target for _, target in candidates), conditional)
        if len(self._kept) >= self._KEPT:
            self._kept.clear()
        self._kept[type] = kept
        return kept


def _predicate(subscription: Subscription) -> Predicate | None:
    """Return the part of the match that depends on more than the event's type."""
    pattern = subscription.source
    wanted = compile_filter(subscription.filter) if subscription.filter else None
    if pattern is None or pattern == "*":
        return wanted
    if wanted is None:
        return lambda event: matches_pattern(pattern, event.source)
    return lambda event: matches_pattern(pattern, event.source) and wanted(event)


def check_dead_letters(subscriptions: Iterable[Subscription], sinks: Collection[str]) -> None:
    """Raise `ConfigError` if the `dead_letter` of a function names an unknown sink; the loader checks files."""
    for each in subscriptions:
        if each.dead_letter is not None and each.dead_letter not in sinks:
            known = ", ".join(sorted(sinks))
            raise ConfigError(
                f"subscription {each.name!r}: unknown sink {each.dead_letter!r} for dead letters, "
                f"expected one of: {known}"
            )
