"""Explain why an event does not match a subscription: the failing clause and the value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..event import Event
from ..policies.filter import COMPARISONS, compile_filter
from ..subscription import Subscription, matches_pattern

__all__ = ["Clause", "mismatch"]


@dataclass(frozen=True, slots=True)
class Clause:
    """
    One clause of a subscription, and the value on which it fails.

    Attributes:
        clause: its place in the configuration, such as `filter.all[1].prefix.subject`.
        expected: what it asks for.
        actual: what the event has; None if it has no such attribute.
    """

    clause: str
    expected: str
    actual: str | None

    def __str__(self) -> str:
        return (
            f"{self.clause}: expected {self.expected}, the event has {'none' if self.actual is None else self.actual}"
        )


def mismatch(subscription: Subscription, event: Event) -> Clause | None:
    """Return the first clause of `subscription` that `event` fails; None if it matches."""
    return next(_failing(subscription, event), None)


def _failing(subscription: Subscription, event: Event) -> Iterator[Clause]:
    if subscription.dead_letter_of is not None:
        yield Clause("dead_letter", f"a delivery that is dead of {subscription.dead_letter_of!r}", repr(event.type))
    if subscription.types and not any(matches_pattern(pattern, event.type) for pattern in subscription.types):
        yield Clause("types", " or ".join(map(repr, subscription.types)), repr(event.type))
    if subscription.source is not None and not matches_pattern(subscription.source, event.source):
        yield Clause("source", repr(subscription.source), repr(event.source))
    if subscription.filter:
        yield from _of_filter(subscription.filter, "filter", event)


def _of_filter(spec: Mapping[str, Any], where: str, event: Event) -> Iterator[Clause]:
    """Yield the failing clauses of a filter; an `any` or a `not` fails as a whole."""
    for name, operand in spec.items():
        place = f"{where}.{name}"
        match name:
            case "all":
                for index, part in enumerate(operand):
                    yield from _of_filter(part, f"{place}[{index}]", event)
            case "any":
                if not any(compile_filter(part)(event) for part in operand):
                    yield Clause(place, f"one of its {len(operand)} filters to hold", _seen(operand, event))
            case "not":
                if compile_filter(operand)(event):
                    yield Clause(place, "its filter not to hold", _seen(operand, event))
            case _:
                for attribute, expected in operand.items():
                    if not compile_filter({name: {attribute: expected}})(event):
                        value = event.attribute(attribute)
                        actual = None if value is None else repr(value)
                        yield Clause(f"{place}.{attribute}", COMPARISONS[name].expected.format(expected), actual)


def _seen(operand: object, event: Event) -> str:
    """Return the attributes used by a filter, with the values of the event."""
    names = dict.fromkeys(_attributes(operand))
    return ", ".join(f"{name} {event.attribute(name)!r}" for name in names)


def _attributes(operand: object) -> Iterator[str]:
    for part in operand if isinstance(operand, list) else [operand]:
        assert isinstance(part, Mapping)  # it compiled
        for name, inner in part.items():
            if name in COMPARISONS:
                yield from map(str, inner)
            else:
                yield from _attributes(inner)
