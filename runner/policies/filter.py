"""
Filters: which events of the matching types a subscription wants.

The dialects are those every implementation of the CloudEvents Subscriptions API 1.0 (§3.2.4) has
to know: `exact`, `prefix`, `suffix`, `all`, `any`, `not`. An attribute an event does not have never matches.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import RunnerError
from ..event import Event

__all__ = ["FilterError", "Predicate", "compile_filter"]

Predicate = Callable[[Event], bool]

_MAX_DEPTH = 16
_NAME = re.compile(r"[a-z0-9]+\Z")
_DIALECTS = ("all", "any", "exact", "not", "prefix", "suffix")


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
        raise FilterError(f"{where or 'filter'}: expected a mapping with one of: {', '.join(_DIALECTS)}")
    return _every(
        [_dialect(str(name), operand, f"{where}.{name}".lstrip("."), depth) for name, operand in spec.items()]
    )


def _dialect(name: str, operand: object, where: str, depth: int) -> Predicate:
    match name:
        case "exact":
            return _attributes(operand, where, lambda expected: lambda value: value == expected)
        case "prefix":
            return _attributes(operand, where, lambda expected: lambda value: value.startswith(expected))
        case "suffix":
            return _attributes(operand, where, lambda expected: lambda value: value.endswith(expected))
        case "all" | "any":
            if not isinstance(operand, list) or not operand:
                raise FilterError(f"{where}: expected a non-empty list of filters")
            parts = [_compile(part, f"{where}[{index}]", depth + 1) for index, part in enumerate(operand)]
            return _every(parts) if name == "all" else lambda event: any(part(event) for part in parts)
        case "not":
            inner = _compile(operand, where, depth + 1)
            return lambda event: not inner(event)
        case _:
            raise FilterError(f"{where}: unknown dialect {name!r}, expected one of: {', '.join(_DIALECTS)}")


def _every(parts: list[Predicate]) -> Predicate:
    return parts[0] if len(parts) == 1 else lambda event: all(part(event) for part in parts)


def _attributes(operand: object, where: str, test: Callable[[str], Callable[[str], bool]]) -> Predicate:
    if not isinstance(operand, Mapping) or not operand:
        raise FilterError(f"{where}: expected a mapping of attribute to text")
    return _every([_attribute(str(name), expected, f"{where}.{name}", test) for name, expected in operand.items()])


def _attribute(name: str, expected: object, where: str, test: Callable[[str], Callable[[str], bool]]) -> Predicate:
    if not _NAME.match(name):
        raise FilterError(
            f"{where}: expected the name of an attribute, which is of a-z and 0-9; data cannot be filtered"
        )
    if not isinstance(expected, str) or not expected:
        raise FilterError(f"{where}: expected a non-empty text; quote it")
    holds = test(expected)

    def predicate(event: Event) -> bool:
        value = event.attribute(name)
        return value is not None and holds(value)

    return predicate
