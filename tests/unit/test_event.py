from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import EventError
from runner.event import CIRCUMSTANCES, MAX_DATA_BYTES, NO_EXTENSIONS, Event, lasting, new_id


def event(**attributes: Any) -> Event:
    return Event(**{"type": "order.created", "source": "/shop", "id": "1"} | attributes)


def test_ids_are_unique_and_sort_by_time() -> None:
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert ids == sorted(ids)
    assert event(id="x").id == "x"
    assert Event(type="a", source="/").id != Event(type="a", source="/").id


@pytest.mark.parametrize(
    ("data", "written", "content_type"),
    [
        (None, None, None),
        ({"n": 1}, b'{"n":1}', "application/json"),
        (0, b"0", "application/json"),
        (False, b"false", "application/json"),
        ("", b'""', "application/json"),
        ([], b"[]", "application/json"),
        (b"raw", b"raw", None),
        (b"", b"", None),
    ],
)
def test_new_writes_data(data: object, written: bytes | None, content_type: str | None) -> None:
    made = Event.new("a", data, source="/")
    assert (made.data, made.datacontenttype) == (written, content_type)


def test_new_keeps_a_given_content_type() -> None:
    assert Event.new("a", {}, source="/", datacontenttype="application/x+json").datacontenttype == "application/x+json"


@pytest.mark.parametrize("data", [object(), {1: 2}, 2**64, bytearray(b"x"), "\ud800"])
def test_new_refuses_what_is_no_json(data: object) -> None:
    with pytest.raises(EventError, match="data: cannot be written as JSON"):
        Event.new("a", data, source="/")


def test_new_checks() -> None:
    with pytest.raises(EventError, match="type: must not be empty"):
        Event.new("", source="/")


def test_replace_returns_another_event() -> None:
    made = event(subject="a", extensions={"tenant": "eu"})
    assert made.replace(subject="b", extensions={}) == event(subject="b")
    assert made == event(subject="a", extensions={"tenant": "eu"})
    with pytest.raises(TypeError, match="colour"):
        made.replace(colour="red")


def test_an_event_cannot_be_changed() -> None:
    made = event()
    with pytest.raises(AttributeError, match="immutable"):
        made.type = "other"  # type: ignore[misc]  # that it fails is the point
    with pytest.raises(TypeError):
        made.extensions["a"] = "b"  # type: ignore[index]  # that it fails is the point


@pytest.mark.parametrize(("data", "value"), [(None, None), (b"null", None), (b'{"a":[1]}', {"a": [1]})])
def test_json(data: bytes | None, value: object) -> None:
    assert event(data=data).json() == value


@given(st.integers(-(10**300), 10**300), st.integers(0, 40))
def test_json_keeps_every_integer(number: int, depth: int) -> None:
    written = "[" * depth + f'{{"id": {number}}}' + "]" * depth
    value = event(data=written.encode()).json()
    for _ in range(depth):
        [value] = value
    assert value == {"id": number}
    assert type(value["id"]) is int


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"12345678901234567890123", 12345678901234567890123),
        (b"18446744073709551616", 2**64),
        (b"-9223372036854775809", -(2**63) - 1),
        (b'["1234567890123456789012", 1.5]', ["1234567890123456789012", 1.5]),
        (b"1e22", 1e22),
        (b"0.1234567890123456789012", 0.12345678901234568),
        (b"-0", 0),
        (b'{"a": 1, "a": 12345678901234567890123}', {"a": 12345678901234567890123}),
    ],
)
def test_json_numbers(data: bytes, value: object) -> None:
    read = event(data=data).json()
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize("data", [b"1e400", b"-1e400", b"NaN", b"[Infinity]", b"9" * 5000, b"[" * 900 + b"9" * 5000])
def test_json_numbers_that_nothing_holds_are_an_error(data: bytes) -> None:
    with pytest.raises(EventError, match="event '1': data is not JSON"):
        event(data=data).json()


@dataclass
class Price:
    amount: float | None


@pytest.mark.parametrize(
    "data", [float("nan"), {"a": [1, float("inf")]}, (None, -float("inf")), Price(float("nan")), [{"p": Price(1e400)}]]
)
def test_new_writes_no_null_for_what_is_no_number(data: object) -> None:
    with pytest.raises(EventError, match="NaN"):
        Event.new("a", data, source="/")


def test_new_writes_null_for_none() -> None:
    assert Event.new("a", [None, "null", {"a": Price(None)}], source="/").data == b'[null,"null",{"a":{"amount":null}}]'


def test_json_names_the_event() -> None:
    with pytest.raises(EventError, match="event '1': data is not JSON"):
        event(data=b"{").json()


@pytest.mark.parametrize(
    "attributes",
    [
        {"subject": " "},
        {"type": "x" * 65_536},
        {"time": datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=-5)))},
        {"datacontenttype": "application/vnd.api+json"},
        {"datacontenttype": 'multipart/mixed; boundary="a b"'},
        {"datacontenttype": "text/plain ;charset=utf-8"},
        {"datacontenttype": "text/plain;"},
        {"extensions": {"a": "", "b": -(2**31), "c": 2**31 - 1, "d": False, "e" * 20: "é"}},
        {"data": b"x" * MAX_DATA_BYTES},
        {"source": "\U0001f600\u00a0"},
    ],
)
def test_valid(attributes: dict[str, Any]) -> None:
    event(**attributes).validate()


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"type": ""}, "type: must not be empty"),
        ({"type": ["a"]}, "type: expected a string, got list"),
        ({"datacontenttype": {}}, "datacontenttype: expected a string, got dict"),
        ({"source": None}, "source: expected a string, got NoneType"),
        ({"id": 5}, "id: expected a string, got int"),
        ({"id": "x" * 65_537}, "id: 65537 characters, at most 65536"),
        ({"subject": ""}, "subject: must not be empty"),
        ({"subject": "a\x00"}, "subject: the character .*0000 is not allowed"),
        ({"subject": "a\x7f"}, "007F"),
        ({"subject": "é\x9f"}, "009F"),
        ({"subject": "\ud800"}, "D800"),
        ({"subject": "\ufdd0"}, "FDD0"),
        ({"subject": "\U0001ffff"}, "1FFFF"),
        ({"subject": "\U0010fffe"}, "10FFFE"),
        ({"dataschema": "\n"}, "dataschema"),
        ({"datacontenttype": "json"}, "datacontenttype: expected a media type"),
        ({"datacontenttype": "text/"}, "datacontenttype"),
        ({"datacontenttype": "text/plain charset=utf-8"}, "datacontenttype"),
        ({"datacontenttype": "text/plain; é"}, "datacontenttype"),
        ({"time": datetime(2026, 1, 1)}, "time: expected a time with an offset"),
        ({"time": "2026-01-01T00:00:00Z"}, "time: expected a datetime, got str"),
        ({"time": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))}, "time: .* is no time in UTC"),
        ({"extensions": {"A": "x"}}, "extension 'A'"),
        ({"extensions": {"a_b": "x"}}, "extension 'a_b'"),
        ({"extensions": {"a\n": "x"}}, "extension"),
        ({"extensions": {"": "x"}}, "extension ''"),
        ({"extensions": {"a" * 101: "x"}}, "extension"),
        ({"extensions": {"id": "x"}}, "extension 'id'"),
        ({"extensions": {"data": "x"}}, "extension 'data'"),
        ({"extensions": {5: "x"}}, "extension 5"),
        ({"extensions": {"a": 2**31}}, "does not fit in 32 bits"),
        ({"extensions": {"a": 1.5}}, "extension 'a': expected a string, got float"),
        ({"extensions": {"a": None}}, "extension 'a': expected a string, got NoneType"),
        ({"extensions": {"a": "\n"}}, "000A"),
        ({"data": "text"}, "data: expected bytes, got str"),
        ({"data": b"x" * (MAX_DATA_BYTES + 1)}, "data: 1048577 bytes, at most 1048576"),
    ],
)
def test_invalid(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(EventError, match=message):
        event(**attributes).validate()


def test_uris_are_asked_of_what_is_made_and_not_of_what_was_recorded() -> None:
    event(source="my shop", dataschema="/schema").validate()
    with pytest.raises(EventError, match="source: expected a URI reference"):
        Event.new("a", source="my shop")
    with pytest.raises(EventError, match="dataschema: expected a URI"):
        Event.new("a", source="/", dataschema="/schema")


def test_what_only_equals_a_text_is_none_whatever_was_checked_before() -> None:
    class Lazy:
        def __eq__(self, other: object) -> bool:
            return other == "order.created"

        def __hash__(self) -> int:
            return hash("order.created")

    event().validate()
    with pytest.raises(EventError, match="type: expected a string, got Lazy"):
        event(type=Lazy()).validate()


@given(st.text())
def test_every_text_is_taken_or_refused_and_taken_text_is_storable(text: str) -> None:
    try:
        event(subject=text).validate()
    except EventError:
        return
    assert "\x00" not in text
    text.encode()


def test_equal_by_value() -> None:
    now = datetime.now(UTC)
    assert event(time=now, extensions={"a": 1}) == event(time=now, extensions={"a": 1})
    assert event() != event(id="2")


class TestAttributesTogether:
    def test_as_much_as_an_event_of_64_kib_may_have(self) -> None:
        Event.new("t", source="/s", extensions={f"x{n}": "y" * 60 for n in range(1000)}).validate()

    @pytest.mark.parametrize(
        ("extensions", "error"),
        [
            ({f"x{n}": 1 for n in range(1001)}, "extensions: 1001, at most 1000 are taken"),
            (
                {f"x{n}": "y" * 2000 for n in range(70)},
                r"attributes: 140\d\d\d bytes together, at most 131072",
            ),
            ({f"x{n}": "\u4e00" * 2000 for n in range(22)}, r"attributes: 132\d\d\d bytes together"),
        ],
    )
    def test_no_more_than_that(self, extensions: dict[str, Any], error: str) -> None:
        with pytest.raises(EventError, match=error):
            Event.new("t", source="/s", extensions=extensions)


def test_lasting_extensions_are_those_that_say_what_happened() -> None:
    circumstances: dict[str, str | int] = {name: "x" for name in CIRCUMSTANCES}
    assert lasting(circumstances | {"tenant": "a", "n": 1}) == {"tenant": "a", "n": 1}
    assert lasting(circumstances) == {}
    assert lasting({"tenant": "a"}) == {"tenant": "a"}
    assert lasting(NO_EXTENSIONS) is NO_EXTENSIONS
