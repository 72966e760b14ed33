"""The keys of the schema as a tree."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from .errors import KeyPath
from .plugin import PluginField

__all__ = ["known_keys", "schema_keys"]

_ANY_NAME = "<name>"
_ANY_INDEX = "[]"


def known_keys(model: type[BaseModel], path: KeyPath) -> list[str]:
    """Return the allowed keys of a mapping at `path`; empty where the schema has none."""
    node: Any = model
    for step in path:
        children = _children(node)
        node = children.get(step if step in children else _ANY_INDEX if isinstance(step, int) else _ANY_NAME)
    return [key for key in _children(node) if key not in (_ANY_NAME, _ANY_INDEX)]


def schema_keys(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key, such as `sinks.<name>.nats.tls` or `subscriptions[].sink`, with its part of the schema."""
    yield from _walk(model, "")


def _walk(node: Any, path: str) -> Iterator[tuple[str, FieldInfo]]:
    fields = _fields(node)
    for step, child in _children(node).items():
        inside = path + step if step == _ANY_INDEX else f"{path}.{step}".lstrip(".")
        if step in fields:
            yield inside, fields[step]
        yield from _walk(child, inside)


def _children(node: Any) -> Mapping[Any, Any]:
    """Return the children by key; `<name>` and `[]` stand for any."""
    if isinstance(node, PluginField):
        return node.table
    if fields := _fields(node):
        return {key: _plain(info.annotation, info.metadata) for key, info in fields.items()}
    match typing.get_origin(node):
        case origin if origin is tuple:
            return {_ANY_INDEX: _plain(typing.get_args(node)[0])}
        case origin if origin is Mapping:
            return {_ANY_NAME: _plain(typing.get_args(node)[1])}
    return {}


def _fields(node: Any) -> dict[str, FieldInfo]:
    """Return the fields of a model by their keys in the file; empty for anything else."""
    if not (isinstance(node, type) and issubclass(node, BaseModel)):
        return {}
    return {info.alias or name: info for name, info in node.model_fields.items()}


def _plain(annotation: Any, metadata: typing.Sequence[Any] = ()) -> Any:
    """Return the annotation without `None`; a plug-in's marker stands for the plug-in."""
    if typing.get_origin(annotation) is Annotated:
        annotation, *metadata = typing.get_args(annotation)
    for item in metadata:
        if isinstance(item, PluginField):
            return item
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(annotation) if part is not type(None)]
        return _plain(parts[0]) if len(parts) == 1 else annotation
    return annotation
