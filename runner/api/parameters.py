"""Query parameters, read strictly: a misspelt one must not be ignored silently."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection
from datetime import UTC, datetime
from urllib.parse import parse_qsl

from ..cloudevents.attributes import time_of
from ..config.duration import parse_duration
from ..errors import EventError
from ..service.clock import utcnow
from .problems import Problem

__all__ = ["EARLIEST", "LATEST", "bad_parameter", "boolean", "moment", "parameters", "rfc3339"]

_TOKENS = ("access_token", "token", "authorization", "api_key")
_BOOLEANS = {"true": True, "1": True, "": True, "false": False, "0": False}
EARLIEST, LATEST = datetime(1900, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
"""The range of times that every store can compute with."""

_MOST = 50
_LONGEST_SHOWN = 20  # characters of an unknown name that are repeated
_OFFSET = re.compile(r" (\d\d:\d\d)\Z", re.ASCII)  # `+` in a query is a blank


def parameters(query: bytes, known: Collection[str], *, repeated: Collection[str] = ()) -> dict[str, list[str]]:
    """
    Return the values of each parameter that is given.

    Args:
        known: the names there are.
        repeated: those of them that may be given several times.

    Raises:
        Problem: 400 for one that is not known, or given twice; for a token, which never stands in a URL.
    """
    if not query:
        return {}
    try:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MOST, errors="strict")
    except ValueError:
        raise bad_parameter("", f"expected at most {_MOST} parameters, in UTF-8") from None
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        if name.lower() in _TOKENS:
            raise bad_parameter(name.lower(), "a token never stands in a URL; send it as `Authorization: Bearer`")
        if name not in known:
            shown = name if len(name) <= _LONGEST_SHOWN else ""  # it may be a secret
            raise bad_parameter(shown, f"unknown; expected {'one of: ' + ', '.join(known) if known else 'none'}")
        if name in given and name not in repeated:
            raise bad_parameter(name, "given twice")
        if "\0" in value:
            raise bad_parameter(name, "expected text without NUL")  # PostgreSQL has none
        given.setdefault(name, []).append(value)
    return given


def boolean(name: str, text: str) -> bool:
    """Return what `text` says: true or false. Raise a `Problem`."""
    try:
        return _BOOLEANS[text.lower()]
    except KeyError:
        raise bad_parameter(name, "expected true or false") from None


def rfc3339(name: str, text: str) -> datetime:
    """Return the time that `text` says (RFC 3339). Raise a `Problem`."""
    try:
        return time_of(_OFFSET.sub(r"+\1", text))
    except EventError as error:
        raise bad_parameter(name, str(error).removeprefix("time: ")) from None


def moment(name: str, text: str) -> datetime:
    """Return the time that `text` says: RFC 3339, or a duration ago. Raise a `Problem`."""
    with contextlib.suppress(EventError):
        return _within(time_of(_OFFSET.sub(r"+\1", text)))
    try:
        return _within(utcnow() - parse_duration(text))
    except (ValueError, OverflowError):
        raise bad_parameter(name, "expected a time such as 2026-01-31T12:00:00Z, or a duration ago: 10m") from None


def _within(found: datetime) -> datetime:
    return min(max(found, EARLIEST), LATEST)


def bad_parameter(name: str, fault: str) -> Problem:
    """Return the problem of an invalid parameter."""
    shown = ascii(name)[1:-1]
    return Problem(400, "invalid-parameter", f"{shown or 'query'}: {fault}", parameter=shown)
