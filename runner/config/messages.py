"""Turn pydantic's errors into messages for the author of the file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from pydantic_core import ErrorDetails

from .duration import format_duration
from .errors import got, shape, suggestion

__all__ = ["describe", "narrowed"]


def describe(error: Mapping[str, Any], known: Iterable[str]) -> str:
    """
    Return the message for one of pydantic's errors.

    Args:
        error: an item of `ValidationError.errors()`.
        known: the keys that would have been right in that place.
    """
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    match kind:
        case "extra_forbidden":
            return _unknown_key(error["loc"][-1], known)
        case "missing":
            return "this key is required"
        case "value_error":
            return str(context["error"])
        case "literal_error":
            return _no_choice(value, re.findall(r"'([^']*)'", context["expected"]))
        case "string_type":
            return f"expected text, got {_shape(value)}"
        case "string_unicode":
            return "expected text in UTF-8"
        case "string_too_short":
            return "must not be empty"
        case "too_short":
            return "expected a non-empty list"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            bound = context[{"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt"}.get(kind, "le")]
            return f"expected {_COMPARISONS[kind]} {bound}, got {_written(value)}"
    for prefix, expected in _EXPECTED.items():
        if kind.startswith(prefix):
            return f"expected {expected}, got {shape(value) if prefix in _CONTAINERS else got(value)}"
    # Pydantic's own message names the broken rule, and no value.
    return str(error["msg"])


_COMPARISONS = {
    "greater_than": "more than",
    "greater_than_equal": "at least",
    "less_than": "less than",
    "less_than_equal": "at most",
}
_EXPECTED = {
    "int_": "a whole number",
    "float_": "a number",
    "finite_number": "a finite number",
    "bool_": "true or false",
    "model_": "a mapping",
    "dict_": "a mapping",
    "mapping_": "a mapping",
    "tuple_": "a list",
    "list_": "a list",
}
_CONTAINERS = frozenset({"model_", "dict_", "mapping_", "tuple_", "list_"})


def narrowed(error: ErrorDetails) -> ErrorDetails:
    """Return the error of a mapping as that of the key which its text begins with, if that key is in the mapping."""
    given = error["input"]
    if error["type"] != "value_error" or not isinstance(given, Mapping):
        return error
    key, colon, text = str(error["ctx"]["error"]).partition(": ")
    if not colon or key not in given:
        return error
    return {**error, "loc": (*error["loc"], key), "input": given[key], "ctx": {"error": text}}


def _unknown_key(key: object, known: Iterable[str]) -> str:
    if close := suggestion(str(key), known := sorted(known)):
        return f"unknown key{close}"
    return f"unknown key, expected one of: {', '.join(known)}" if known else "unknown key"


def _shape(value: object) -> str:
    """Return the kind of a value that should have been text; its content may be a misplaced secret."""
    match value:
        case bool():
            return "a yes/no value; quote it"
        case int() | float():
            return "a number; quote it"
        case _:
            return got(value)


def _no_choice(value: object, choices: list[str]) -> str:
    hint = suggestion(value, choices) if isinstance(value, str) else ""
    return f"expected one of: {', '.join(choices)}, got {got(value)}{hint}"


def _written(value: object) -> str:
    """Return the wording of a value out of bounds; durations are parsed by then."""
    return format_duration(value) if isinstance(value, timedelta) else got(value)
