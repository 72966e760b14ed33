"""Faults of a configuration file: their places, and the wording of values."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Collection, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from ..errors import ConfigError
from ..log.redaction import MASK, looks_secret, redacted

__all__ = [
    "MOST_FAULTS",
    "Fault",
    "KeyPath",
    "Position",
    "complaint",
    "config_error",
    "got",
    "limited_effort",
    "path_text",
    "quoted",
    "shape",
    "spend",
    "suggestion",
]

KeyPath = tuple[str | int, ...]
Position = tuple[int, int]

MOST_FAULTS = 100
"""The largest number of faults that are listed."""

_MOST_CHOICES = 30  # expected names that are listed
_EFFORT = 20_000  # comparisons of words, for suggestions in one file: about a second's worth
_LONGEST_ECHO = 60  # characters of a wrong value that are repeated
_SCHEME = re.compile(r"[a-z][a-z0-9+]{0,20}")
_LONG_WORD = re.compile(r"[A-Za-z0-9_+=~-]{16,}")
_SIMPLE_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_:./-]*\Z")


@dataclass(frozen=True, slots=True)
class Fault:
    """
    One fault; line and column count from 1, a position of None means the whole file.

    `file` is empty for the file that was asked for, else the included one, or the `--set` of the command line.
    """

    message: str
    path: KeyPath = ()
    position: Position | None = None
    file: str = ""

    def line(self, file: str) -> str:
        """Return the fault in one line, `prod.yaml:14:7: subscriptions[1].sink: …`; `file` was asked for."""
        file = self.file or file
        place = file if self.position is None else f"{file}:{self.position[0]}:{self.position[1]}"
        return ": ".join(part for part in (place, path_text(self.path), self.message) if part)


def config_error(file: str, faults: Iterable[Fault], more: int = 0) -> ConfigError:
    """Return the error that lists `faults` by files and in the order of each; `more` is the number left out."""
    ordered = sorted(dict.fromkeys(faults), key=lambda fault: (fault.file, fault.position or (0, 0)))
    lines = list(dict.fromkeys(redacted(fault.line(file)) for fault in ordered[:MOST_FAULTS]))
    more += max(0, len(ordered) - MOST_FAULTS)
    return ConfigError(*lines, *([f"{file}: … and {more} more faults"] if more else []))


def path_text(path: KeyPath) -> str:
    """Return the path as text, `subscriptions[1].retry`; unusual characters of keys are escaped."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + (step if _is_simple(step) else quoted(step))
    return text


def _is_simple(key: str) -> bool:
    return len(key) <= _LONGEST_ECHO and _SIMPLE_KEY.match(key) is not None and _harmless(key) == key


def quoted(text: str) -> str:
    """Return the text quoted: one line, printable, shortened, without possible credentials."""
    text = _harmless(text[: 10 * _LONGEST_ECHO])
    return repr(text if len(text) <= _LONGEST_ECHO else text[:_LONGEST_ECHO] + "…")


def shape(value: object) -> str:
    """Return the kind of a value, for messages where the value may be a misplaced secret."""
    return "text" if isinstance(value, str) else got(value)


def _harmless(text: str) -> str:
    """Return the text with `***` in place of possible secrets: parts of URLs, logins, headers, tokens."""
    scheme, separator, _ = text.partition("://")
    if separator:
        return f"{scheme if _SCHEME.fullmatch(scheme) else ''}://{MASK}"
    if "@" in text:
        return MASK
    name, separator, _ = text.partition(": ")
    if separator:
        return f"{name if _SIMPLE_KEY.match(name) and not looks_secret(name) else MASK}: {MASK}"
    return _LONG_WORD.sub(lambda word: MASK if looks_secret(word[0]) else word[0], text)


def got(value: object) -> str:
    """Return the wording of a wrong value for a message."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case str():
            return quoted(value)
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case _:
            return quoted(str(value))[1:-1]


def complaint(word: str, expected: Collection[str], *, what: str) -> str:
    """Return `unknown WHAT 'word', expected one of: …; did you mean '…'?`."""
    if len(expected) > _MOST_CHOICES:
        one_of = f"expected one of {len(expected)}"
    elif expected:
        one_of = f"expected one of: {', '.join(sorted(expected))}"
    else:
        one_of = "there is none"
    return f"unknown {what} {quoted(word)}, {one_of}{suggestion(word, expected)}"


def suggestion(word: str, known: Collection[str]) -> str:
    """Return `; did you mean '…'?`; empty if no word is close or the effort is used up."""
    if not spend(len(known)):
        return ""
    close = difflib.get_close_matches(word[:_LONGEST_ECHO], sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {quoted(close[0])}?" if close else ""


def spend(effort: int) -> bool:
    """Spend `effort`, in word comparisons, from the budget of one file; return False when it is used up."""
    left = _efforts.get()
    if left is None:
        return True
    left[0] -= effort
    return left[0] >= 0


@contextlib.contextmanager
def limited_effort() -> Iterator[None]:
    """Limit the word comparisons inside the block; comparing every wrong word with every right one takes minutes."""
    token = _efforts.set([_EFFORT])
    try:
        yield
    finally:
        _efforts.reset(token)


_efforts: ContextVar[list[int] | None] = ContextVar("efforts", default=None)
