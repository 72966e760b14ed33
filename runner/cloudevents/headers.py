"""Headers: the attributes of an event as the `ce-` headers of binary mode, the same over HTTP and NATS."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

from ..errors import EventError
from ..event import Event, ExtensionValue
from .attributes import SPECVERSION, check_version, timestamp

__all__ = ["Headers", "attributes_of", "headers_of", "pairs", "quoted", "value_of"]

Headers = Mapping[str, str] | Iterable[tuple[str, str]]
"""Headers by name, or pairs where a name may stand several times; upper and lower case are the same."""

# Printable ASCII, without the three that HTTP binding §3.1.3.2 wants encoded: space, double quote, percent.
_PLAIN = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')
_ENCODED = re.compile(r'[^\x21-\x7e]|["%]')
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"\Z')  # RFC 7230 §3.2.6
_ESCAPE = re.compile(r"\\(.)")
_MOST = 256  # characters of a repeated attribute whose header value is kept
_PREFIXES = frozenset({"ce-", "Ce-", "cE-", "CE-"})


def headers_of(event: Event) -> dict[str, str]:
    """
    Return the headers of every attribute but `datacontenttype`, for which each binding has its own rule.

    Raises:
        EventError: the event breaks CloudEvents 1.0, so that a header could be forged with it.
    """
    event.validate()
    headers = {
        "ce-specversion": SPECVERSION,
        "ce-type": _repeated(event.type),
        "ce-source": _repeated(event.source),
        "ce-id": quoted(event.id),
    }
    if event.subject is not None:
        headers["ce-subject"] = quoted(event.subject)
    if event.dataschema is not None:
        headers["ce-dataschema"] = _repeated(event.dataschema)
    if event.time is not None:
        headers["ce-time"] = timestamp(event.time)
    for name, extension in event.extensions.items():
        headers[f"ce-{name}"] = _canonical(extension)
    return headers


def attributes_of(headers: Headers) -> dict[str, Any]:
    """
    Return what the `ce-` headers say, by the names of the attributes; `specversion` is checked and left out.

    Header values have no types: an extension that was an integer is now its text.

    Raises:
        EventError: a name is given twice, a value is no text, or the version is another.
    """
    given: dict[str, Any] = {}
    for raw_name, value in pairs(headers):
        if raw_name[:3] not in _PREFIXES:
            continue
        name = raw_name[3:].lower()
        if name in given:
            raise EventError(f"ce-{name}: given twice", attribute=name)
        given[name] = value_of(f"ce-{name}", value)
    check_version(given.pop("specversion", None), "ce-specversion")
    return given


def pairs(headers: Headers) -> Iterable[tuple[str, str]]:
    """Return names and values, one pair for each line of the message."""
    if type(headers) is list:  # as servers give them: the check of an abstract class costs as much as a header
        return headers
    return headers.items() if isinstance(headers, Mapping) else headers


def quoted(text: str) -> str:
    """Return the text as a header value, percent-encoded (HTTP binding §3.1.3.2)."""
    return text if _ENCODED.search(text) is None else quote(text, safe=_PLAIN)


def _repeated(text: str) -> str:
    """Return the header value of an attribute that many events share."""
    return _kept(text) if len(text) <= _MOST else quoted(text)


_kept = lru_cache(maxsize=1024)(quoted)


def _canonical(value: ExtensionValue) -> str:
    """Return the text of an extension (CloudEvents 1.0 §3.1); that of a boolean is `true`, never Python's `True`."""
    if isinstance(value, str):
        return quoted(value)
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def value_of(name: str, value: str) -> str:
    """
    Return the text of a header value: quotes undone, then one round of percent-encoding (HTTP binding §3.1.3.2).

    Raises:
        EventError: it is not ASCII, or what is percent-encoded is not UTF-8.
    """
    value = value.strip(" \t")
    if not value.isascii():
        raise EventError(
            f"{name}: expected printable ASCII, other characters percent-encoded (HTTP binding §3.1.3.2)",
            attribute=name[3:],
        )
    if value.startswith('"') and (found := _QUOTED.match(value)):
        value = _ESCAPE.sub(r"\1", found[1])
    if "%" not in value:
        return value
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError as error:
        raise EventError(f"{name}: the percent-encoding is not UTF-8", attribute=name[3:]) from error
