"""The JSON Schema of the file, for editors."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from .duration import format_duration
from .schema import Config

__all__ = ["json_schema"]

_REFERENCE = {"type": "string", "pattern": r"\$\{.*\}"}  # `${VAR}` becomes a number or a bool only later


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the configuration file."""
    return {"$schema": _Generator.schema_dialect} | Config.model_json_schema(schema_generator=_Generator)


class _Generator(GenerateJsonSchema):
    """Write durations in the form of the file, and accept `${…}` for numbers and bools."""

    def encode_default(self, dft: Any) -> Any:
        return format_duration(dft) if isinstance(dft, timedelta) else super().encode_default(dft)

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return {"anyOf": [super().int_schema(schema), _REFERENCE]}

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return {"anyOf": [super().float_schema(schema), _REFERENCE]}

    def bool_schema(self, schema: core_schema.BoolSchema) -> JsonSchemaValue:
        return {"anyOf": [super().bool_schema(schema), _REFERENCE]}
