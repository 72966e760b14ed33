"""Read untrusted YAML: plain values, and the place of each in the file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from .errors import Fault, KeyPath, Position
from .substitution import LeftOut, Substitution

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_VALUES", "Place", "PlacedText", "Source", "parse_source", "unplaced"]

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 32
MAX_VALUES = 50_000  # mappings, lists and their values; enough for thousands of subscriptions
_MAX_FAULTS = 1000  # after which reading stops

# libyaml if available: the parser in Python takes seconds for what libyaml reads in milliseconds.
_Loader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NO_TAGS = "tags (!name) are not supported; quote a text that begins with '!'"
_TAG = "tag:yaml.org,2002:"
_TEXT_TAGS = frozenset({"str", "timestamp", "value"})  # a date is text until a field says otherwise
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})\Z")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)([eE][-+]?[0-9]+)?\Z|[-+]?\.(inf|nan)\Z", re.IGNORECASE)
_TRUE = frozenset({"yes", "true", "on"})
# YAML 1.1 §4.1.1: what a stream may consist of.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_LEFT_OUT = object()


class PlacedText(str):
    """A text of an included file, with the directory that its paths are relative to."""

    __slots__ = ("base",)
    base: Path


def unplaced(value: Any) -> Any:
    """Return the value with plain text in place of `PlacedText`, for parts that are kept unparsed."""
    match value:
        case PlacedText():
            return str(value)
        case dict():
            return {key: unplaced(inside) for key, inside in value.items()}
        case list():
            return [unplaced(inside) for inside in value]
    return value


class Place(NamedTuple):
    """
    The place of a value.

    `file` is as in `Fault`. `path` counts the items of lists as that file does. The position is None for a value in no
    file.
    """

    file: str
    position: Position | None
    path: KeyPath


@dataclass(slots=True)
class Source:
    """
    The content of a file before validation, or of several that make one document.

    `positions` holds the place of every key and list item. `templates` leads from a substituted value back to the text
    of the file, for messages. The values at the `broken` paths are faults already. Those `left_out` are in the file but
    not in `value`, because their variables are empty; it holds the reasons. `files` holds the SHA-256 of the content of
    every file that was read. `origins` leads to the file and the path in it of a value from another file than the
    first. `directories` are those searched for patterns, `certificates` the files of certificates and keys.
    """

    value: Any = None
    positions: dict[KeyPath, Position] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    broken: set[KeyPath] = field(default_factory=set)
    left_out: dict[KeyPath, str] = field(default_factory=dict)
    files: dict[Path, str] = field(default_factory=dict)
    directories: set[Path] = field(default_factory=set)
    certificates: set[Path] = field(default_factory=set)
    origins: dict[KeyPath, tuple[str, KeyPath]] = field(default_factory=dict)
    values: int = 0

    def place(self, path: KeyPath) -> Place:
        """Return the place of `path`, or of its nearest ancestor that has one."""
        known = path
        while known and known not in self.positions and known not in self.origins:
            known = known[:-1]
        file, own = self.origins.get(known, ("", known))
        if known not in self.positions and known in self.origins:
            return Place(file, None, own if known == path else path)
        return Place(file, self.positions.get(known, (1, 1)), own + path[len(known) :])

    def position(self, path: KeyPath) -> Position:
        """Return the place of `path`, or of its nearest ancestor in the file."""
        while path and path not in self.positions:
            path = path[:-1]
        return self.positions.get(path, (1, 1))


def parse_source(
    content: bytes, substitution: Substitution, *, base: Path | None = None, room: int = MAX_VALUES
) -> Source:
    """
    Parse `content` into a document with its faults; `value` is None if it cannot be read.

    With a `base`, texts are `PlacedText` with it. At most `room` more values are allowed.

    Input that is no configuration is refused early: more than 1 MiB, deeper than 32, anchors and aliases, merge keys,
    tags, a second document, more than 50,000 values or 1,000 faults. Duplicate keys, and keys that are not text, are
    faults.
    """
    source = Source()
    if len(content) > MAX_BYTES:
        source.faults.append(Fault(f"larger than {MAX_BYTES // 1024} KiB; expected a configuration file"))
        return source
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = _text_position(content[: error.start].decode(errors="replace"), error.start)
        source.faults.append(Fault(f"not UTF-8: byte 0x{content[error.start]:02x}", (), place))
        return source
    if forbidden := _FORBIDDEN.search(text):
        place = _text_position(text, forbidden.start())
        source.faults.append(Fault(f"the character U+{ord(forbidden[0]):04X} is not allowed in YAML", (), place))
        return source
    try:
        _Walk(_Loader(text), source, substitution, base, room).document()
    except _NotWorthReading:
        source.value = None
    except yaml.YAMLError as error:
        source.faults.append(_syntax_fault(error, text))
        source.value = None
    return source


class _NotWorthReading(Exception):
    """Stop reading the rest of the file."""


class _Walk:
    """One pass over the parser's events, so that nothing is built before its size is checked."""

    def __init__(self, loader: Any, source: Source, substitution: Substitution, base: Path | None, room: int) -> None:
        self._loader = loader
        self._source = source
        self._substitution = substitution
        self._base = base
        self._room = room

    def document(self) -> None:
        """Read the first document into the source; a second one is a fault."""
        self._next()  # the start of the stream
        if isinstance(self._next(), yaml.StreamEndEvent):
            return
        event = self._next()
        self._source.positions[()] = _position(event)
        self._source.value = _given(self._node(event, (), 0))
        self._next()  # the end of the document
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            self._fault("a second document starts here; expected one", (), event)

    def _next(self) -> Any:
        return self._loader.get_event()

    def _fault(self, message: str, path: KeyPath, event: Any) -> None:
        self._source.faults.append(Fault(message, path, _position(event)))

    def _broken(self, message: str, path: KeyPath, event: Any) -> None:
        self._fault(message, path, event)
        self._source.broken.add(path)

    def _node(self, event: Any, path: KeyPath, depth: int) -> Any:
        self._source.values += 1
        if self._source.values > self._room:
            self._fault(f"more than {MAX_VALUES} values; expected a configuration file", path[:1], event)
            raise _NotWorthReading
        if len(self._source.faults) > _MAX_FAULTS:
            raise _NotWorthReading
        if depth > MAX_DEPTH:
            self._fault(f"nested deeper than {MAX_DEPTH}", path[:3], event)
            raise _NotWorthReading
        if isinstance(event, yaml.AliasEvent):
            self._broken(
                "aliases (*name) are not supported; write the value out, or quote a text that starts with '*'",
                path,
                event,
            )
            return None
        if event.anchor is not None:
            self._fault("anchors (&name) are not supported; write the value out where it is needed", path, event)
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, path)
        if event.tag not in (None, "!", _TAG + ("map" if _is_mapping(event) else "seq")):
            self._broken(_NO_TAGS, path, event)
        return self._mapping(path, depth) if _is_mapping(event) else self._sequence(path, depth)

    def _sequence(self, path: KeyPath, depth: int) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            inside = (*path, len(items))
            self._source.positions.setdefault(inside, _position(event))  # of a duplicate key, the first counts
            value = self._node(event, inside, depth + 1)
            if value is _LEFT_OUT:
                del self._source.positions[inside]  # the next item takes its place
            else:
                items.append(value)
        return items

    def _mapping(self, path: KeyPath, depth: int) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key = self._key(event, path, depth)
            if key is None or (key in entries or (*path, key) in self._source.left_out):
                # Its value is read only for its faults, under a path of its own.
                inside: KeyPath = (*path, key or "?")
                if key is not None:
                    self._duplicate(inside, event)
                self._node(self._next(), inside, depth + 1)
                continue
            inside = (*path, key)
            self._source.positions.setdefault(inside, _position(event))
            value = self._node(self._next(), inside, depth + 1)
            if value is not _LEFT_OUT:
                entries[key] = value
        return entries

    def _duplicate(self, path: KeyPath, event: Any) -> None:
        line, _ = self._source.positions[path]
        self._fault(f"duplicate key; it is given in line {line} already", path, event)

    def _key(self, event: Any, path: KeyPath, depth: int) -> str | None:
        if not isinstance(event, yaml.ScalarEvent):
            self._fault("expected text as a key", path, event)
            self._node(event, path, depth + 1)
            return None
        tag = self._tag(event)
        if tag == "merge":
            self._fault("merge keys (<<) are not supported; write the values out", path, event)
            return None
        if event.anchor is not None:
            self._fault("anchors (&name) are not supported", path, event)
        if tag not in _TEXT_TAGS:
            self._fault("expected text as a key; YAML reads this one as something else: quote it", path, event)
            return None
        return str(event.value)

    def _tag(self, event: Any) -> str:
        tag = event.tag
        if tag is None or tag == "!":
            tag = self._loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        return str(tag).removeprefix(_TAG)

    def _scalar(self, event: Any, path: KeyPath) -> Any:
        text, tag = event.value, self._tag(event)
        if tag in _TEXT_TAGS:
            return self._text(text, path, event)
        if tag == "null":
            return None
        if tag == "bool" and event.tag is None:
            return text.lower() in _TRUE
        if tag == "int" and _DECIMAL.match(text):
            return int(text)
        if tag == "float" and _FLOAT.match(text):
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if tag in ("int", "float"):
            self._broken(
                "YAML reads this number as another one than you do; write a decimal number, or quote it", path, event
            )
            return None
        self._broken(_NO_TAGS, path, event)
        return None

    def _text(self, text: str, path: KeyPath, event: Any) -> Any:
        value = self._substituted(text, path, event)
        if self._base is None or not isinstance(value, str):
            return value
        placed = PlacedText(value)
        placed.base = self._base
        return placed

    def _substituted(self, text: str, path: KeyPath, event: Any) -> Any:
        if "$" not in text:
            return text
        try:
            value = self._substitution.value(text)
        except LeftOut as reason:
            self._source.left_out[path] = str(reason)
            return _LEFT_OUT
        except ValueError as error:
            self._source.faults.append(Fault(str(error), path, self._source.position(path)))
            self._source.broken.add(path)
            return text
        if value is not None and value != text:
            self._source.templates[value] = text
        return value


def _given(value: Any) -> Any:
    return None if value is _LEFT_OUT else value


def _is_mapping(event: Any) -> bool:
    return isinstance(event, yaml.MappingStartEvent)


def _position(event: Any) -> Position:
    return event.start_mark.line + 1, event.start_mark.column + 1


def _text_position(text: str, offset: int) -> Position:
    before = text[:offset]
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _syntax_fault(error: yaml.YAMLError, text: str) -> Fault:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return Fault("not YAML", (), (1, 1))
    line = (text.splitlines()[mark.line :] or [""])[0]
    problem = " ".join(str(getattr(error, "problem", None) or "cannot be read").split())
    hint = ""
    if "${" in line:
        hint = '; quote "${…}" inside [ ] and { }'
    elif "\t" in line:
        hint = "; indent with spaces, not tabs"
    elif first := re.search(r"[*&!@`%|>]", line[max(0, mark.column - 2) : mark.column + 1]):
        hint = f"; a text that starts with {first[0]!r} has to be quoted"
    begun = getattr(error, "context_mark", None)
    where = f" for what begins in line {begun.line + 1}" if begun is not None and begun.line < mark.line else ""
    return Fault(f"not YAML: {problem}{where}{hint}", (), (mark.line + 1, mark.column + 1))
