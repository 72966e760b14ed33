"""The difference of two configurations: which keys changed, and whether a running process can take each."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from .certificates import Certificates
from .dsn import Dsn
from .errors import KeyPath, path_text, quoted
from .fields import Model
from .plugin import Options, Plugin
from .schema import Config

__all__ = ["Change", "Difference", "difference", "is_live"]

_LIVE: tuple[tuple[str, ...], ...] = (
    ("api", "tls"),
    ("api", "tokens"),
    ("breaker",),
    ("destinations",),
    ("include",),  # the content of the files is compared, not their names
    ("lifecycle",),
    ("log",),
    ("retention",),
    ("retry",),
    ("schedules",),
    ("sealing",),
    ("sinks",),
    ("storage", "migrate"),  # this key and the next take effect only at a start
    ("storage", "start_timeout"),
    ("subscriptions",),
    ("types",),
    ("worker", "shutdown_grace"),
)
"""The keys that a running process can change; any other key needs a restart."""

_LOGIN = ("credentials", "password", "token", "user")  # options of connections, used at the next reconnect
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Change:
    """
    One key that differs.

    Attributes:
        path: of the key; named entries go by their names: `subscriptions[crm].retry.delay`.
        was, now: as JSON, secrets as `***`; None where there is none.
        live: whether a running process can change it; otherwise it needs a restart.
        place: its path in the file, up to what is listed by name.
    """

    path: str
    kind: Literal["added", "removed", "changed"]
    was: Any
    now: Any
    live: bool
    place: KeyPath = ()

    def __str__(self) -> str:
        """Return the change of the key, with plain values."""
        plain = all(isinstance(each, str | int | float | None) for each in (self.was, self.now))
        if self.kind != "changed" or not plain or self.was == self.now:
            return self.kind
        return f"changed from {_shown(self.was)} to {_shown(self.now)}"

    def to_json(self) -> dict[str, Any]:
        """Return the change in the form that people and the HTTP interface see."""
        applies = "live" if self.live else "restart"
        return {"path": self.path, "change": self.kind, "was": self.was, "now": self.now, "applies": applies}


def _shown(value: object) -> str:
    return quoted(value) if isinstance(value, str) else str(json.dumps(value))


@dataclass(frozen=True, slots=True)
class Difference:
    """All changes from one configuration to another, in the order of the schema."""

    changes: Sequence[Change] = ()

    @property
    def refused(self) -> Sequence[Change]:
        """The changes that need a restart."""
        return [each for each in self.changes if not each.live]

    def __bool__(self) -> bool:
        return bool(self.changes)


def difference(old: Config, new: Config) -> Difference:
    """
    Return what changed from `old` to `new`.

    Subscriptions, schedules, sinks and tokens are compared by their names: their order means nothing. Parsed values are
    compared, so a default that is written out, or a secret from another source, is no change.
    """
    pairs = _Pair(old, new, old.model_dump(mode="json", by_alias=True), new.model_dump(mode="json", by_alias=True))
    changes = tuple(_changes((), pairs))
    if old.api is not None and new.api is not None:
        # Whether tokens are configured decides how pages and metrics are served, and whom the listener admits; whether
        # TLS is, what it speaks.
        keys = [key for key in ("tokens", "tls") if bool(getattr(old.api, key)) != bool(getattr(new.api, key))]
        fixed = [("api", key) for key in keys]
        changes = tuple(replace(each, live=each.live and each.place[:2] not in fixed) for each in changes)
    return Difference(changes)


@dataclass(frozen=True, slots=True)
class _Pair:
    """The same place in both configurations: the values, and how they are shown."""

    old: Any
    new: Any
    was: Any
    now: Any


def _changes(path: tuple[str | int, ...], pair: _Pair) -> Iterator[Change]:
    if pair.old == pair.new:
        return
    parts = _parts(pair)
    if parts is None:
        yield _change(path, pair)
        return
    for step, part in parts.items():
        yield from _changes((*path, *step), part)


def _parts(pair: _Pair) -> Mapping[tuple[str | int, ...], _Pair] | None:
    """Return the parts of a place, by the steps that lead there; None for one that changes as a whole."""
    old, new, was, now = pair.old, pair.new, pair.was, pair.now
    match old, new:
        case Certificates(), Certificates() if dict(old) == dict(new):
            return None  # the content of a file differs
        case Model(), Model() if type(old) is type(new):
            shown = [(name, info.alias or name) for name, info in type(old).model_fields.items()]
            return {
                (key,): _Pair(getattr(old, name), getattr(new, name), was.get(key), now.get(key)) for name, key in shown
            }
        case Plugin(), Plugin() if old.kind == new.kind and isinstance(old.options, Options):
            return {(old.kind,): _Pair(old.options, new.options, was[old.kind], now[old.kind])}
        case Mapping(), Mapping():
            return _joined({(key,): (each, was[key]) for key, each in old.items()}, _keyed(new, now))
        case tuple(), tuple() if _is_named(old) and _is_named(new):
            return _joined(_by_name(old, was), _by_name(new, now))
        case tuple(), tuple() if len(old) == len(new) and _kinds(old) == _kinds(new) != []:
            return {(index,): _Pair(*each) for index, each in enumerate(zip(old, new, was, now, strict=True))}
    return None


def _keyed(values: Mapping[str, Any], shown: Mapping[str, Any]) -> dict[tuple[str | int, ...], tuple[Any, Any]]:
    return {(key,): (each, shown[key]) for key, each in values.items()}


def _joined(
    old: Mapping[tuple[str | int, ...], tuple[Any, Any]], new: Mapping[tuple[str | int, ...], tuple[Any, Any]]
) -> Mapping[tuple[str | int, ...], _Pair]:
    absent = (_ABSENT, None)
    pairs = {}
    for step in dict.fromkeys((*old, *new)):
        (before, was), (after, now) = old.get(step, absent), new.get(step, absent)
        pairs[step] = _Pair(before, after, was, now)
    return pairs


def _is_named(entries: Sequence[Any]) -> bool:
    return all(isinstance(each, Model) and hasattr(each, "name") for each in entries)


def _by_name(entries: Sequence[Any], shown: Sequence[Any]) -> dict[tuple[str | int, ...], tuple[Any, Any]]:
    """Return the entries by `[name]`; of several of one name, two tokens for instance, the later ones by `[name#2]`."""
    found: dict[tuple[str | int, ...], tuple[Any, Any]] = {}
    for entry, each in zip(entries, shown, strict=True):
        number, step = 1, f"[{entry.name}]"
        while (step,) in found:
            number += 1
            step = f"[{entry.name}#{number}]"
        found[(step,)] = (entry, each)
    return found


def _kinds(entries: Sequence[Any]) -> list[str]:
    return [each.kind for each in entries if isinstance(each, Plugin)]


def _change(path: tuple[str | int, ...], pair: _Pair) -> Change:
    text = ""
    for step in path:
        text += step if isinstance(step, str) and step.startswith("[") else path_text((_DOT, step))[len(_DOT) :]
    text = text.removeprefix(".")
    live = is_live(path) or _is_same_place(pair.old, pair.new)
    place = tuple(itertools.takewhile(lambda step: not (isinstance(step, str) and step.startswith("[")), path))
    if pair.old is _ABSENT:
        return Change(text, "added", None, pair.now, live, place)
    if pair.new is _ABSENT:
        return Change(text, "removed", pair.was, None, live, place)
    return Change(text, "changed", pair.was, pair.now, live, place)


_DOT = "x"  # stands before a step, so that the step is written as one that follows another


def is_live(path: Sequence[str | int]) -> bool:
    """
    Return whether a running process can change the key at `path`; of a DSN only the password.

    Items of lists go by index, or by `[name]` after the key of the list.
    """
    if any(tuple(path[: len(each)]) == each for each in _LIVE):
        return True
    match path:
        case ("storage", "password") | ("strategies", int(), "postgres", "password"):
            return True  # it is also part of the DSN
        case ("strategies", int(), "nats", str(option)):
            return option in _LOGIN
    return False


def _is_same_place(old: object, new: object) -> bool:
    """Return whether two DSNs differ only in the password, which the next connection uses."""
    return isinstance(old, Dsn) and isinstance(new, Dsn) and replace(old, password=new.password) == new
