"""The codec against what strangers may send: it returns an event that is valid, or raises its own error."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from runner.cloudevents import batch_from_http, decode_batch, decode_json, from_http, from_nats, to_http_structured
from runner.errors import EventError
from runner.event import Event

_NAMES = [
    *("ce-id", "CE-Source", "ce-type", "ce-specversion", "ce-time", "ce-subject", "ce-dataschema", "ce-tenantid"),
    *("ce-data", "ce-datacontenttype", "ce-", "content-type", "Content-Type", "host", "cé-id"),
]
_VALUES = [
    *("1.0", "1", "/shop", "order.created", "2026-01-31T12:00:00Z", "application/cloudevents+json"),
    *("application/cloudevents-batch+json", "application/json", "%", '"', "%ff", "\\", "application/cloudevents"),
]
_headers = st.lists(st.tuples(st.sampled_from(_NAMES) | st.text(), st.sampled_from(_VALUES) | st.text()), max_size=12)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(_VALUES) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["id", "source", "type", "specversion", "time", "data", "data_base64", "datacontenttype", "x"]
            )
            | st.text(max_size=3),
            inner,
            max_size=9,
        )
    ),
    max_leaves=30,
)
_bodies = st.binary(max_size=200) | _json.map(lambda value: json.dumps(value).encode())


def _or_refused(read: Callable[[], Event | list[Event]]) -> None:
    try:
        found = read()
    except EventError as error:
        fault = str(error)
    else:
        fault = ""
    assert len(fault.encode()) < 700
    assert fault.isprintable()
    if fault:
        return
    for event in found if isinstance(found, list) else [found]:
        event.validate()
        to_http_structured(event)


@settings(max_examples=400)
@given(_headers, _bodies)
def test_no_message_makes_the_codec_fail_in_another_way(headers: list[tuple[str, str]], body: bytes) -> None:
    _or_refused(lambda: from_http(headers, body))
    _or_refused(lambda: batch_from_http(headers, body, limit=10))
    _or_refused(lambda: from_nats(headers, body))


@settings(max_examples=400)
@given(_bodies)
def test_no_body_makes_the_codec_fail_in_another_way(body: bytes) -> None:
    _or_refused(lambda: decode_json(body))
    _or_refused(lambda: decode_batch(body))


@given(st.data())
def test_no_change_of_one_byte_makes_the_codec_fail_in_another_way(data: st.DataObject) -> None:
    members: dict[str, Any] = {"specversion": "1.0", "id": "1", "source": "/", "type": "a", "data": {"é": [1, "\\"]}}
    document = bytearray(json.dumps(members, ensure_ascii=False).encode())
    document[data.draw(st.integers(0, len(document) - 1))] = data.draw(st.integers(0, 255))
    _or_refused(lambda: decode_json(bytes(document)))
    _or_refused(lambda: decode_batch(b"[" + bytes(document) + b"]"))
