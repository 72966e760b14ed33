"""The JSON event format and the JSON batch format (CloudEvents JSON format 1.0.2)."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable
from typing import Any

import msgspec
import orjson

from ..errors import EventError, EventTooLarge
from ..event import Event, new_id
from .attributes import NAMES, SPECVERSION, check_version, event_of, shown, timestamp
from .content_types import charset, codec, is_json, media_type

__all__ = ["decode_batch", "decode_json", "encode_batch", "encode_exactly", "encode_json"]

_BLANK = " \t\r\n"
_LINE_BREAK = re.compile(rb"[\r\n][ \t\r\n]*")  # in JSON it can only stand between values
_DECODER = json.JSONDecoder()
# How a member begins. Most values are texts without an escape; those are read by the expression itself.
_MEMBER = re.compile(rf'[{{,][{_BLANK}]*"([a-z0-9_]+)"[{_BLANK}]*:[{_BLANK}]*(?:"([^"\\]*)"[{_BLANK}]*(?=[,}}]))?')
_BEFORE_NAME = re.compile(rf"[{{,][{_BLANK}]*")
_COLON = re.compile(rf"[{_BLANK}]*:[{_BLANK}]*")
_BLANKS = re.compile(rf"[{_BLANK}]*")
_BEFORE_ITEM = re.compile(rf"[\[,][{_BLANK}]*")

_SLICES = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])


def decode_json(document: bytes | str, *, assign_id: bool = False) -> Event:
    """
    Return the event one JSON document describes (JSON event format §3).

    JSON data is kept as the exact text in the document. Data without a `datacontenttype` is `application/json`
    (§3.1.2).

    Args:
        document: UTF-8 without a byte order mark, or text.
        assign_id: give an event without `id` a new one, instead of refusing it.

    Raises:
        EventError: this is not JSON, names a member twice, or breaks CloudEvents 1.0.
    """
    try:
        if not isinstance(_strictly(document), dict):
            raise EventError("expected one JSON object, a CloudEvent")
        members, written, _ = _object(_text(document), 0)
        return _event(members, written, assign_id)
    except EventError:
        raise
    except (ValueError, RecursionError) as error:
        raise _no_json(error) from error


def decode_batch(document: bytes | str, *, limit: int | None = None) -> list[Event]:
    """
    Return the events of one JSON array, which may be empty (JSON batch format §4).

    Args:
        document: as in `decode_json()`.
        limit: the largest number of events.

    Raises:
        EventTooLarge: there are more of them.
        EventError: this is not a JSON array of CloudEvents; the error says which one.
    """
    try:
        documents = _strictly(document)
        if not isinstance(documents, list):
            raise EventError("expected one JSON array, a batch of CloudEvents")
        if limit is not None and len(documents) > limit:
            raise EventTooLarge(f"batch: {len(documents)} events, at most {limit} are taken")
        try:
            if (slices := _slices(document, documents)) is not None:
                return list(map(_event, documents, slices))
        except EventError:
            pass  # said below, with its place and the exact value
        return _events(_text(document), documents)
    except EventError:
        raise
    except (ValueError, RecursionError) as error:
        raise _no_json(error) from error


def encode_json(event: Event, *, one_line: bool = True) -> bytes:
    """
    Return the event as one JSON document (JSON event format §3).

    JSON data is embedded as it is, text as a string; anything else, and data that contradicts its content type, goes
    into `data_base64`.

    Args:
        one_line: put a blank in place of each line break of JSON data, so that the document is one line.
    """
    document = _attributes(event)
    if event.data is not None:
        document.update(_embedded(event.data, event.datacontenttype, one_line))
    return orjson.dumps(document)


def encode_exactly(event: Event) -> bytes:
    """Return the event as `encode_json()` does, but so that `decode_json()` returns the very bytes of its data."""
    line = encode_json(event)
    if event.data is None:
        return line
    again = decode_json(line)
    if (again.data, again.datacontenttype) == (event.data, event.datacontenttype):
        return line
    return orjson.dumps(_attributes(event) | {"data_base64": base64.b64encode(event.data).decode()})


def encode_batch(events: Iterable[Event]) -> bytes:
    """
    Return the events as one JSON array (JSON batch format §4).

    Raises:
        EventError: one of them breaks CloudEvents 1.0.
    """
    documents = []
    for event in events:
        event.validate()
        documents.append(encode_json(event, one_line=False))
    return b"[" + b",".join(documents) + b"]"


# --- reading ---------------------------------------------------------------------------------------


def _strictly(document: bytes | str) -> Any:
    """Return what orjson reads; it is strict: UTF-8, no NaN, no lone surrogates, bounded depth."""
    return orjson.loads(document)


def _text(document: bytes | str) -> str:
    return (document.decode() if isinstance(document, bytes) else document).strip(_BLANK)


def _no_json(error: Exception) -> EventError:
    return EventError(f"not a JSON document: {str(error) or type(error).__name__}")


def _slices(document: bytes | str, documents: list[Any]) -> list[bytes | None] | None:
    """
    Return the texts of the members `data` of a JSON array; None where it cannot be told at a glance.

    That no member is there twice shows when what was read, which keeps one of each name, is written again without
    blanks: it is the document without blanks.
    """
    try:
        members = _SLICES.decode(document)
        compact = document if isinstance(document, bytes) else document.encode()
        if msgspec.json.encode(members) != compact:
            compact = msgspec.json.format(compact, indent=-1)
            if msgspec.json.encode(_SLICES.decode(compact)) != compact:
                return None
    except (msgspec.MsgspecError, RecursionError):
        return None
    return [bytes(each["data"]) if "data" in each else None for each in members]


def _events(text: str, documents: list[Any]) -> list[Event]:
    """Return the events of a JSON array that `documents` is the content of."""
    events = []
    position = 0
    for index, each in enumerate(documents):
        try:
            if not isinstance(each, dict):
                raise EventError(f"expected a JSON object, a CloudEvent, got {shown(each)}")
            members, written, position = _object(text, _after(_BEFORE_ITEM, text, position))
            position = _after(_BLANKS, text, position)
            events.append(_event(members, written))
        except EventError as error:
            raise error.in_batch(index, len(documents)) from error
    return events


def _object(text: str, start: int) -> tuple[dict[str, Any], bytes | None, int]:
    """
    Return the members of the JSON object at `start`, the text of the member `data`, and where the object ends.

    The standard library's decoder tells where a value ends; orjson does not, takes the last of two
    members with one name, and makes floats of large integers.
    """
    members: dict[str, Any] = {}
    written = None
    position = start
    while True:
        found = _MEMBER.match(text, position)
        if found is not None:
            name, value = found.groups()
            if value is not None:
                first, end, position = found.start(2) - 1, found.end(2) + 1, found.end()
            else:
                first = found.end()
                value, end = _DECODER.raw_decode(text, first)
                position = _after(_BLANKS, text, end)
        else:
            begin = _after(_BEFORE_NAME, text, position)
            if text[begin] == "}":
                return members, written, begin + 1
            name, position = _DECODER.raw_decode(text, begin)
            first = _after(_COLON, text, position)
            value, end = _DECODER.raw_decode(text, first)
            position = _after(_BLANKS, text, end)
        if name in members:
            raise EventError(f"{shown(name)[1:-1]}: given twice", attribute=name)
        members[name] = value
        if name == "data":
            written = text[first:end].encode()
        if text[position] == "}":
            return members, written, position + 1


def _after(pattern: re.Pattern[str], text: str, position: int) -> int:
    found = pattern.match(text, position)
    if found is None:
        raise EventError(f"not a JSON document: unexpected text at character {position}")
    return found.end()


def _event(members: dict[str, Any], written: bytes | None, assign_id: bool = False) -> Event:
    """Return the event of the members of a JSON object, which are used up; `written` is the text of its `data`."""
    check_version(members.pop("specversion", None))
    data = members.pop("data", None)
    encoded = members.pop("data_base64", None)
    if None in members.values():  # the same as absent, for every attribute (§2.2)
        members = {name: value for name, value in members.items() if value is not None}
    if assign_id:
        members.setdefault("id", new_id())
    if encoded is not None:
        if written is not None:
            raise EventError("data, data_base64: expected one of them, got both", attribute="data_base64")
        return event_of(members, _from_base64(encoded))
    if written is None:
        return event_of(members, None)
    content_type = members.setdefault("datacontenttype", "application/json")
    if not isinstance(content_type, str):
        raise EventError(f"datacontenttype: expected a string, got {shown(content_type)}", attribute="datacontenttype")
    return event_of(members, written if is_json(content_type) else _from_text(data, content_type))


def _from_text(value: object, content_type: str) -> bytes | None:
    """Return the bytes of data that is no JSON, in the charset of its content type."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise EventError(
            f"data: expected a string, because datacontenttype is {shown(content_type)}; got {shown(value)}",
            attribute="data",
        )
    codec_name = codec(content_type)
    if codec_name is None:
        raise EventError(
            "data: expected a charset in common use, such as utf-8 or iso-8859-1, got"
            f" {shown(charset(content_type))}; use data_base64",
            attribute="data",
        )
    try:
        return value.encode(codec_name)
    except ValueError as error:
        raise EventError(
            f"data: cannot be encoded as {shown(content_type)} asks; use data_base64", attribute="data"
        ) from error


def _from_base64(encoded: object) -> bytes:
    if not isinstance(encoded, str):
        raise EventError(f"data_base64: expected a string, got {shown(encoded)}", attribute="data_base64")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise EventError("data_base64: expected Base64 (RFC 4648 §4)", attribute="data_base64") from error


# --- writing ---------------------------------------------------------------------------------------


def _attributes(event: Event) -> dict[str, Any]:
    document: dict[str, Any] = {"specversion": SPECVERSION}
    for name in NAMES:
        value = getattr(event, name)
        if value is not None:
            document[name] = timestamp(value) if name == "time" else value
    document.update(event.extensions)
    return document


def _embedded(data: bytes, content_type: str | None, one_line: bool) -> dict[str, Any]:
    """Return the member that carries the data (JSON event format §3.1.1)."""
    if content_type is not None:
        try:
            if is_json(content_type):
                orjson.loads(data)
                text = data.strip(_BLANK.encode())
                return {"data": orjson.Fragment(_LINE_BREAK.sub(b" ", text) if one_line else text)}
            if media_type(content_type).startswith("text/") and codec(content_type) == "utf-8":
                return {"data": data.decode()}
        except ValueError:
            pass  # the data is not what its content type says; Base64 carries it
    return {"data_base64": base64.b64encode(data).decode()}
