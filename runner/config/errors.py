"""Faults of a configuration file: where they are, and how values are named in them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import ConfigError

__all__ = ["Fault", "KeyPath", "Position", "complaint", "config_error", "got", "path_text", "quoted"]

KeyPath = tuple[str | int, ...]
Position = tuple[int, int]

_MOST = 100  # faults that are listed; whoever has more is helped by the first ones
_LONGEST_ECHO = 60  # characters of a wrong value that are repeated
_SIMPLE_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_:./-]*\Z")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong; line and column count from 1, a position of None is the file as a whole."""

    message: str
    path: KeyPath = ()
    position: Position | None = None

    def line(self, file: str) -> str:
        """Return the fault in one line: `prod.yaml:14:7: subscriptions[1].sink: …`."""
        place = file if self.position is None else f"{file}:{self.position[0]}:{self.position[1]}"
        return ": ".join(part for part in (place, path_text(self.path), self.message) if part)


def config_error(file: str, faults: Iterable[Fault]) -> ConfigError:
    """Return the error that lists the faults in the order of the file."""
    ordered = sorted(faults, key=lambda fault: fault.position or (0, 0))
    lines = list(dict.fromkeys(fault.line(file) for fault in ordered))
    if len(lines) > _MOST:
        lines = [*lines[:_MOST], f"{file}: … and {len(lines) - _MOST} more faults"]
    return ConfigError(*lines)


def path_text(path: KeyPath) -> str:
    """Return the path as people write it: `subscriptions[1].retry`; anything odd in a key is escaped."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + (step if _SIMPLE_KEY.match(step) else quoted(step))
    return text


def quoted(text: str) -> str:
    """Return the text in quotes, in one line, printable, and cut when long."""
    return repr(text if len(text) <= _LONGEST_ECHO else text[:_LONGEST_ECHO] + "…")


def got(value: object) -> str:
    """Return how a wrong value is named in a message."""
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


def complaint(word: str, expected: Iterable[str], *, what: str) -> str:
    """Return `unknown WHAT 'word', expected one of: …; did you mean '…'?`."""
    known = sorted(expected)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    one_of = f"expected one of: {', '.join(known)}" if known else "there is none"
    return f"unknown {what} {quoted(word)}, {one_of}" + (f"; did you mean {quoted(close[0])}?" if close else "")
