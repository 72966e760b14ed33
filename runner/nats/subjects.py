"""Subjects of NATS: templates that events fill in, and the patterns of streams that take them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import product

__all__ = ["PLACE", "covers", "meets", "shape"]

PLACE = re.compile(r"\{([^{}]*)\}")
"""A place in a template, such as `{type}`."""

_ONE, _SEVERAL = "*", ">"


def shape(template: str) -> tuple[str, ...]:
    """
    Return the tokens that a template makes: `*` for one that an event decides, `>` for one or more.

    Only a type has dots, so that `{type}` may become several tokens.
    """
    return tuple(
        token if not (places := PLACE.findall(token)) else _SEVERAL if "type" in places else _ONE
        for token in template.split(".")
    )


def covers(pattern: str, tokens: Sequence[str]) -> bool:
    """Return whether the pattern of a stream takes every subject of that shape."""
    wanted = pattern.split(".")
    for index, token in enumerate(tokens):
        if index < len(wanted) and wanted[index] == _SEVERAL:
            return True
        if index >= len(wanted) or token == _SEVERAL:
            return False
        if wanted[index] not in (_ONE, token):
            return False
    return len(wanted) == len(tokens)


def meets(pattern: str, tokens: Sequence[str]) -> bool:
    """Return whether the pattern of a stream takes any subject of that shape."""
    wanted = tuple(pattern.split("."))
    return _meet(wanted, tuple(tokens))


@lru_cache(maxsize=1024)
def _meet(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    if not one or not other:
        return not one and not other
    if one[0] != other[0] and not {one[0], other[0]} & {_ONE, _SEVERAL}:
        return False
    return any(_meet(*rests) for rests in product(_rests(one), _rests(other)) if rests != (one, other))


def _rests(tokens: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Return what may be left of the tokens once the first one has taken a token of a subject."""
    return (tokens[1:], tokens) if tokens[0] == _SEVERAL else (tokens[1:],)
