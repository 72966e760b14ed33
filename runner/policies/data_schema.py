"""Data schemas: the required form of the data of events (JSON Schema)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import orjson

from ..cloudevents.content_types import is_json
from ..errors import EventError, SchemaViolation
from ..event import Event

if TYPE_CHECKING:
    from jsonschema_rs import Validator

__all__ = ["DataSchema"]

_MASK = "the value"  # errors go to publishers and logs, and show no payload
_LARGEST = 1024 * 1024  # bytes of a schema


class DataSchema:
    """A JSON Schema that the data of events must satisfy."""

    def __init__(self, validator: Validator) -> None:
        """Take a compiled schema; see `load()`."""
        self._validator = validator

    @classmethod
    def load(cls, path: Path) -> DataSchema:
        """
        Return the schema in a file, of the draft that its `$schema` names (2020-12 without).

        References lead to files in the same directory and below; nothing is fetched from elsewhere.

        Raises:
            OSError: it cannot be read.
            ValueError: it is no JSON Schema; the text says why.
        """
        import jsonschema_rs

        document = _json_file(path)
        if not isinstance(document, dict | bool):
            raise ValueError("expected a JSON Schema, which is an object")
        base = path.absolute().parent
        try:
            validator = jsonschema_rs.validator_for(
                document,
                mask=_MASK,
                base_uri=path.absolute().as_uri(),
                retriever=lambda uri: _referenced(base, uri),
            )
        except jsonschema_rs.ValidationError as error:
            raise ValueError(f"no JSON Schema: {error.message}") from None
        except jsonschema_rs.ReferencingError as error:
            raise ValueError(f"no JSON Schema: {error}") from None
        return cls(validator)

    def check(self, event: Event) -> None:
        """
        Raise for an event whose data does not fit.

        Raises:
            SchemaViolation: with the JSON pointer of the part that does not.
        """
        if event.data is None:
            raise SchemaViolation(f"data: missing; events of type {event.type!r} have a schema")
        if not is_json(event.datacontenttype or ""):
            raise SchemaViolation(
                f"datacontenttype: expected application/json, because events of type {event.type!r} have a schema",
                attribute="datacontenttype",
            )
        try:
            value = event.json()
        except EventError as error:
            raise SchemaViolation(str(error)) from error
        fault = next(self._validator.iter_errors(value), None)
        if fault is not None:
            pointer = _pointer(fault.instance_path)
            raise SchemaViolation(
                f"data does not fit the schema of type {event.type!r}, at '{pointer}': {fault.message[:300]}",
                pointer=pointer,
            )


def _pointer(path: Iterable[str | int]) -> str:
    """Return a JSON pointer (RFC 6901 §3)."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


def _referenced(base: Path, uri: str) -> Any:
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc:
        raise ValueError("only files are read")
    path = Path(unquote(parts.path)).resolve()
    if not path.is_relative_to(base.resolve()):
        raise ValueError("only files in the directory of the schema are read")
    return _json_file(path)


def _json_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(2, "no such file")
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"more than {_LARGEST} bytes")
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
