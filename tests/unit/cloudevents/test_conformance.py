"""The official cases of the JSON format, in every mode that carries them, and the scenarios of the HTTP feature."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runner.cloudevents import (
    batch_from_http,
    decode_batch,
    decode_json,
    encode_batch,
    encode_json,
    from_http,
    from_nats,
    to_http,
    to_http_structured,
    to_nats,
    to_nats_structured,
)
from runner.errors import EventError
from runner.event import Event

from .conformance import INVALID_BATCHES, INVALID_EVENTS, VALID_BATCHES, VALID_EVENTS

STRUCTURED = {"Content-Type": "application/cloudevents+json; charset=UTF-8"}
BATCHED = {"Content-Type": "application/cloudevents-batch+json"}


def test_the_suite_is_whole() -> None:
    assert (len(VALID_EVENTS), len(INVALID_EVENTS)) == (10, 25)
    assert (len(VALID_BATCHES), len(INVALID_BATCHES)) == (5, 3)


@pytest.mark.parametrize(("document", "sample"), [pytest.param(*case[1:], id=case[0]) for case in VALID_EVENTS])
def test_valid_events(document: dict[str, Any], sample: Event) -> None:
    written = json.dumps(document)
    assert decode_json(written) == sample
    assert from_http(STRUCTURED, written.encode()) == sample
    assert from_nats(STRUCTURED, written.encode()) == sample
    assert from_nats({}, written.encode()) == sample
    assert batch_from_http(BATCHED, f"[{written}]".encode()) == [sample]
    assert decode_json(encode_json(sample)) == sample
    assert from_http(*to_http_structured(sample)) == sample
    assert from_nats(*to_nats_structured(sample)) == sample
    for back in (from_http(*to_http(sample)), from_nats(*to_nats(sample))):
        assert back.replace(extensions=sample.extensions) == sample
        assert {name: back.attribute(name) for name in back.extensions} == {
            name: sample.attribute(name) for name in sample.extensions
        }


@pytest.mark.parametrize(("document", "attribute"), [pytest.param(*case[1:], id=case[0]) for case in INVALID_EVENTS])
def test_invalid_events(document: dict[str, Any], attribute: str) -> None:
    with pytest.raises(EventError) as caught:
        from_http(STRUCTURED, json.dumps(document).encode())
    assert caught.value.attribute == attribute
    assert attribute in str(caught.value)


IN_HEADERS = [
    pytest.param(document, attribute, id=name)
    for name, document, attribute in INVALID_EVENTS
    # Headers have no types and no case, the data is the body, and an empty content type says nothing.
    if all(isinstance(value, str) for value in document.values())
    and not {"data_base64", "MyExtension"} & set(document)
    and document.get("datacontenttype") != ""
]


@pytest.mark.parametrize(("document", "attribute"), IN_HEADERS)
def test_invalid_events_in_binary_mode(document: dict[str, Any], attribute: str) -> None:
    headers = [("content-type" if name == "datacontenttype" else f"ce-{name}", document[name]) for name in document]
    with pytest.raises(EventError) as caught:
        from_http(headers, b"")
    assert caught.value.attribute == attribute


@pytest.mark.parametrize(("documents", "samples"), [pytest.param(*case[1:], id=case[0]) for case in VALID_BATCHES])
def test_valid_batches(documents: list[Any], samples: list[Event]) -> None:
    assert decode_batch(json.dumps(documents)) == samples
    assert decode_batch(json.dumps(documents, indent=3)) == samples
    assert batch_from_http(BATCHED, encode_batch(samples)) == samples


@pytest.mark.parametrize(
    ("documents", "index", "named"), [pytest.param(*case[1:], id=case[0]) for case in INVALID_BATCHES]
)
def test_invalid_batches(documents: list[Any], index: int, named: str) -> None:
    with pytest.raises(EventError, match=named) as caught:
        batch_from_http(BATCHED, json.dumps(documents).encode())
    assert caught.value.index == index
    assert f"event {index + 1} of {len(documents)}: " in str(caught.value)


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8"])
def test_http_feature_binary_content_mode(content_type: str) -> None:
    headers = [
        ("Host", "example.com"),
        ("ce-specversion", "1.0"),
        ("ce-type", "com.example.someevent"),
        ("ce-time", "2018-04-05T03:56:24Z"),
        ("ce-id", "1234-1234-1234"),
        ("ce-source", "/mycontext/subcontext"),
        ("Content-Type", content_type),
        ("Content-Length", "33"),
    ]
    body = b'{\n    "message": "Hello World!"\n}'
    _check_the_scenario(from_http(headers, body), content_type)
    assert from_http(headers, body).data == body


@pytest.mark.parametrize(
    "content_type", ["application/cloudevents+json", "application/cloudevents+json; charset=utf-8"]
)
def test_http_feature_structured_content_mode(content_type: str) -> None:
    body = json.dumps(
        {
            "specversion": "1.0",
            "type": "com.example.someevent",
            "time": "2018-04-05T03:56:24Z",
            "id": "1234-1234-1234",
            "source": "/mycontext/subcontext",
            "datacontenttype": "application/json",
            "data": {"message": "Hello World!"},
        },
        indent=4,
    ).encode()
    _check_the_scenario(from_http({"Content-Type": content_type}, body), "application/json")


def _check_the_scenario(event: Event, content_type: str) -> None:
    assert (event.id, event.type, event.source) == ("1234-1234-1234", "com.example.someevent", "/mycontext/subcontext")
    assert event.attribute("time") == "2018-04-05T03:56:24Z"
    assert event.datacontenttype == content_type
    assert event.json() == {"message": "Hello World!"}
    assert event.extensions == {}
