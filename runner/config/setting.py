"""`--set a.b=c`: values of the command line that replace those of the file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .errors import Fault, KeyPath, complaint, got, path_text
from .inclusion import INCLUDE
from .keys import known_keys
from .schema import Config
from .source import Source, parse_source
from .substitution import Substitution

__all__ = ["apply_settings", "parse_setting"]

# A key, a quoted key, or an index, with what separates it from the one before.
_STEP = re.compile(r"""(?:\A|\.)(?:"([^"]*)"|'([^']*)'|([^.\[\]"'=]+))|\[(\d{1,6})\]""")


def parse_setting(text: str) -> tuple[KeyPath, str]:
    """
    Return the path and the YAML of `a.b[0].c=value`; a key with dots is quoted: `types."order.*".schema=…`.

    Raises:
        ValueError: the text is malformed.
    """
    steps: list[str | int] = []
    end = 0
    while match := _STEP.match(text, end):
        double, single, plain, index = match.groups()
        steps.append(
            int(index) if index is not None else next(key for key in (double, single, plain) if key is not None)
        )
        end = match.end()
    if not steps or isinstance(steps[0], int) or text[end : end + 1] != "=":
        raise ValueError("expected KEY=VALUE with a key of the file, such as worker.batch=100 or strategies[0]=polling")
    return tuple(steps), text[end + 1 :]


def apply_settings(source: Source, settings: Iterable[str], environ: Mapping[str, str]) -> None:
    """
    Put the values into the document, in their order; each is YAML, and may refer to the environment.

    A missing section is created, a missing item of a list is not. Errors are faults of `--set KEY`.

    Raises:
        ConfigError: a setting has no form that can be read.
    """
    for text in settings:
        try:
            path, value = parse_setting(text)
        except ValueError as error:
            raise ConfigError(f"--set {got(text.partition('=')[0])}: {error}") from None
        file = f"--set {path_text(path)}"
        given = parse_source(value.encode(errors="replace"), Substitution(environ, Path.cwd()), base=Path.cwd())
        try:
            _put(source, path, given.value, file)
        except ValueError as error:
            source.faults.append(Fault(str(error), (), None, file))
            continue
        _keep_places(source, path, given, file)


def _put(source: Source, path: KeyPath, value: Any, file: str) -> None:
    """Put a value at its path. Raise `ValueError` if that leads nowhere."""
    if path[0] == INCLUDE:
        raise ValueError("only files include others")
    place = source.value
    for length, step in enumerate(path):
        inside = path[: length + 1]
        where = path_text(path[:length])
        key: str | int
        if isinstance(place, list):
            key = _index(step, len(place), where)
        elif isinstance(place, dict) and isinstance(step, str):
            key = step
            _check_known(source, inside)
        elif isinstance(place, dict):
            raise ValueError(f"{where} is a mapping; expected one of its keys instead of [{step}]")
        else:
            raise ValueError(f"{where} is {_shape(place)}; set it whole: --set '{where}={{…}}'")
        if length == len(path) - 1:
            place[key] = value
        elif isinstance(place, dict) and place.get(key) is None:
            if isinstance(path[length + 1], int):
                raise ValueError(f"{path_text(inside)} has no items; set it whole: --set '{path_text(inside)}=[…]'")
            place[key] = {}
            source.origins[inside] = (file, inside)
            source.positions.pop(inside, None)
        place = place[key]


def _check_known(source: Source, path: KeyPath) -> None:
    """Raise `ValueError` for an unknown key."""
    known = known_keys(Config, path[:-1])
    if known and path[-1] not in known and ":" not in str(path[-1]):  # kinds of third parties contain one
        raise ValueError(complaint(str(path[-1]), known, what="key"))


def _index(step: str | int, length: int, where: str) -> int:
    index = int(step) if isinstance(step, str) and step.isdecimal() and len(step) < 7 else step
    if isinstance(index, str):
        raise ValueError(f"{where} is a list; expected an index such as {where}[0]")
    if index >= length:
        has = f"has {length} item{'' if length == 1 else 's'}, from [0]" if length else "is an empty list"
        raise ValueError(f"{where} {has}; an item cannot be added, only the whole list be set")
    return index


def _shape(value: object) -> str:
    return "text" if isinstance(value, str) else got(value)


def _keep_places(source: Source, path: KeyPath, given: Source, file: str) -> None:
    """Forget the places at and below `path`, and record the setting as the place of the new value."""
    depth = len(path)
    for forgotten in [each for each in source.positions if each[:depth] == path]:
        del source.positions[forgotten]
    for left in [each for each in source.origins if each[:depth] == path]:
        del source.origins[left]
    source.broken = {each for each in source.broken if each[:depth] != path}
    source.faults = [each for each in source.faults if each.file or each.path[:depth] != path]
    for length in range(1, depth):
        if path[:length] not in source.positions:
            source.origins.setdefault(path[:length], (file, path[:length]))
    source.origins[path] = (file, ())
    for inside in given.positions:
        if inside:
            source.origins[path + inside] = (file, path + inside)
    source.broken |= {path + inside for inside in given.broken}
    if given.faults and given.value is None:
        source.broken.add(path)
    source.templates |= given.templates
    source.faults += [Fault(each.message, path + each.path if each.path else (), None, file) for each in given.faults]
    source.files |= given.files
