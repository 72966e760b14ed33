from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cloudevents.core.bindings import http as sdk_http
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from runner.cloudevents import (
    decode_batch,
    decode_json,
    encode_batch,
    encode_json,
    from_http,
    from_nats,
    to_http,
    to_nats,
)
from runner.errors import EventError
from runner.event import Event

MINIMAL: dict[str, Any] = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.created"}

# --- what an event can hold ------------------------------------------------------------------------

allowed = st.characters(exclude_categories=("Cc", "Cs", "Cn"))
text = st.text(allowed, min_size=1, max_size=40)
names = st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True).filter(
    lambda name: name not in {"id", "source", "type", "subject", "time", "data", "dataschema"}
)
zones = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
times = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=zones)
contents = st.one_of(
    st.tuples(st.none(), st.none() | st.binary(max_size=60)),
    st.tuples(st.sampled_from(["text/plain", "text/csv; charset=utf-8", "text/x; charset=latin-1"]), st.binary()),
    st.tuples(st.just("text/plain"), st.text().map(lambda value: value.encode(errors="ignore"))),
    st.tuples(st.sampled_from(["image/png", "application/xml"]), st.none() | st.binary(max_size=60)),
    st.tuples(
        st.sampled_from(["application/json", "application/vnd.x+json; charset=utf-8", "TEXT/JSON"]),
        st.one_of(
            st.recursive(
                st.none()
                | st.booleans()
                | st.integers()
                | st.floats(allow_nan=False, allow_infinity=False)
                | st.text(),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                max_leaves=8,
            ).map(lambda value: json.dumps(value, ensure_ascii=True).encode()),
            st.binary(max_size=30),
        ),
    ),
)


@st.composite
def events(draw: st.DrawFn, extensions: st.SearchStrategy[Any] | None = None) -> Event:
    values = text | st.integers(-(2**31), 2**31 - 1) if extensions is None else extensions
    content_type, data = draw(contents)
    return Event(
        type=draw(text),
        source=draw(text),
        id=draw(text),
        subject=draw(st.none() | text),
        time=draw(st.none() | times),
        dataschema=draw(st.none() | text),
        extensions=draw(st.dictionaries(names, values | st.booleans(), max_size=3)),
        datacontenttype=content_type,
        data=data,
    )


def embeds_as_it_is(event: Event) -> bool:
    """JSON data loses its line breaks and outer blanks in the JSON format; a lone surrogate stays out of it."""
    return event.data is None or (event.data.strip(b" \t\r\n") == event.data and not set(b"\r\n") & set(event.data))


# --- JSON event format -----------------------------------------------------------------------------


@given(events().filter(embeds_as_it_is))
def test_the_json_format_brings_back_every_event_unchanged(event: Event) -> None:
    line = encode_json(event)
    assert b"\n" not in line
    assert decode_json(line) == event
    assert decode_json(line.decode()) == event


@given(events())
def test_the_official_sdk_reads_what_we_write(event: Event) -> None:
    read = JSONFormat().read(CloudEvent, encode_json(event))
    assert (read.get_type(), read.get_source(), read.get_id()) == (event.type, event.source, event.id)
    assert read.get_subject() == event.subject
    assert event.time is None or read.get_time() == event.time  # the SDK makes up a missing one
    for name, value in event.extensions.items():
        assert read.get_extension(name) == value


@given(st.binary() | st.text())
def test_no_document_makes_the_decoder_fail_in_another_way(document: bytes | str) -> None:
    with pytest.raises(EventError):
        decode_json(document)


@given(
    st.dictionaries(
        st.sampled_from([*MINIMAL, "time", "subject", "data", "data_base64", "datacontenttype", "x", "X", "é"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.none()) | st.just({}),
    )
)
def test_no_member_makes_the_decoder_fail_in_another_way(members: dict[str, Any]) -> None:
    try:
        event = decode_json(json.dumps(MINIMAL | members))
    except EventError:
        return
    event.validate()


@given(st.lists(events(), max_size=4))
def test_a_batch_is_an_array_of_the_same_documents(batch: list[Event]) -> None:
    documents = [json.loads(encode_json(event)) for event in batch]
    assert json.loads(encode_batch(batch)) == documents


BLANKS = st.sampled_from(["", "", "", " ", "\n\t "])
TEXTS = [
    '"a"',
    '"/s"',
    '"\\u0061 é"',
    '""',
    "null",
    "1",
    "1 ",
    "-0",
    "4294967296",
    "99999999999999999999",
    "1e2",
    "true",
    "[ ]",
]
TEXTS += ['{"a": 1 , "a":2.50}', '"YQ=="', '"text/plain"', '"application/json"', '"1.0"']


@st.composite
def documents(draw: st.DrawFn) -> str:
    """JSON objects that are nearly events, whose members may stand twice, with blanks around anything."""
    always = [f'"{name}"{draw(BLANKS)}:{draw(BLANKS)}"{value}"' for name, value in MINIMAL.items()]
    names = st.sampled_from(
        ["subject", "data", "data", "data_base64", "datacontenttype", "x", "id", "i\\u0064", "dat\\u0061"]
    )
    more = draw(st.lists(st.tuples(names, st.sampled_from(TEXTS), BLANKS), max_size=3))
    members = always + [f'"{name}"{blank}:{blank}{text}' for name, text, blank in more]
    blank = draw(BLANKS)
    return f"{blank}{{{blank}{f'{blank},{blank}'.join(draw(st.permutations(members)))}{blank}}}{blank}"


@given(st.lists(documents(), min_size=1, max_size=3))
def test_a_batch_is_read_as_its_documents_are_one_by_one(batch: list[str]) -> None:
    def read(decode: Callable[[str], list[Event]], text: str) -> list[Event] | str | None:
        try:
            return decode(text)
        except EventError as error:
            return error.attribute

    apart = [read(lambda text: [decode_json(text)], each) for each in batch]
    wrong = [each for each in apart if not isinstance(each, list)]
    together = read(decode_batch, f"[{','.join(batch)}]")
    assert together == (wrong[0] if wrong else [event for each in apart if isinstance(each, list) for event in each])


def test_an_event_that_breaks_the_rules_breaks_its_batch() -> None:
    with pytest.raises(EventError, match="type"):
        encode_batch([Event(type="a", source="/"), Event(type="", source="/")])


def test_json_data_is_the_text_that_stood_in_the_document() -> None:
    data = '{ "big": 123456789012345678901234567890, "twice": 1.50,\n "esc": "\\u00e9" }'
    event = decode_json('{"data": ' + data + " , " + json.dumps(MINIMAL)[1:])
    assert event.data == data.encode()
    assert event.datacontenttype == "application/json"


@pytest.mark.parametrize(
    ("members", "content_type", "data"),
    [
        pytest.param({}, None, None, id="no data"),
        pytest.param({"data": None}, "application/json", b"null", id="an explicit null is a payload"),
        pytest.param({"data": "text"}, "application/json", b'"text"', id="a string is a JSON string"),
        pytest.param({"data": '{"a":1}'}, "application/json", b'"{\\"a\\":1}"', id="never parsed a second time"),
        pytest.param({"data": False}, "application/json", b"false", id="false is data"),
        pytest.param({"data": 0, "datacontenttype": "a/b+JSON;x=1"}, "a/b+JSON;x=1", b"0", id="+json"),
        pytest.param({"data": "é", "datacontenttype": "text/plain"}, "text/plain", "é".encode(), id="text is UTF-8"),
        pytest.param(
            {"data": "é", "datacontenttype": "text/plain; charset=ISO-8859-1"},
            "text/plain; charset=ISO-8859-1",
            b"\xe9",
            id="text in its own charset",
        ),
        pytest.param({"data": None, "datacontenttype": "text/plain"}, "text/plain", None, id="null text is none"),
        pytest.param({"data_base64": "AP8="}, None, b"\x00\xff", id="Base64"),
        pytest.param({"data_base64": ""}, None, b"", id="empty Base64"),
        pytest.param({"data_base64": None}, None, None, id="null Base64 is absent"),
        pytest.param(
            {"data_base64": "MQ==", "datacontenttype": "application/json"},
            "application/json",
            b"1",
            id="JSON in Base64",
        ),
    ],
)
def test_data(members: dict[str, Any], content_type: str | None, data: bytes | None) -> None:
    event = decode_json(json.dumps(MINIMAL | members))
    assert (event.datacontenttype, event.data) == (content_type, data)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31t12:00:00z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31T12:00:00.5+01:30", datetime(2026, 1, 31, 10, 30, 0, 500_000, tzinfo=UTC)),
        ("2026-01-31T12:00:00.123456789-00:00", datetime(2026, 1, 31, 12, 0, 0, 123_456, tzinfo=UTC)),
        (None, None),
    ],
)
def test_times(written: str | None, meant: datetime | None) -> None:
    assert decode_json(json.dumps({**MINIMAL, "time": written})).time == meant


def test_extensions_keep_their_types() -> None:
    event = decode_json(json.dumps({**MINIMAL, "text": "a", "number": -5, "truth": True, "unset": None, "empty": ""}))
    assert event.extensions == {"text": "a", "number": -5, "truth": True, "empty": ""}
    assert [type(event.extensions[name]) for name in ("number", "truth")] == [int, bool]


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ({"specversion": None}, "specversion"),
        ({"specversion": "0.3"}, "specversion"),
        ({"specversion": 1.0}, "specversion"),
        ({"id": None}, "id"),
        ({"id": ""}, "id"),
        ({"id": 25}, "id"),
        ({"source": {"a": 1}}, "source"),
        ({"type": ""}, "type"),
        ({"subject": ""}, "subject"),
        ({"dataschema": ""}, "dataschema"),
        ({"id": "a\nb"}, "000A"),
        ({"source": "/\u0085"}, "0085"),
        ({"type": "\ufffe"}, "FFFE"),
        ({"datacontenttype": ""}, "datacontenttype"),
        ({"datacontenttype": "xyz"}, "datacontenttype"),
        ({"datacontenttype": "text/plain\r\nX-Evil: 1"}, "datacontenttype"),
        ({"datacontenttype": "text/plänn"}, "datacontenttype"),
        ({"datacontenttype": 5, "data": 1}, "datacontenttype"),
        ({"time": "lunchtime"}, "time"),
        ({"time": "2026-01-31T12:00Z"}, "time"),
        ({"time": "2026-01-31T12:00:00"}, "time"),
        ({"time": "2026-01-31T12:00:00X"}, "time"),
        ({"time": "2026-01-31T12:00:00+25:00"}, "time"),
        ({"time": "2026-01-31T12:00:00+05"}, "time"),
        ({"time": "2026-02-30T12:00:00Z"}, "time"),
        ({"time": "0001-01-01T00:00:00+01:00"}, "time"),
        ({"time": 0}, "time"),
        ({"MyExtension": "x"}, "MyExtension"),
        ({"my.extension": "x"}, "my.extension"),
        ({"ext": 1.5}, "ext"),
        ({"ext": 1.0}, "ext"),
        ({"ext": 2**31}, "32 bits"),
        ({"ext": {}}, "ext"),
        ({"ext": []}, "ext"),
        ({"data": "a", "data_base64": "YQ=="}, "both"),
        ({"data": None, "data_base64": "YQ=="}, "both"),
        ({"data_base64": 5}, "data_base64"),
        ({"data_base64": "YQ="}, "data_base64"),
        ({"data_base64": "Y Q=="}, "data_base64"),
        ({"data": {"a": 1}, "datacontenttype": "text/plain"}, "data"),
        ({"data": "é", "datacontenttype": "text/plain; charset=us-ascii"}, "data"),
        ({"data": "a", "datacontenttype": "text/plain; charset=rot13"}, "data"),
    ],
)
def test_broken_events_are_refused_by_name(members: dict[str, Any], named: str) -> None:
    document = {name: value for name, value in (MINIMAL | members).items() if value is not None or name == "data"}
    with pytest.raises(EventError, match=named):
        decode_json(json.dumps(document))


@pytest.mark.parametrize(
    "document",
    [
        "",
        "[]",
        "null",
        "{",
        "{}x",
        "\ufeff{}",
        b"\xff{}",
        '{"a": NaN}',
        '{"a": Infinity}',
        '{"a": "\\ud800"}',
        '{"a": "\ud800"}',
        '{"a": "\n"}',
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"data": ' + "[" * 2000 + "]" * 2000 + "}",
        '{"data": ' + "9" * 100_000 + "}",
    ],
    ids=lambda document: repr(document[:12]),
)
def test_what_is_no_json_object_is_refused(document: bytes | str) -> None:
    with pytest.raises(EventError):
        decode_json(document)


def test_a_member_given_twice_is_refused() -> None:
    with pytest.raises(EventError, match="type: given twice"):
        decode_json(json.dumps(MINIMAL)[:-1] + ', "type": "order.deleted"}')


def test_blanks_around_everything_are_fine() -> None:
    document = json.dumps(MINIMAL | {"data": [1, {"a": 2}]}, indent=2).replace(":", " :\r\n\t").replace(",", " ,")
    assert decode_json(f" \n{document}\r\n").json() == [1, {"a": 2}]


def test_an_id_is_made_up_only_on_request() -> None:
    document = json.dumps({name: value for name, value in MINIMAL.items() if name != "id"})
    with pytest.raises(EventError, match="id: missing"):
        decode_json(document)
    first, second = (decode_json(document, assign_id=True) for _ in range(2))
    assert first.id != second.id
    assert decode_json(json.dumps(MINIMAL), assign_id=True).id == "1"


def test_an_error_shows_neither_the_payload_nor_control_characters() -> None:
    with pytest.raises(EventError) as caught:
        decode_json(json.dumps({**MINIMAL, "datacontenttype": "\x1b[2J" + "x" * 5000}))
    assert "\x1b" not in str(caught.value)
    with pytest.raises(EventError) as caught:
        decode_json(json.dumps({**MINIMAL, "time": "\x1b[2J" + "x" * 5000}))
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_pretty_json_data_becomes_one_line() -> None:
    event = Event(
        type="a", source="/", datacontenttype="application/json", data=b' {\r\n    "a b": "c  d",\n\n "e": 1\n}\n'
    )
    line = encode_json(event)
    assert b'"data":{ "a b": "c  d", "e": 1 }' in line
    assert decode_json(line).json() == event.json()


@pytest.mark.parametrize(
    ("content_type", "data", "member"),
    [
        ("application/json", b'{"a":1}', "data"),
        ("application/json", b"{broken", "data_base64"),
        ("application/json", b"NaN", "data_base64"),
        ("application/json", b"", "data_base64"),
        ("text/plain", b"caf\xc3\xa9\n", "data"),
        ("text/plain", b"caf\xe9", "data_base64"),
        ("text/plain; charset=latin-1", b"cafe", "data_base64"),
        ("image/png", b"cafe", "data_base64"),
        (None, b'{"a":1}', "data_base64"),
    ],
)
def test_where_data_goes(content_type: str | None, data: bytes, member: str) -> None:
    event = Event(type="a", source="/", datacontenttype=content_type, data=data)
    document = json.loads(encode_json(event))
    assert {"data", "data_base64"} & set(document) == {member}
    assert decode_json(encode_json(event)).data == data


@pytest.mark.parametrize(
    "text",
    [
        "12345678901234567890123",
        '{"id": -12345678901234567890123, "f": 1.50, "z": -0, "e": 1E+2}',
        '{"a": 1, "a": 2}',
        "1.00000000000000000000000000001",
    ],
)
def test_numbers_and_members_stay_the_text_they_were(text: str) -> None:
    event = decode_json(json.dumps(MINIMAL)[:-1] + f', "data": {text}}}')
    assert event.data == text.encode()
    assert f'"data":{text}'.encode() in encode_json(event)
    assert f'"data":{text}'.encode() in encode_batch([event])
    assert to_http(event)[1] == to_nats(event)[1] == text.encode()


@pytest.mark.parametrize(
    "charset", ["punycode", "idna", "utf-7", "unicode_escape", "zlib", "undefined", "../x", "x" * 999]
)
def test_charsets_are_those_of_a_list(charset: str) -> None:
    """Some codecs that Python knows take hours for a megabyte."""
    document = MINIMAL | {"data": "ü" * 500_000, "datacontenttype": f"text/plain; charset={charset}"}
    with pytest.raises(EventError, match=r"data: expected a charset in common use, .*; use data_base64"):
        decode_json(json.dumps(document))
    event = Event(type="a", source="/", datacontenttype=f"text/plain; charset={charset}", data=b"\xfc" * 1000)
    assert decode_json(encode_json(event)).data == event.data


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("UTF8", "ü"),
        ('"Windows-1252"', "€"),
        ("latin-1", "é"),
        ("UTF-16", "é"),
        ("Shift_JIS", "カ"),
        ("gb18030", "你"),
        ("KOI8-R", "д"),
        ("windows-31j", "①"),
        ("macintosh", "é"),
    ],
)
def test_charsets_that_are_in_use(charset: str, text: str) -> None:
    document = MINIMAL | {"data": text * 3, "datacontenttype": f"text/plain; charset={charset}"}
    data = decode_json(json.dumps(document)).data
    assert data is not None
    assert data.decode({"macintosh": "mac-roman", "windows-31j": "cp932"}.get(charset, charset.strip('"'))) == text * 3


def test_a_long_run_of_blanks_costs_nothing() -> None:
    data = b'"' + b" " * 1_000_000 + b'"'  # a careless expression would take hours
    assert decode_json(encode_json(Event(type="a", source="/", datacontenttype="a/json", data=data))).data == data


# --- HTTP binding ----------------------------------------------------------------------------------


def canonical(event: Event) -> dict[str, str]:
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in event.extensions.items()
    }


@given(events())
def test_http_brings_back_every_event_with_extensions_as_text(event: Event) -> None:
    headers, body = to_http(event)
    assert all(value.isascii() and value.isprintable() for value in headers.values())
    back = from_http({name.upper(): value for name, value in headers.items()}, body)
    assert back.data == (event.data or None)
    assert back.extensions == canonical(event)
    for name in ("type", "source", "id", "subject", "time", "dataschema", "datacontenttype"):
        assert getattr(back, name) == getattr(event, name)


@given(events(extensions=text))
def test_the_headers_are_those_of_the_official_sdk(event: Event) -> None:
    headers, body = to_http(event)
    read = sdk_http.from_binary(sdk_http.HTTPMessage(headers=headers, body=body), JSONFormat(), CloudEvent)
    attributes = {name: value for name, value in read.get_attributes().items() if value is not None}
    attributes.pop("specversion")
    if event.time is None:
        attributes.pop("time")  # the SDK makes up a missing one
    expected = {name: getattr(event, name) for name in ("type", "source", "id", "subject", "dataschema", "time")}
    expected |= {"datacontenttype": event.datacontenttype, **canonical(event)}
    assert attributes == {name: value for name, value in expected.items() if value is not None}


@given(events())
def test_nats_brings_back_every_event_with_extensions_as_text(event: Event) -> None:
    headers, payload = to_nats(event)
    back = from_nats(headers, payload)
    assert "content-type" not in headers
    assert back.data == (event.data or None)
    assert (back.datacontenttype, back.time, back.subject) == (event.datacontenttype, event.time, event.subject)
    assert back.extensions == canonical(event)


def test_the_example_of_the_http_binding() -> None:
    headers, _ = to_http(Event(type="a", source="/", subject="Euro € 😀"))
    assert headers["ce-subject"] == "Euro%20%E2%82%AC%20%F0%9F%98%80"


def http_headers(**changed: str | None) -> dict[str, str]:
    headers: dict[str, str | None] = {f"ce-{name}": value for name, value in MINIMAL.items()}
    headers |= {name.replace("_", "-"): value for name, value in changed.items()}
    return {name: value for name, value in headers.items() if value is not None}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("plain", "plain"),
        ('"quoted text"', "quoted text"),
        (r'"a \"b\" \\ c"', r'a "b" \ c'),
        ("%41%c3%a9", "Aé"),
        ("100%", "100%"),
        ("a%2520b", "a%20b"),
        (" \tpadded ", "padded"),
    ],
)
def test_header_values(written: str, meant: str) -> None:
    assert from_http(http_headers(ce_subject=written), b"").subject == meant


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"ce_specversion": None}, "ce-specversion"),
        ({"ce_specversion": "2.0"}, "ce-specversion"),
        ({"ce_id": None}, "id: missing"),
        ({"ce_id": ""}, "id"),
        ({"ce_subject": "%C0%A0"}, "ce-subject"),
        ({"ce_subject": "é"}, "ce-subject"),
        ({"ce_subject": "a%0D%0Ab"}, "000D"),
        ({"ce_time": "now"}, "time"),
        ({"ce_datacontenttype": "text/plain"}, "ce-datacontenttype"),
        ({"ce_data": "1"}, "data"),
        ({"ce_my-ext": "1"}, "my-ext"),
        ({"content_type": "application/cloudevents-batch+json"}, "content-type"),
        ({"content_type": "application/cloudevents+avro"}, "content-type"),
    ],
)
def test_broken_messages_are_refused_by_name(changed: dict[str, str | None], named: str) -> None:
    with pytest.raises(EventError, match=named):
        from_http(http_headers(**changed), b"{}")


def test_a_header_given_twice_is_refused() -> None:
    with pytest.raises(EventError, match="ce-id: given twice"):
        from_http(http_headers() | {"CE-ID": "2"}, b"")


def test_structured_mode() -> None:
    body = json.dumps(MINIMAL | {"data": {"a": 1}}).encode()
    event = from_http({"Content-Type": "application/cloudevents+json; charset=UTF-8"}, body)
    assert (event.id, event.json()) == ("1", {"a": 1})


@pytest.mark.parametrize("mode", [to_http, to_nats])
@pytest.mark.parametrize(
    "forged",
    [
        Event(type="a", source="/", datacontenttype="text/plain\r\nx: y"),
        Event(type="a", source="/", extensions={"a: b\r\nc": "d"}),
        Event(type="a\r\nb", source="/"),
    ],
)
def test_no_event_can_forge_a_header(mode: Callable[[Event], object], forged: Event) -> None:
    with pytest.raises(EventError):
        mode(forged)


def test_bytes_pass_http_untouched() -> None:
    data = base64.b64decode("AAECAwT/") * 1000
    headers, body = to_http(Event(type="a", source="/", data=data))
    assert body is data
    assert "content-type" not in headers
