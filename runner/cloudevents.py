"""
The CloudEvents codec: JSON event format, HTTP binding and NATS binding, all version 1.0.2.

`data` is bytes, and stays the bytes that came: what a producer sent is what every sink gets, whatever
the mode it came in. Only the JSON format, which embeds JSON data in its own text, drops the line
breaks and the outer blanks of it, so that one event is one line.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

import orjson

from .errors import EventError
from .event import Event, new_id

__all__ = [
    "BATCH_FORMAT",
    "decode_json",
    "encode_batch",
    "encode_exactly",
    "encode_json",
    "from_http",
    "from_nats",
    "to_http",
    "to_http_structured",
    "to_nats",
]

_SPECVERSION = "1.0"
_JSON_FORMAT = "application/cloudevents+json"
BATCH_FORMAT = "application/cloudevents-batch+json"
"""Media type of `encode_batch()`."""

_ATTRIBUTES = ("type", "source", "id", "subject", "time", "datacontenttype", "dataschema")
_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.(?P<fraction>\d+))?(?P<offset>[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)\Z",
    re.ASCII,
)
_BLANK = " \t\r\n"
_OPENING = re.compile(rf"\{{[{_BLANK}]*\}}?")
_COLON = re.compile(rf"[{_BLANK}]*:[{_BLANK}]*")
_NEXT_MEMBER = re.compile(rf"[{_BLANK}]*[,}}][{_BLANK}]*")
_LINE_BREAK = re.compile(rb"[\r\n][ \t\r\n]*")  # in JSON only ever between values
# Named by strangers: those in use whose codecs take linear time. Python knows dozens more, not all of them of texts.
_CHARSETS = (
    *(
        "utf-8",
        "us-ascii",
        "utf-16",
        "utf-16be",
        "utf-16le",
        "utf-32",
        "windows-31j",
        "shift_jis",
        "euc-jp",
        "iso-2022-jp",
    ),
    *("gb2312", "gbk", "gb18030", "big5", "euc-kr", "koi8-r", "koi8-u", "macintosh", "tis-620"),
    *(f"iso-8859-{part}" for part in (*range(1, 12), *range(13, 17))),
    *(f"windows-{page}" for page in (874, *range(1250, 1259))),
)
_ALIASES = {
    "utf8": "utf-8",
    "ascii": "us-ascii",
    "latin1": "iso-8859-1",
    "latin-1": "iso-8859-1",
    "cp1252": "windows-1252",
    "sjis": "shift_jis",
}
_PYTHON = {"windows-31j": "cp932", "windows-874": "cp874", "macintosh": "mac-roman"}
_CODECS = {name: _PYTHON.get(name, name) for name in _CHARSETS}
_CODECS |= {alias: _CODECS[name] for alias, name in _ALIASES.items()}
_DECODER = json.JSONDecoder()
# Printable ASCII, without the three that HTTP binding §3.1.3.2 wants encoded: space, double quote, percent.
_PLAIN_IN_HEADER = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')


# --- JSON event format -----------------------------------------------------------------------------


def decode_json(document: bytes | str, *, assign_id: bool = False) -> Event:
    """
    Return the event one JSON document describes (JSON event format §3).

    JSON data is kept as the very text that stands in the document. Data without a `datacontenttype`
    is `application/json` (§3.1.2).

    Args:
        assign_id: give an event without `id` a new one, instead of refusing it.

    Raises:
        EventError: this is not JSON, names a member twice, or breaks CloudEvents 1.0.
    """
    members = _members(document)
    version, _ = members.pop("specversion", (None, ""))
    if version != _SPECVERSION:
        raise EventError(f"specversion: expected {_SPECVERSION!r}, got {_shown(version)}")
    data = members.pop("data", None)
    encoded = members.pop("data_base64", (None, ""))[0]
    # null is the same as absent, for every attribute (§2.2)
    given = {name: value for name, (value, _) in members.items() if value is not None}
    if assign_id:
        given.setdefault("id", new_id())
    if encoded is not None:
        if data is not None:
            raise EventError("data, data_base64: expected one of them, got both")
        return _event(given, _from_base64(encoded))
    if data is None:
        return _event(given, None)
    content_type = given.setdefault("datacontenttype", "application/json")
    if not isinstance(content_type, str):
        raise EventError(f"datacontenttype: expected a string, got {_shown(content_type)}")
    return _event(given, _data_bytes(*data, content_type))


def encode_json(event: Event) -> bytes:
    """
    Return the event as one line of JSON (JSON event format §3), without a line break.

    JSON data is embedded as it is, text as a string; anything else, and what is not what its content
    type says, goes into `data_base64`.
    """
    document = _document(event)
    if event.data is not None:
        document.update(_embedded(event.data, event.datacontenttype))
    return orjson.dumps(document)


def encode_exactly(event: Event) -> bytes:
    """Return the event as `encode_json()` does, but so that `decode_json()` returns the very bytes of its data."""
    line = encode_json(event)
    if event.data is None:
        return line
    again = decode_json(line)
    if (again.data, again.datacontenttype) == (event.data, event.datacontenttype):
        return line
    return orjson.dumps(_document(event) | {"data_base64": base64.b64encode(event.data).decode()})


def _document(event: Event) -> dict[str, Any]:
    document: dict[str, Any] = {"specversion": _SPECVERSION}
    for name in _ATTRIBUTES:
        value = getattr(event, name)
        if value is not None:
            document[name] = _timestamp(value) if name == "time" else value
    document.update(event.extensions)
    return document


def encode_batch(events: Iterable[Event]) -> bytes:
    """
    Return the events as one JSON array (JSON batch format §4).

    Raises:
        EventError: one of them breaks CloudEvents 1.0.
    """
    documents = []
    for event in events:
        event.validate()
        documents.append(encode_json(event))
    return b"[" + b",".join(documents) + b"]"


def _members(document: bytes | str) -> dict[str, tuple[Any, str]]:
    """Return the members of a JSON object, each as its value and as the text it was written in."""
    try:
        # orjson is the strict one: UTF-8, no NaN, no lone surrogates, bounded depth
        if not isinstance(orjson.loads(document), dict):
            raise EventError("expected one JSON object, a CloudEvent")
        text = document.decode() if isinstance(document, bytes) else document
        return _scan(text.strip(_BLANK))
    except EventError:
        raise
    except (ValueError, RecursionError) as error:
        raise EventError(f"not a JSON document: {str(error) or type(error).__name__}") from error


def _scan(text: str) -> dict[str, tuple[Any, str]]:
    """
    Find the members of `text`, which is a JSON object.

    The standard library's decoder tells where a value ends; orjson does not, takes the last of two
    members with one name, and makes floats of large integers.
    """
    decode = _DECODER.raw_decode
    members: dict[str, tuple[Any, str]] = {}
    position = _after(_OPENING, text, 0)
    while position < len(text):
        name, position = decode(text, position)
        start = _after(_COLON, text, position)
        value, position = decode(text, start)
        if name in members:
            raise EventError(f"{name}: given twice")
        members[name] = (value, text[start:position])
        position = _after(_NEXT_MEMBER, text, position)
    return members


def _after(pattern: re.Pattern[str], text: str, position: int) -> int:
    found = pattern.match(text, position)
    if found is None:
        raise EventError(f"not a JSON document: unexpected text at character {position}")
    return found.end()


def _event(given: Mapping[str, Any], data: bytes | None) -> Event:
    attributes = {name: given[name] for name in _ATTRIBUTES if name in given}
    for name in ("id", "source", "type"):
        if name not in attributes:
            raise EventError(f"{name}: missing; CloudEvents 1.0 requires it")
    if "time" in attributes:
        attributes["time"] = _time(attributes["time"])
    extensions = {name: value for name, value in given.items() if name not in attributes}
    for name, value in extensions.items():
        if not isinstance(value, str | int):
            raise EventError(f"extension {name!r}: expected a string, an integer or a boolean, got {_shown(value)}")
    event = Event(**attributes, extensions=extensions, data=data)
    event.validate()
    return event


def _data_bytes(value: Any, text: str, content_type: str) -> bytes | None:
    if _is_json(content_type):
        return text.encode()
    if value is None:
        return None
    if not isinstance(value, str):
        raise EventError(f"data: expected a string, because datacontenttype is {content_type!r}; got {_shown(value)}")
    codec = _CODECS.get(_charset(content_type))
    if codec is None:
        charset = _shown(_charset(content_type))
        raise EventError(
            f"data: expected a charset in common use, such as utf-8 or iso-8859-1, got {charset}; use data_base64"
        )
    try:
        return value.encode(codec)
    except ValueError as error:
        raise EventError(f"data: cannot be encoded as {content_type!r} asks; use data_base64") from error


def _from_base64(encoded: object) -> bytes:
    if not isinstance(encoded, str):
        raise EventError(f"data_base64: expected a string, got {_shown(encoded)}")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise EventError("data_base64: expected Base64 (RFC 4648 §4)") from error


def _embedded(data: bytes, content_type: str | None) -> dict[str, Any]:
    if content_type is not None:
        try:
            if _is_json(content_type):
                orjson.loads(data)
                return {"data": orjson.Fragment(_LINE_BREAK.sub(b" ", data.strip(b" \t\r\n")))}
            if content_type.startswith("text/") and _CODECS.get(_charset(content_type)) == "utf-8":
                return {"data": data.decode()}
        except ValueError:
            pass  # the content type promises what the data is not; Base64 carries it all the same
    return {"data_base64": base64.b64encode(data).decode()}


@lru_cache(maxsize=256)
def _is_json(content_type: str) -> bool:
    """Return whether the media type is `*/json` or `*/*+json` (JSON event format §3.1.1)."""
    subtype = content_type.partition(";")[0].strip().lower().partition("/")[2]
    return subtype == "json" or subtype.endswith("+json")


@lru_cache(maxsize=256)
def _charset(content_type: str) -> str:
    found = re.search(r";\s*charset\s*=\s*\"?([^\s\";]+)", content_type, re.IGNORECASE)
    return found[1].lower() if found else "utf-8"


def _time(value: object) -> datetime:
    """Return a timestamp of RFC 3339 §5.6 in UTC; digits beyond microseconds are cut off."""
    found = _RFC3339.match(value) if isinstance(value, str) else None
    try:
        if found is None:
            raise ValueError("no match")
        offset = "+00:00" if found["offset"] in "Zz" else found["offset"]
        fraction = (found["fraction"] or "0")[:6].ljust(6, "0")
        return datetime.fromisoformat(f"{found[0][:19].upper()}.{fraction}{offset}").astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise EventError(f"time: expected RFC 3339, such as '2026-01-31T12:00:00Z', got {_shown(value)}") from error


def _timestamp(time: datetime) -> str:
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _shown(value: object) -> str:
    """Return how an error shows a value: short, and with nothing in it that could drive a terminal."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    return ascii(value if not isinstance(value, str) or len(value) <= 40 else value[:40] + "...")


# --- HTTP and NATS, binary mode --------------------------------------------------------------------


def to_http(event: Event) -> tuple[dict[str, str], bytes]:
    """
    Return the headers and the body of the event in binary mode (HTTP binding §3.1).

    Raises:
        EventError: the event breaks CloudEvents 1.0, so that a header could be forged with it.
    """
    headers = _headers(event)
    if event.datacontenttype is not None:
        headers["content-type"] = event.datacontenttype
    return headers, event.data or b""


def to_http_structured(event: Event) -> tuple[dict[str, str], bytes]:
    """
    Return the headers and the body of the event in structured mode (HTTP binding §3.2).

    Raises:
        EventError: the event breaks CloudEvents 1.0.
    """
    event.validate()
    return {"content-type": _JSON_FORMAT}, encode_json(event)


def from_http(headers: Mapping[str, str], body: bytes) -> Event:
    """
    Return the event of one HTTP message in binary or structured mode (HTTP binding §3).

    Header values have no types: an extension that was an integer is now its text. An empty body is no data.

    Args:
        headers: whose `items()` may give a name several times; upper and lower case are the same.

    Raises:
        EventError: it is no event, a batch, or breaks CloudEvents 1.0.
    """
    content_type = next((value for name, value in headers.items() if name.lower() == "content-type"), None)
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type == _JSON_FORMAT:
        return decode_json(body)
    if media_type.startswith("application/cloudevents"):
        raise EventError(f"content-type: expected {_JSON_FORMAT!r} or the event's own, got {_shown(media_type)}")
    given = _from_headers(headers)
    if "datacontenttype" in given:
        raise EventError("ce-datacontenttype: not allowed, content-type says it (HTTP binding §3.1.1)")
    if content_type:
        given["datacontenttype"] = content_type
    return _event(given, body or None)


def to_nats(event: Event) -> tuple[dict[str, str], bytes]:
    """
    Return the headers and the payload of the event in binary mode (NATS binding §3.1).

    Raises:
        EventError: the event breaks CloudEvents 1.0, so that a header could be forged with it.
    """
    headers = _headers(event)
    if event.datacontenttype is not None:
        headers["ce-datacontenttype"] = _quoted(event.datacontenttype)
    return headers, event.data or b""


def from_nats(headers: Mapping[str, str], payload: bytes) -> Event:
    """
    Return the event of one NATS message in binary mode (NATS binding §3.1); see `from_http()`.

    Raises:
        EventError: it is no event, or breaks CloudEvents 1.0.
    """
    return _event(_from_headers(headers), payload or None)


def _headers(event: Event) -> dict[str, str]:
    event.validate()
    headers = {"ce-specversion": _SPECVERSION}
    for name in ("type", "source", "id", "subject", "dataschema"):
        value = getattr(event, name)
        if value is not None:
            headers[f"ce-{name}"] = _quoted(value)
    if event.time is not None:
        headers["ce-time"] = _timestamp(event.time)
    for name, extension in event.extensions.items():
        headers[f"ce-{name}"] = _CANONICAL[type(extension)](extension)
    return headers


def _from_headers(headers: Mapping[str, str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for raw_name, value in headers.items():
        name = raw_name.lower()
        if not name.startswith("ce-"):
            continue
        if name[3:] in given:
            raise EventError(f"{name}: given twice")
        given[name[3:]] = _unquoted(name, value)
    version = given.pop("specversion", None)
    if version != _SPECVERSION:
        raise EventError(f"ce-specversion: expected {_SPECVERSION!r}, got {_shown(version)}")
    return given


def _quoted(text: str) -> str:
    return quote(text, safe=_PLAIN_IN_HEADER)


# The canonical text of each type (CloudEvents 1.0 §3.1); bool comes out as `true`, never as Python's `True`.
_CANONICAL: Mapping[type, Callable[[Any], str]] = {
    str: _quoted,
    int: str,
    bool: lambda value: "true" if value else "false",
}


def _unquoted(name: str, value: str) -> str:
    """Undo quotes, then one round of percent-encoding (HTTP binding §3.1.3.2)."""
    value = value.strip(" \t")
    if not value.isascii():
        raise EventError(f"{name}: expected printable ASCII, other characters percent-encoded (HTTP binding §3.1.3.2)")
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError as error:
        raise EventError(f"{name}: the percent-encoding is not UTF-8") from error
