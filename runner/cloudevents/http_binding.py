"""
The HTTP protocol binding (CloudEvents HTTP binding 1.0.2).

Three modes: *binary* carries attributes as headers and the data as the body, *structured* one JSON document,
*batched* a JSON array of them. The `Content-Type` decides which one a message is in.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

from ..errors import EventError, FormatUnsupported
from ..event import Event
from .attributes import event_of, shown
from .content_types import BATCH_FORMAT, JSON_FORMAT, charset, media_type
from .headers import Headers, attributes_of, headers_of, pairs
from .json_format import decode_batch, decode_json, encode_batch, encode_json

__all__ = [
    "HttpMode",
    "batch_from_http",
    "from_http",
    "http_mode",
    "message_from_http",
    "to_http",
    "to_http_batched",
    "to_http_structured",
]

HttpMode = Literal["binary", "structured", "batched"]

_RESERVED = "application/cloudevents"
_UTF_8 = ("utf-8", "utf8", "us-ascii")


def http_mode(headers: Headers) -> HttpMode:
    """
    Return the mode of a message, which its `Content-Type` decides (HTTP binding §3).

    Raises:
        FormatUnsupported: it is in an event format other than JSON, or in JSON that is not UTF-8.
        EventError: the content type is given twice.
    """
    return _mode(_content_type(headers))


def from_http(headers: Headers, body: bytes) -> Event:
    """
    Return the event of one HTTP message in binary or structured mode (HTTP binding §3).

    Header values have no types: an extension that was an integer is now its text. An empty body is no data.

    Raises:
        FormatUnsupported: it is a batch, or in an event format other than JSON.
        EventError: it is no event, or breaks CloudEvents 1.0.
    """
    content_type = _content_type(headers)
    mode = _mode(content_type)
    if mode == "batched":
        raise FormatUnsupported(
            f"content-type: expected one event, got {shown(BATCH_FORMAT)}, a batch", attribute="content-type"
        )
    return decode_json(body) if mode == "structured" else _binary(content_type, headers, body)


def _binary(content_type: str | None, headers: Headers, body: bytes) -> Event:
    given = attributes_of(headers)
    if "datacontenttype" in given:
        raise EventError(
            "ce-datacontenttype: not allowed, content-type says it (HTTP binding §3.1.1)", attribute="datacontenttype"
        )
    if content_type:
        given["datacontenttype"] = content_type
    return event_of(given, body or None)


def batch_from_http(headers: Headers, body: bytes, *, limit: int | None = None) -> list[Event]:
    """Return the events of one HTTP message in any mode; see `message_from_http()`."""
    return message_from_http(headers, body, limit=limit)[1]


def message_from_http(headers: Headers, body: bytes, *, limit: int | None = None) -> tuple[HttpMode, list[Event]]:
    """
    Return the mode of one HTTP message, and its events: those of a batch, or the one (HTTP binding §3).

    Raises:
        FormatUnsupported: it is in an event format other than JSON.
        EventTooLarge: the batch has more than `limit` events.
        EventError: it is no event, or one of them breaks CloudEvents 1.0.
    """
    content_type = _content_type(headers)
    mode = _mode(content_type)
    if mode == "batched":
        return mode, decode_batch(body, limit=limit)
    return mode, [decode_json(body) if mode == "structured" else _binary(content_type, headers, body)]


def to_http(event: Event) -> tuple[dict[str, str], bytes]:
    """
    Return the headers and the body of the event in binary mode (HTTP binding §3.1).

    Raises:
        EventError: the event breaks CloudEvents 1.0, so that a header could be forged with it.
    """
    headers = headers_of(event)
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
    return {"content-type": JSON_FORMAT}, encode_json(event, one_line=False)


def to_http_batched(events: Iterable[Event]) -> tuple[dict[str, str], bytes]:
    """
    Return the headers and the body of the events in batched mode (HTTP binding §3.3).

    Raises:
        EventError: one of them breaks CloudEvents 1.0.
    """
    return {"content-type": BATCH_FORMAT}, encode_batch(events)


def _content_type(headers: Headers) -> str | None:
    """Return the value of the `Content-Type`, without blanks around it; None where there is none."""
    found = [value.strip(" \t") for name, value in pairs(headers) if len(name) == 12 and name.lower() == "content-type"]
    if len(found) > 1:
        raise EventError("content-type: given twice", attribute="datacontenttype")
    return found[0] if found else None


@lru_cache(maxsize=256)
def _mode(content_type: str | None) -> HttpMode:
    kind = media_type(content_type or "")
    if not kind.startswith(_RESERVED):
        return "binary"
    if kind not in (JSON_FORMAT, BATCH_FORMAT):
        raise FormatUnsupported(
            f"content-type: expected {JSON_FORMAT!r}, {BATCH_FORMAT!r} or the content type of the data,"
            f" got {shown(kind)}",
            attribute="content-type",
        )
    if charset(content_type or "") not in _UTF_8:
        raise FormatUnsupported(
            f"content-type: expected UTF-8, which JSON is in (RFC 8259 §8.1), got {shown(charset(content_type or ''))}",
            attribute="content-type",
        )
    return "structured" if kind == JSON_FORMAT else "batched"
