"""Types of events in the file, with the schemas of their data."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, field_validator

from ..policies.data_schema import DataSchema
from .errors import got, quoted
from .fields import FilePath, Model

__all__ = ["TypeEntry", "TypePattern"]


def _pattern(value: str) -> str:
    if not value or len(value) > 2048 or any(character <= " " or character == "\x7f" for character in value):
        raise ValueError(f"expected a type of event, in which '*' stands for anything, got {got(value)}")
    return value


TypePattern = Annotated[str, AfterValidator(_pattern)]
"""A type of event; `*` stands for any characters."""


class TypeEntry(Model):
    """The schema of a type of event."""

    model_config = ConfigDict(protected_namespaces=())

    schema_file: FilePath = Field(
        alias="schema",
        description="File of the JSON Schema that the data of every event of this type has to fit.",
    )

    @field_validator("schema_file")
    @classmethod
    def _compiles(cls, path: FilePath) -> FilePath:
        try:
            DataSchema.load(path)
        except OSError as error:
            raise ValueError(f"cannot read {quoted(str(path))}: {error.strerror}") from None
        return path
