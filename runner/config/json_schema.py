"""JSON Schemas: of the file, for editors, and of definitions made at run time, for `/openapi.json`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema
from typing_extensions import override

from .duration import format_duration
from .kinds import SINKS
from .schedules import ScheduleEntry
from .schema import Config
from .subscriptions import SubscriptionEntry
from .written import Own

__all__ = ["json_schema", "written_schemas"]

_REFERENCE = {"type": "string", "pattern": r"\$\{.*\}"}  # `${VAR}` becomes a number or a bool only later
_LIMITS = {"ge": "minimum", "le": "maximum"}  # pydantic keeps its own names where a validator runs first

Schema = dict[str, Any]


def json_schema() -> Schema:
    """Return the JSON Schema of the configuration file."""
    made = Config.model_json_schema(schema_generator=_FileGenerator)
    return {"$schema": _FileGenerator.schema_dialect, **_tidied(made, references=True)}


def written_schemas(place: str) -> Mapping[str, Schema]:
    """
    Return the JSON Schemas `SubscriptionBody` and `ScheduleBody`, and those of their parts, by their names.

    Args:
        place: of all of them in the document, such as `#/components/schemas/`.
    """
    found: dict[str, Schema] = {}

    def schema_of(model: type[BaseModel]) -> Schema:
        made: Schema = _tidied(model.model_json_schema(ref_template=f"{place}{{model}}", schema_generator=_Generator))
        found.update(made.pop("$defs", {}))
        return made

    body, own, webhook = schema_of(SubscriptionEntry), schema_of(Own), schema_of(SINKS["webhook"])
    for part, name in ((webhook, "allow"), (webhook, "origin"), (webhook, "tls"), (found["OAuth2"], "tls")):
        part["properties"][name] = {"type": "null"}  # only the file may set it
    for name in ("Allow", "Tls"):
        del found[name]
    found["Webhook"] = webhook
    destination = {
        "type": "object",
        "description": own["properties"]["destination"]["description"],
        "properties": {"webhook": {"anyOf": [{"$ref": f"{place}Webhook"}, webhook["properties"]["url"]]}},
        "required": ["webhook"],
        "additionalProperties": False,
    }
    body["properties"] |= own["properties"] | {"destination": {"anyOf": [destination, {"type": "null"}]}}
    body["properties"]["sink"] = {"anyOf": [body["properties"]["sink"], {"type": "null"}]}
    schedule = schema_of(ScheduleEntry)
    found["SubscriptionBody"] = body | {"required": [], "oneOf": _one_of("sink", "destination")}
    found["ScheduleBody"] = schedule | {"required": ["event"], "oneOf": _one_of("cron", "every")}
    return found


def _one_of(*names: str) -> list[Schema]:
    """Return the alternatives that each have exactly one of the members; the others are absent or null."""
    return [
        {
            "required": [each],
            "properties": {name: {"not": {"type": "null"}} if name == each else {"type": "null"} for name in names},
        }
        for each in names
    ]


def _tidied(schema: Any, *, references: bool = False) -> Any:
    """
    Return the schema with its limits under their names in JSON Schema.

    Args:
        references: accept `${…}` wherever a text has a pattern.
    """
    if isinstance(schema, list):
        return [_tidied(each, references=references) for each in schema]
    if not isinstance(schema, dict):
        return schema
    tidied = {name: _tidied(each, references=references) for name, each in schema.items()}
    for name, proper in _LIMITS.items():
        if isinstance(tidied.get(name), int | float):
            tidied[proper] = tidied.pop(name)
    if tidied.get("type") == "array" and "minLength" in tidied:
        tidied["minItems"] = tidied.pop("minLength")
    if references and isinstance(pattern := tidied.get("pattern"), str) and tidied != _REFERENCE:
        tidied["pattern"] = f"{pattern}|{_REFERENCE['pattern']}"
    return tidied


class _Generator(GenerateJsonSchema):
    """Write durations in the form of the file."""

    @override
    def encode_default(self, dft: Any) -> Any:
        return format_duration(dft) if isinstance(dft, timedelta) else super().encode_default(dft)


class _FileGenerator(_Generator):
    """Accept `${…}` for numbers and bools."""

    @override
    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return {"anyOf": [super().int_schema(schema), _REFERENCE]}

    @override
    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return {"anyOf": [super().float_schema(schema), _REFERENCE]}

    @override
    def bool_schema(self, schema: core_schema.BoolSchema) -> JsonSchemaValue:
        return {"anyOf": [super().bool_schema(schema), _REFERENCE]}
