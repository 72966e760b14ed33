"""
The NATS protocol binding (CloudEvents NATS binding).

Version 1.0.2 has structured mode only, because NATS had no headers then. Binary mode is that of the text that followed
it (1.0.3-wip §3.1): every attribute a header, `datacontenttype` among them.
"""

from __future__ import annotations

from ..errors import FormatUnsupported
from ..event import Event
from .attributes import event_of, shown
from .content_types import JSON_FORMAT, media_type
from .headers import Headers, attributes_of, headers_of, pairs, quoted
from .json_format import decode_json, encode_json

__all__ = ["from_nats", "to_nats", "to_nats_structured"]

_RESERVED = "application/cloudevents"


def to_nats(event: Event) -> tuple[dict[str, str], bytes]:
    """
    Return the headers and the payload of the event in binary mode (NATS binding 1.0.3-wip §3.1).

    Raises:
        EventError: the event breaks CloudEvents 1.0, so that a header could be forged with it.
    """
    headers = headers_of(event)
    if event.datacontenttype is not None:
        headers["ce-datacontenttype"] = quoted(event.datacontenttype)
    return headers, event.data or b""


def to_nats_structured(event: Event) -> tuple[dict[str, str], bytes]:
    """
    Return the headers and the payload of the event in structured mode (NATS binding 1.0.2 §3).

    Raises:
        EventError: the event breaks CloudEvents 1.0.
    """
    event.validate()
    return {"Content-Type": JSON_FORMAT}, encode_json(event, one_line=False)


def from_nats(headers: Headers | None, payload: bytes) -> Event:
    """
    Return the event of one NATS message, in either mode.

    It is in structured mode where its `Content-Type` says so, and where it has no headers at all, as in version 1.0.2.
    In binary mode header values have no types: an extension that was an integer is now its text.

    Raises:
        FormatUnsupported: it is in an event format other than JSON.
        EventError: it is no event, or breaks CloudEvents 1.0.
    """
    lines = list(pairs(headers or {}))
    kind = next((media_type(value) for name, value in lines if name.lower() == "content-type"), "")
    if not lines or kind in (JSON_FORMAT, _RESERVED):
        return decode_json(payload)
    if kind.startswith(_RESERVED):
        raise FormatUnsupported(
            f"content-type: expected {JSON_FORMAT!r} or none, got {shown(kind)}", attribute="content-type"
        )
    return event_of(attributes_of(lines), payload or None)
