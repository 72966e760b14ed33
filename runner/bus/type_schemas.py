"""Schemas of types: the data schemas that an event must satisfy before it is recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from ..errors import SchemaViolation
from ..policies.data_schema import DataSchema
from ..storage.contract.events import Publication
from ..subscription import matches_pattern

__all__ = ["TypeSchemas"]


class TypeSchemas:
    """The data schemas of a deployment, by the type of event; an event must satisfy all that match its type."""

    def __init__(self, schemas: Mapping[str, DataSchema]) -> None:
        """Args: schemas by pattern of the type, in which `*` stands for any characters."""
        self._schemas = dict(schemas)
        self._of_type = lru_cache(maxsize=1000)(self._matching)

    def check(self, publications: Sequence[Publication]) -> None:
        """
        Raise for the first event whose data does not fit a schema of its type.

        Raises:
            SchemaViolation: with the JSON pointer of the part that does not.
        """
        for index, publication in enumerate(publications):
            for schema in self._of_type(publication.event.type):
                try:
                    schema.check(publication.event)
                except SchemaViolation as error:
                    if len(publications) == 1:
                        raise
                    raise error.in_batch(index, len(publications)) from error

    def _matching(self, event_type: str) -> tuple[DataSchema, ...]:
        return tuple(schema for pattern, schema in self._schemas.items() if matches_pattern(pattern, event_type))
