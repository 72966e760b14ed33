"""
Filters: which events of the matching types a subscription wants.

The dialects are those required by the CloudEvents Subscriptions API 1.0 (§3.2.4): `exact`, `prefix`, `suffix`, `all`,
`any`, `not`. An attribute an event does not have never matches.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ..errors import RunnerError
from ..event import Event

__all__ = ["COMPARISONS", "DIALECTS", "Comparison", "FilterError", "Predicate", "compile_filter"]

Predicate = Callable[[Event], bool]


class Comparison(NamedTuple):
    """
    A dialect that compares attributes of an event.

    Attributes:
        holds: takes the value of an attribute and the operand.
        expected: the same in words, for `runner why`.
    """

    holds: Callable[[str, str], bool]
    expected: str


COMPARISONS: Mapping[str, Comparison] = MappingProxyType(
    {
        "exact": Comparison(operator.eq, "to be {!r}"),
        "prefix": Comparison(str.startswith, "to begin with {!r}"),
        "suffix": Comparison(str.endswith, "to end with {!r}"),
    }
)
DIALECTS = (*COMPARISONS, "all", "any", "not")
"""Every dialect; the last three combine other filters."""

_MAX_DEPTH = 16
_NAME = re.compile(r"[a-z0-9]+\Z")
_ONE_OF = f"one of: {', '.join(sorted(DIALECTS))}"


class FilterError(RunnerError, ValueError):
    """A filter does not compile; the message starts with the place inside it."""


def compile_filter(spec: Mapping[str, Any]) -> Predicate:
    """
    Return the predicate `spec` describes.

    Several dialects in one mapping, and several attributes in one dialect, must all hold.

    Args:
        spec: such as `{"prefix": {"subject": "eu/"}, "not": {"exact": {"source": "/test"}}}`.

    Raises:
        FilterError: an unknown dialect, or an operand of the wrong shape.
    """
    return _compile(spec, "", 0)


def _compile(spec: object, where: str, depth: int) -> Predicate:
    if depth > _MAX_DEPTH:
        raise FilterError(f"{where}: nested deeper than {_MAX_DEPTH}")
    if not isinstance(spec, Mapping) or not spec:
        raise FilterError(f"{where or 'filter'}: expected a mapping with {_ONE_OF}")
    return _every(
        [_dialect(str(name), operand, f"{where}.{name}".lstrip("."), depth) for name, operand in spec.items()]
    )


def _dialect(name: str, operand: object, where: str, depth: int) -> Predicate:
    if (comparison := COMPARISONS.get(name)) is not None:
        return _attributes(operand, where, comparison.holds)
    match name:
        case "all" | "any":
            if not isinstance(operand, list) or not operand:
                raise FilterError(f"{where}: expected a non-empty list of filters")
            parts = [_compile(part, f"{where}[{index}]", depth + 1) for index, part in enumerate(operand)]
            return _every(parts) if name == "all" else lambda event: any(part(event) for part in parts)
        case "not":
            inner = _compile(operand, where, depth + 1)
            return lambda event: not inner(event)
        case _:
            raise FilterError(f"{where}: unknown dialect {name!r}, expected {_ONE_OF}")


def _every(parts: list[Predicate]) -> Predicate:
    return parts[0] if len(parts) == 1 else lambda event: all(part(event) for part in parts)


def _attributes(operand: object, where: str, holds: Callable[[str, str], bool]) -> Predicate:
    if not isinstance(operand, Mapping) or not operand:
        raise FilterError(f"{where}: expected a mapping of attribute to text")
    return _every([_attribute(str(name), expected, f"{where}.{name}", holds) for name, expected in operand.items()])


def _attribute(name: str, expected: object, where: str, holds: Callable[[str, str], bool]) -> Predicate:
    if not _NAME.match(name):
        raise FilterError(
            f"{where}: expected the name of an attribute, which is of a-z and 0-9; data cannot be filtered"
        )
    if not isinstance(expected, str) or not expected:
        raise FilterError(f"{where}: expected a non-empty text; quote it")

    def predicate(event: Event) -> bool:
        value = event.attribute(name)
        return value is not None and holds(value, expected)

    return predicate
