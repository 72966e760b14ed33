from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner.bus.type_schemas import TypeSchemas
from runner.errors import SchemaViolation
from runner.event import Event
from runner.policies.data_schema import DataSchema
from runner.storage.contract.events import Publication

ORDER = {
    "type": "object",
    "required": ["id"],
    "properties": {
        "id": {"type": "integer"},
        "items": {"type": "array", "items": {"properties": {"qty": {"minimum": 1}}}},
        "a/b": {"properties": {"~": {"const": 1}}},
    },
}


def schemas(tmp_path: Path, **files: Any) -> TypeSchemas:
    compiled = {}
    for number, (pattern, document) in enumerate(files.items()):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(document))
        compiled[pattern.replace("_", ".").replace("ANY", "*")] = DataSchema.load(path)
    return TypeSchemas(compiled)


def check(schemas: TypeSchemas, *events: Event) -> None:
    schemas.check([Publication(event) for event in events])


def order(data: object, type_: str = "order.created") -> Event:
    return Event.new(type_, data, source="/shop")


def test_what_fits_passes(tmp_path: Path) -> None:
    known = schemas(tmp_path, order_created=ORDER)
    large = order(b'{"id": 12345678901234567890123}').replace(datacontenttype="application/json")
    check(known, order({"id": 1}), large, order("anything", "order.deleted"))


@pytest.mark.parametrize(
    ("data", "pointer"),
    [
        ({}, ""),
        ([], ""),
        ({"id": "canary-7"}, "/id"),
        ({"id": 1, "items": [{"qty": 1}, {"qty": 0}]}, "/items/1/qty"),
        ({"id": 1, "a/b": {"~": 2}}, "/a~1b/~0"),
    ],
)
def test_what_does_not_is_refused_with_the_place(tmp_path: Path, data: object, pointer: str) -> None:
    with pytest.raises(SchemaViolation, match=f"order.created', at '{pointer}'") as caught:
        check(schemas(tmp_path, order_created=ORDER), order({"id": 1}), order(data))
    assert (caught.value.pointer, caught.value.index) == (pointer, 1)
    assert str(caught.value).startswith("event 2 of 2: data")
    assert "canary" not in str(caught.value)


def test_patterns_and_several_that_match(tmp_path: Path) -> None:
    known = schemas(tmp_path, order_ANY=ORDER, order_created={"maxProperties": 1})
    check(known, order({"id": 1}), order({"id": 1, "more": 2}, "order.deleted"))
    with pytest.raises(SchemaViolation):
        check(known, order({"id": 1, "more": 2}))
    with pytest.raises(SchemaViolation) as caught:
        check(known, order({}, "order.deleted"))
    assert caught.value.__cause__ is not caught.value


@pytest.mark.parametrize(
    "event",
    [
        Event(type="order.created", source="/"),
        Event(type="order.created", source="/", data=b"{}"),
        Event(type="order.created", source="/", data=b"<a/>", datacontenttype="text/xml"),
    ],
)
def test_data_that_is_no_json_is_refused(tmp_path: Path, event: Event) -> None:
    with pytest.raises(SchemaViolation, match="schema"):
        check(schemas(tmp_path, order_created=True), event)


def test_json_that_is_none_is_an_error_of_its_own(tmp_path: Path) -> None:
    broken = Event(type="order.created", source="/", data=b"{", datacontenttype="application/json")
    with pytest.raises(SchemaViolation, match="data is not JSON"):
        check(schemas(tmp_path, order_created=True), broken)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "not JSON"),
        ("[]", "expected a JSON Schema, which is an object"),
        ('{"type": "objekt"}', "no JSON Schema: "),
        ('{"$ref": "http://127.0.0.1:9/schema"}', "only files are read"),
        ('{"$ref": "file:///etc/passwd"}', "only files in the directory"),
        ('{"$ref": "../outside.json"}', "only files in the directory"),
        ('{"$ref": "missing.json"}', "no such file"),
    ],
)
def test_schemas_that_are_none(tmp_path: Path, content: str, fault: str) -> None:
    (tmp_path / "outside.json").write_text("true")
    path = tmp_path / "inner" / "schema.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ValueError, match=fault):
        DataSchema.load(path)


def test_references_between_files(tmp_path: Path) -> None:
    (tmp_path / "my id.json").write_text('{"type": "integer"}')
    (tmp_path / "order.json").write_text('{"properties": {"id": {"$ref": "my%20id.json"}}}')
    known = TypeSchemas({"*": DataSchema.load(tmp_path / "order.json")})
    check(known, order({"id": 1}))
    with pytest.raises(SchemaViolation, match="'/id'"):
        check(known, order({"id": "x"}))
