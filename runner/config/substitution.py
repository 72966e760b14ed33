"""`${…}` in the values of a configuration file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from ..log.redaction import know
from .errors import quoted
from .value_file import read_value

__all__ = ["LeftOut", "Substitution"]

_TOKEN = re.compile(r"\$\$|\$\{([^}]*)(\}?)", re.DOTALL)
_REFERENCE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::([-?])(.*))?\Z", re.DOTALL)
_NULL = re.compile(r"\$\{[^}]*:-(?:~|null|Null|NULL)\}\Z")
_BARE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_FILE = "file:"
_MAX_CHARACTERS = 4 * 1024 * 1024  # of all substituted values together
_FORMS = "${VAR}, ${VAR:-default}, ${VAR:?message} or ${file:/path}"


class LeftOut(Exception):
    """Signal a value that becomes empty, so that its key counts as missing."""


class Substitution:
    """
    Replace `${VAR}`, `${VAR:-default}`, `${VAR:?message}` and `${file:/path}` in one text, once.

    `$$` stands for one `$`; any other `$` for itself. A variable that is set but empty counts as unset where there is a
    default or a message, as in a shell. A byte order mark and the last line end of a file are dropped; its content
    counts as a secret.
    """

    def __init__(self, environ: Mapping[str, str], base: Path) -> None:
        """Args: base is the directory that relative paths of `${file:…}` start from."""
        self._environ = environ
        self._base = base
        self._room = [_MAX_CHARACTERS]
        self.files: dict[Path, str] = {}  # that were read, with the SHA-256 of their content

    def at(self, base: Path) -> Substitution:
        """Return one for a file in the directory `base`; both share their limit and their `files`."""
        other = Substitution(self._environ, base)
        other._room, other.files = self._room, self.files
        return other

    def apply(self, text: str) -> str:
        """Return the text with every reference replaced. Raise `ValueError` for unset, unreadable or malformed ones."""
        return _TOKEN.sub(self._counted, text)

    def value(self, text: str) -> str | None:
        """
        Return the text of a whole value, or None for `${VAR:-null}`.

        Raises:
            LeftOut: it is empty, and its default allows that: `${VAR:-}`.
            ValueError: as `apply()`, and if it is empty without such a default.
        """
        value = self.apply(text)
        if (
            _NULL.match(text)
            and value in ("~", "null", "Null", "NULL")
            and not self._environ.get(text[2:].split(":")[0])
        ):
            return None
        if value or f"${{{_FILE}" in text:
            return value
        if empty := _BARE.search(text):
            name = empty[1]
            raise ValueError(
                f"environment variable {name} is empty; write ${{{name}:-}} where it may be, to leave the key out"
            )
        raise LeftOut(f"nothing is given by {text}")

    def _counted(self, token: re.Match[str]) -> str:
        value = self._replace(token)
        self._room[0] -= len(value)
        if self._room[0] < 0:
            raise ValueError(f"the substituted values exceed {_MAX_CHARACTERS // 1024 // 1024} MiB in total")
        return value

    def _replace(self, token: re.Match[str]) -> str:
        if token[0] == "$$":
            return "$"
        inside, closed = token[1], token[2]
        if not closed:
            raise ValueError("'${' is never closed; write $${ for the two characters themselves")
        if inside.startswith(_FILE):
            return self._file(inside.removeprefix(_FILE))
        reference = _REFERENCE.match(inside)
        if not reference or "${" in inside:
            raise ValueError(f"expected {_FORMS}, not nested; write $${{ for the two characters themselves")
        return self._variable(reference[1], reference[2], reference[3])

    def _variable(self, name: str, operator: str | None, operand: str | None) -> str:
        value = self._environ.get(name)
        if operator is None and value is not None:
            return value
        if value:
            return value
        if operator == "-":
            return operand or ""
        why = f"environment variable {name} is {'not set' if value is None else 'empty'}"
        if operator == "?" and operand:
            raise ValueError(f"{why}: {' '.join(operand.split())}")
        raise ValueError(f"{why}; set it, or give a default: ${{{name}:-default}}")

    def _file(self, name: str) -> str:
        try:
            value = read_value(self._base / name)
        except ValueError as error:
            raise ValueError(f"file {quoted(name)} {error}") from None
        self.files[self._base / name] = hashlib.sha256(value.encode()).hexdigest()
        for line in value.splitlines():
            know(line)  # a value in a file of its own counts as secret
        return value
