"""Modes: which one a message is in, and that every event passes every one of them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.cloudevents import (
    batch_from_http,
    decode_batch,
    decode_json,
    encode_batch,
    from_http,
    from_nats,
    http_mode,
    to_http,
    to_http_batched,
    to_http_structured,
    to_nats,
    to_nats_structured,
)
from runner.errors import EventError, EventTooLarge, FormatUnsupported
from runner.event import Event

from ..test_cloudevents import MINIMAL, events

BINARY = {f"ce-{name}": value for name, value in MINIMAL.items()}


def without_outer_blanks(event: Event) -> Event:
    """The JSON format keeps JSON data to the byte, but for the blanks around it."""
    kind = (event.datacontenttype or "").partition(";")[0].lower()
    if event.data is None or not kind.endswith("json"):
        return event
    stripped = event.data.strip(b" \t\r\n")
    try:
        json.loads(stripped, parse_constant=lambda name: 1 / 0)
    except (ValueError, ZeroDivisionError):
        return event
    return event.replace(data=stripped)


# --- round trips -----------------------------------------------------------------------------------


@given(events())
def test_structured_modes_bring_back_every_event_with_its_types(event: Event) -> None:
    for back in (from_http(*to_http_structured(event)), from_nats(*to_nats_structured(event))):
        assert back == without_outer_blanks(event)


@given(st.lists(events(), max_size=4))
def test_batches_bring_back_every_event_in_order(batch: list[Event]) -> None:
    assert batch_from_http(*to_http_batched(batch)) == [without_outer_blanks(event) for event in batch]


@given(events())
def test_one_event_is_the_same_in_every_mode(event: Event) -> None:
    """Whatever mode an event came in: what goes out in any other says the same."""
    texts = {name: event.attribute(name) for name in event.extensions}
    for back in (from_http(*to_http(event)), from_nats(*to_nats(event))):
        assert {name: back.attribute(name) for name in back.extensions} == texts
        assert from_http(*to_http(back)) == back
        assert from_nats(*to_nats(back)) == back
        assert from_http(*to_http_structured(back)) == without_outer_blanks(back)


def test_json_data_keeps_its_line_breaks_where_no_line_is_asked_for() -> None:
    data = b'{\n  "a": [1,\r\n 2]\n}'
    event = Event(type="a", source="/", datacontenttype="application/json", data=data)
    assert from_http(*to_http_structured(event)).data == data
    assert from_nats(*to_nats_structured(event)).data == data
    assert batch_from_http(*to_http_batched([event, event]))[1].data == data


# --- which mode ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "mode"),
    [
        (None, "binary"),
        ("", "binary"),
        ("application/json", "binary"),
        ("text/plain; x=application/cloudevents+json", "binary"),
        ("application/cloudevents+json", "structured"),
        ("Application/CloudEvents+JSON;charset=UTF-8", "structured"),
        ('application/cloudevents+json ; x=y; charset="utf-8"', "structured"),
        ('application/cloudevents+json; x="; charset=utf-16"', "structured"),
        ("application/cloudevents+json; charset=us-ascii", "structured"),
        ("application/cloudevents-batch+json", "batched"),
        ("APPLICATION/CLOUDEVENTS-BATCH+JSON; charset=utf-8", "batched"),
    ],
)
def test_the_content_type_decides_the_mode(content_type: str | None, mode: str) -> None:
    headers = {} if content_type is None else {"CONTENT-type": content_type}
    assert http_mode(headers) == mode


@pytest.mark.parametrize(
    "content_type",
    [
        "application/cloudevents",
        "application/cloudevents+avro",
        "application/cloudevents+xml; charset=utf-8",
        "application/cloudevents-batch+xml",
        "application/cloudevents-batch",
        "application/cloudeventsjson",
        "application/cloudevents+json; charset=utf-16",
        "application/cloudevents-batch+json; charset=iso-8859-1",
    ],
)
def test_formats_that_are_not_read_say_which_are(content_type: str) -> None:
    for read in (
        lambda: http_mode({"content-type": content_type}),
        lambda: from_http({"content-type": content_type}, b"{}"),
    ):
        with pytest.raises(FormatUnsupported, match=r"^content-type: expected .*, got"):
            read()


def test_a_batch_is_no_single_event_and_a_single_event_is_a_batch_of_one() -> None:
    headers, body = to_http_batched([Event(type="a", source="/")])
    with pytest.raises(FormatUnsupported, match="a batch"):
        from_http(headers, body)
    event = Event(type="a", source="/")
    assert batch_from_http(*to_http(event)) == batch_from_http(*to_http_structured(event)) == [event]


def test_a_content_type_given_twice_is_refused() -> None:
    headers = [*BINARY.items(), ("Content-Type", "text/plain"), ("content-type", "application/cloudevents+json")]
    with pytest.raises(EventError, match="content-type: given twice"):
        from_http(headers, b"{}")


def test_in_structured_mode_the_document_decides_whatever_headers_say() -> None:
    headers = BINARY | {"ce-id": "2", "ce-type": "%C0", "content-type": "application/cloudevents+json"}
    assert from_http(headers, json.dumps(MINIMAL).encode()).id == "1"


@pytest.mark.parametrize(
    ("headers", "document"),
    [
        (None, True),
        ({}, True),
        ({"Content-Type": "application/cloudevents+json"}, True),
        ({"content-type": "Application/CloudEvents"}, True),
        ({"Content-Type": "application/cloudevents; charset=utf-8", "Nats-Msg-Id": "1"}, True),
        (BINARY, False),
        (BINARY | {"Content-Type": "application/json"}, False),
    ],
)
def test_modes_of_nats(headers: dict[str, str] | None, document: bool) -> None:
    payload = json.dumps(MINIMAL).encode()
    event = from_nats(headers, payload)
    assert event == Event(**{name: value for name, value in MINIMAL.items() if name != "specversion"}, data=event.data)
    assert event.data == (None if document else payload)


def test_what_nats_cannot_carry_is_refused() -> None:
    with pytest.raises(FormatUnsupported, match="expected 'application/cloudevents\\+json' or none"):
        from_nats({"content-type": "application/cloudevents-batch+json"}, b"[]")
    with pytest.raises(EventError, match="ce-specversion"):
        from_nats({"Nats-Msg-Id": "1"}, json.dumps(MINIMAL).encode())


# --- batches ---------------------------------------------------------------------------------------


def test_a_batch_has_a_limit_that_is_checked_before_its_events_are() -> None:
    body = json.dumps([MINIMAL, MINIMAL, {}]).encode()
    with pytest.raises(EventTooLarge, match="batch: 3 events, at most 2 are taken"):
        decode_batch(body, limit=2)
    assert len(decode_batch(json.dumps([MINIMAL] * 2), limit=2)) == 2


@pytest.mark.parametrize(
    ("document", "index", "error"),
    [
        ("[{}]", 0, "event 1 of 1: specversion"),
        ("[ ]", None, ""),
        ("{}", None, "expected one JSON array"),
        ("[1]", 0, "event 1 of 1: expected a JSON object"),
        ("[[]]", 0, "event 1 of 1: expected a JSON object, a CloudEvent, got an array"),
        ("[{]", None, "not a JSON document"),
        ("[{}] x", None, "not a JSON document"),
        (f"[{json.dumps(MINIMAL)}, {json.dumps(MINIMAL | {'time': 'x'})}]", 1, "event 2 of 2: time"),
        (f'[{json.dumps(MINIMAL)[:-1]}, "id": "2"}}]', 0, "event 1 of 1: id: given twice"),
    ],
)
def test_broken_batches(document: str, index: int | None, error: str) -> None:
    if not error:
        assert decode_batch(document) == []
        return
    with pytest.raises(EventError, match=error) as caught:
        decode_batch(document)
    assert caught.value.index == index


@given(st.lists(events(), max_size=3), st.sampled_from([None, 1, 4]), st.sampled_from([(",", ":"), (" , ", " :\n")]))
def test_how_a_batch_is_written_makes_no_difference(
    batch: list[Event], indent: int | None, separators: tuple[str, str]
) -> None:
    document = json.loads(encode_batch(batch))
    again = decode_batch(json.dumps(document, indent=indent, separators=separators, ensure_ascii=False))
    assert [event.replace(data=None) for event in again] == [event.replace(data=None) for event in batch]
    assert [event.data is None for event in again] == [event.data is None for event in batch]


# --- what a member may be written as ---------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        r'{"\u0069d": "1", "sour\u0063e": "/shop", "type": "order.created", "specversion": "1.0"}',
        '{"id":"1","source":"\\/shop","type":"order.created","specversion":"1.0"}',
        '{ "data_base64" : null, "data":\n{ "}": ["{\\"", "\\\\"] } , "id":"1" , "source":"/shop",'
        '"type":"order.created", "specversion":"1.0"\t}',
    ],
)
def test_how_a_document_is_written_makes_no_difference(text: str) -> None:
    event = from_http({"content-type": "application/cloudevents+json"}, text.encode())
    assert (event.id, event.source, event.type) == ("1", "/shop", "order.created")


@pytest.mark.parametrize(
    "document",
    [
        r'{"id": "1", "\u0069d": "2", "source": "/", "type": "a", "specversion": "1.0"}',
        '{"id": "1", "source": "/", "type": "a", "specversion": "1.0", "data": 1, "data": 1}',
        '{"id": "1", "source": "/", "type": "a", "specversion": "1.0", "é": 1, "é": 1}',
    ],
)
def test_members_given_twice_are_seen_however_they_are_written(document: str) -> None:
    with pytest.raises(EventError, match="given twice"):
        from_http({"content-type": "application/cloudevents+json"}, document.encode())


# --- header values ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ('"', '"'),
        ('"a" and "b"', '"a" and "b"'),
        ('"a\\"', '"a\\"'),
        ('""', None),
        ('"%22"', '"'),
        ("%25", "%"),
        ("%zz", "%zz"),
        ("a%20b", "a b"),
        ("%e2%82%ac", "€"),
        ("a b", "a b"),
    ],
)
def test_quotes_and_percent_signs(written: str, meant: str | None) -> None:
    if meant is None:
        with pytest.raises(EventError, match="subject: must not be empty"):
            from_http(BINARY | {"ce-subject": written}, b"")
        return
    assert from_http(BINARY | {"ce-subject": written}, b"").subject == meant


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
        ("2017-01-01T00:59:60.7+01:00", "2017-01-01T00:00:00Z"),
        ("2016-12-31T22:59:60Z", None),
        ("2016-12-30T23:59:60Z", None),
        ("2016-12-31T24:00:00Z", None),
        ("2016-12-31T23:60:00Z", None),
        ("2016-12-31 23:59:59Z", None),
        ("٢٠١٦-12-31T23:59:59Z", None),
        ("2016-12-31T23:59:59Z\n", None),
    ],
)
def test_times_at_the_edge(text: str, meant: str | None) -> None:
    document = json.dumps(MINIMAL | {"time": text})
    if meant is None:
        with pytest.raises(EventError, match="time: expected RFC 3339"):
            decode_json(document)
    else:
        assert decode_json(document).attribute("time") == meant


# --- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "attribute"),
    [
        ({"ce-id": "%C0%80"}, "id"),
        ({"ce-source": ""}, "source"),
        ({"ce-myattr": "\u00e9"}, "myattr"),
        ({"ce-my_attr": "1"}, "my_attr"),
        ({"ce-time": "yesterday"}, "time"),
        ({"ce-datacontenttype": "text/plain"}, "datacontenttype"),
        ({"ce-specversion": "0.3"}, "specversion"),
        ({"content-type": "nonsense"}, "datacontenttype"),
    ],
)
def test_errors_carry_the_attribute(headers: dict[str, str], attribute: str) -> None:
    with pytest.raises(EventError) as caught:
        from_http(BINARY | headers, b"x")
    assert caught.value.attribute == attribute


def test_what_is_too_large_is_an_error_of_its_own() -> None:
    with pytest.raises(EventTooLarge) as caught:
        from_http(BINARY, b"x" * (1024 * 1024 + 1))
    assert caught.value.attribute == "data"
    with pytest.raises(EventTooLarge, match="subject: 65537 characters"):
        from_http(BINARY | {"ce-subject": "x" * 65_537}, b"")
    assert len(from_http(BINARY, b"x" * 1024 * 1024).data or b"") == 1024 * 1024
