"""Faults of a configuration file: where they are, and how values are named in them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import ConfigError
from ..redaction import MASK, looks_secret, redacted

__all__ = ["Fault", "KeyPath", "Position", "complaint", "config_error", "got", "path_text", "quoted", "shape"]

KeyPath = tuple[str | int, ...]
Position = tuple[int, int]

_MOST = 100  # faults that are listed; whoever has more is helped by the first ones
_LONGEST_ECHO = 60  # characters of a wrong value that are repeated
_SCHEME = re.compile(r"[a-z][a-z0-9+]{0,20}")
_LONG_WORD = re.compile(r"[A-Za-z0-9_+=~-]{16,}")
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
    lines = list(dict.fromkeys(redacted(fault.line(file)) for fault in ordered))
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
            text += ("." if text else "") + (step if _is_simple(step) else quoted(step))
    return text


def _is_simple(key: str) -> bool:
    return _SIMPLE_KEY.match(key) is not None and _harmless(key) == key


def quoted(text: str) -> str:
    """Return the text in quotes, in one line, printable, cut when long, and without what may be a credential."""
    text = _harmless(text)
    return repr(text if len(text) <= _LONGEST_ECHO else text[:_LONGEST_ECHO] + "…")


def shape(value: object) -> str:
    """Return what kind of thing a value is, where it may be a secret in the wrong place."""
    return "text" if isinstance(value, str) else got(value)


def _harmless(text: str) -> str:
    """Return the text with `***` in place of what a URL, a login or a header may have of a secret, or a token is."""
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
