"""`include:`: the files that a configuration consists of, and the one document that they make."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import stat
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .errors import Fault, KeyPath, got, quoted
from .source import MAX_BYTES, MAX_VALUES, Source, parse_source
from .substitution import Substitution

__all__ = ["INCLUDE", "read_source"]

INCLUDE = "include"
_MOST_FILES = 500
# The lists that several files may add items to; any other list is one value.
_JOINED = frozenset({("subscriptions",), ("schedules",), ("strategies",), ("api", "tokens")})
# Sections of named entries; each entry stands in one file.
_NAMED = frozenset({"sinks", "types", "destinations"})
_CALLED = {("subscriptions",): "subscription", ("schedules",): "schedule"}


def read_source(file: str, environ: Mapping[str, str]) -> Source:
    """
    Return the content of `file` and of all files it includes; a problem of an included file is a fault.

    Raises:
        ConfigError: the file itself cannot be read.
    """
    return _Reading(file, environ).all()


class _Reading:
    """
    One reading of a file and of those it includes.

    A file is read once, whatever paths lead to it. The limits of one file hold for all together.
    """

    def __init__(self, file: str, environ: Mapping[str, str]) -> None:
        self._file = file
        self._directory = os.path.dirname(file)
        self._base = Path(os.path.abspath(file)).parent
        self._substitution = Substitution(environ, self._base)
        self._whole = Source()
        self._bytes = 0
        self._read: dict[str, str] = {}  # real path -> place of the `include`

    def all(self) -> Source:
        path = Path(self._file)
        content, real = _content(path, self._file), os.path.realpath(self._file)
        self._bytes = len(content)
        whole = self._whole = parse_source(content, self._substitution)
        whole.files[self._base / path.name] = _digest(content)
        self._read[real] = self._file
        if isinstance(whole.value, dict):
            self._follow(whole, whole.value.pop(INCLUDE, None), self._base, {real: self._file})
        whole.files |= self._substitution.files
        return whole

    def _follow(self, source: Source, patterns: object, base: Path, chain: dict[str, str]) -> None:
        """
        Join the files that `source` includes by `patterns`.

        Args:
            base: directory that they start from.
            chain: the file they stand in, after those that led to it: real path -> path as shown.
        """
        file = "" if len(chain) == 1 else list(chain.values())[-1]
        for path, pattern in _listed(patterns):
            place = source.position(path)
            if isinstance(pattern, str) and glob.has_magic(pattern):
                self._whole.directories.add(_searched(base, pattern))
            try:
                for found in _matching(base, pattern):
                    self._include(found, f"{file or self._file}:{place[0]}:{place[1]}", chain)
            except ValueError as error:
                self._whole.faults.append(Fault(str(error), path, place, file))

    def _include(self, path: Path, named: str, chain: dict[str, str]) -> None:
        """Read a file and join it, and what it includes. Raise `ValueError` if that cannot be done."""
        shown, real = self._shown(path), os.path.realpath(path)
        if real in chain:
            raise ValueError(f"a file cannot include itself: {' -> '.join((*chain.values(), shown))}")
        if real in self._read:
            raise ValueError(f"{quoted(shown)} is included a second time; the first is at {self._read[real]}")
        if len(self._read) > _MOST_FILES:
            raise ValueError(f"more than {_MOST_FILES} files are included")
        self._read[real] = named
        part = self._part(path, shown)
        patterns = part.value.pop(INCLUDE, None)
        _Joining(self._whole, part, shown, self._file).join()
        self._follow(part, patterns, path.parent, {**chain, real: shown})

    def _part(self, path: Path, shown: str) -> Source:
        """Return what the file says; a mapping, if need be an empty one."""
        content, base = _included(path, shown), path.parent
        self._bytes += len(content)
        if self._bytes > MAX_BYTES:
            raise ValueError(f"with {quoted(shown)}, the files are larger than {MAX_BYTES // 1024} KiB together")
        part = parse_source(
            content,
            self._substitution.at(base),
            base=None if base == self._base else base,
            room=MAX_VALUES - self._whole.values,
        )
        self._whole.values += part.values
        self._whole.files[path] = _digest(content)
        if not isinstance(part.value, dict):
            if part.value is not None:
                part.faults.append(Fault("expected a mapping with keys of the configuration", (), part.position(())))
            part.value = {}
        return part

    def _shown(self, path: Path) -> str:
        """Return the path as the user would write it, relative as that of the first file is."""
        return os.path.normpath(os.path.join(self._directory, os.path.relpath(path, self._base)))


def _listed(patterns: object) -> list[tuple[KeyPath, object]]:
    """Return each pattern with its path."""
    if isinstance(patterns, list):
        return [((INCLUDE, index), pattern) for index, pattern in enumerate(patterns)]
    return [] if patterns is None else [((INCLUDE,), patterns)]


def _searched(base: Path, pattern: str) -> Path:
    """Return the directory that a pattern searches: its parts before the first one with a wildcard."""
    steps = itertools.takewhile(lambda step: not glob.has_magic(step), Path(pattern).parts)
    return Path(os.path.normpath(base.joinpath(*steps)))


def _matching(base: Path, pattern: object) -> list[Path]:
    """Return the files that `pattern` matches, by name; a pattern may match none, a path matches itself."""
    if not isinstance(pattern, str) or not pattern or "\0" in pattern:
        raise ValueError(f"expected the path of a file, such as parts/*.yaml, or a list of them, got {got(pattern)}")
    path = os.path.join(base, pattern)
    if not glob.has_magic(pattern) or os.path.exists(path):
        return [Path(os.path.normpath(path))]
    found = list(islice(glob.iglob(os.path.join(glob.escape(str(base)), pattern)), _MOST_FILES + 1))
    return [Path(os.path.normpath(each)) for each in sorted(found) if not os.path.isdir(each)]


class _Joining:
    """
    Join the part of one file to the whole.

    Sections are joined key by key, and lists of subscriptions, schedules, strategies and tokens one after the other.
    Any other value comes from one file; a second one is a fault that names both places.
    """

    def __init__(self, whole: Source, part: Source, file: str, main: str) -> None:
        self._whole = whole
        self._part = part
        self._file = file
        self._main = main
        self._adopted: dict[KeyPath, KeyPath] = {}  # the path in the part -> the path in the whole

    def join(self) -> None:
        whole, part = self._whole, self._part
        self._mapping((), whole.value, part.value)
        for path, position in part.positions.items():
            moved = self._moved(path)
            if moved is not None:
                whole.positions[moved] = position
                whole.origins[moved] = (self._file, path)
        whole.broken |= {self._moved(path) or path for path in part.broken}
        for path, reason in part.left_out.items():
            moved = self._moved(path) or path
            whole.left_out[moved] = reason
            if moved not in whole.positions:
                whole.positions[moved] = part.position(path)
                whole.origins[moved] = (self._file, path)
        whole.templates |= part.templates
        whole.faults += [_in(fault, self._file) for fault in part.faults]

    def _moved(self, path: KeyPath) -> KeyPath | None:
        """Return the path in the whole of the value at `path` in the part; None if it was not adopted."""
        for length in range(1, len(path) + 1):
            if path[:length] in self._adopted:
                return self._adopted[path[:length]] + path[length:]
        return None

    def _mapping(self, path: KeyPath, whole: dict[str, Any], part: dict[str, Any]) -> None:
        for key, value in part.items():
            inside, there = (*path, key), whole.get(key)
            if there is None:
                if value is not None or key not in whole:
                    whole[key] = value
                    self._adopted[inside] = inside
            elif value is None:
                continue
            elif isinstance(there, dict) and isinstance(value, dict) and (not path or path[0] not in _NAMED):
                self._mapping(inside, there, value)
            elif isinstance(there, list) and isinstance(value, list) and inside in _JOINED:
                self._list(inside, there, value)
            else:
                self._fault(f"given at {self._at(inside)} already; only one file may say it", inside)

    def _list(self, path: KeyPath, whole: list[Any], part: list[Any]) -> None:
        names = {_name(item): index for index, item in enumerate(whole)}
        for index, item in enumerate(part):
            self._adopted[*path, index] = (*path, len(whole))
            name = _name(item)
            if path in _CALLED and name is not None and name in names:
                first = self._at((*path, names[name], "name"))
                self._fault(
                    f"a second {_CALLED[path]} is called {quoted(name)}; names are unique, and the first is at {first}",
                    (*path, index, "name"),
                )
                self._whole.broken.add((*path, len(whole), "name"))
            whole.append(item)

    def _at(self, path: KeyPath) -> str:
        place = self._whole.place(path)
        line, column = place.position or (1, 1)
        return f"{place.file or self._main}:{line}:{column}"

    def _fault(self, message: str, path: KeyPath) -> None:
        self._part.faults.append(Fault(message, path, self._part.position(path)))


def _name(item: object) -> str | None:
    name = item.get("name") if isinstance(item, dict) else None
    return name if isinstance(name, str) else None


def _in(fault: Fault, file: str) -> Fault:
    return Fault(fault.message, fault.path, fault.position, file)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _content(path: Path, file: str) -> bytes:
    try:
        with path.open("rb") as opened:
            return opened.read(MAX_BYTES + 1)
    except IsADirectoryError:
        reason = "this is a directory, expected a file"
    except FileNotFoundError:
        reason = "no such file; write one with: runner init"
    except (OSError, ValueError) as error:
        detail = error.strerror if isinstance(error, OSError) else "no valid path"
        reason = f"the file cannot be read: {detail}"
    raise ConfigError(f"{file}: {reason}")


def _included(path: Path, shown: str) -> bytes:
    """Return the content of an included file, which is a regular one. Raise `ValueError` if it cannot be read."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ValueError(f"{quoted(shown)} is a directory; for the files in it add /*.yaml")
        if not stat.S_ISREG(mode):
            raise ValueError(f"{quoted(shown)} is a pipe or a device; expected a regular file")
        with path.open("rb") as opened:
            return opened.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ValueError(f"{quoted(shown)}: no such file") from None
    except OSError as error:
        raise ValueError(f"{quoted(shown)} cannot be read: {error.strerror}") from None
