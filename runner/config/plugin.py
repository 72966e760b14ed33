"""One strategy or sink of the file: `kind`, `kind: {options}` or `kind: main option`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, core_schema

from ..redaction import MASK
from .callables import import_callable, is_reference
from .errors import complaint, got, shape
from .fields import Context, Model, context_of

__all__ = ["Options", "Plugin", "PluginField"]


class Options(Model):
    """
    The options of one kind.

    `main` names the one that a bare value stands for; `batches` says of a sink that it takes several events at once.
    """

    main: ClassVar[str | None] = None
    batches: ClassVar[bool] = False

    def check(self, context: Context) -> None:
        """Raise `ValueError` when the rest of the file does not go with this plug-in."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """
    One strategy or sink: its kind, and its checked options.

    A third-party kind is `module:name`, which was seen to import; its options are the mapping from the
    file as it stands, for the callable to check.
    """

    kind: str
    options: Options | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PluginField:
    """Makes a field of the schema take any of the kinds in `table`, or a third-party one."""

    table: Mapping[str, type[Options]]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Read the three forms; write `{kind: options}`."""
        return core_schema.with_info_plain_validator_function(
            self._read, serialization=core_schema.plain_serializer_function_ser_schema(_shown, when_used="json")
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Describe the three forms, with the options of every kind."""
        kinds: dict[str, Any] = {}
        for kind, options in self.table.items():
            forms = [handler(options.__pydantic_core_schema__), {"type": "null"}]
            if options.main:
                forms += [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
            kinds[kind] = {"anyOf": forms}
        third_party: dict[str, Any] = {"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_.]*$": {}}
        mapping = {"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": False}
        mapping |= {"properties": kinds, "patternProperties": third_party}
        return {"anyOf": [{"type": "string"}, mapping]}

    def _read(self, raw: Any, info: core_schema.ValidationInfo) -> Plugin:
        if isinstance(raw, Plugin):
            return raw
        if isinstance(raw, str):
            raw = {raw: None}
        if not isinstance(raw, dict) or len(raw) != 1:
            kinds = ", ".join(sorted(self.table))
            found = f"a mapping of {len(raw)} keys" if isinstance(raw, dict) else got(raw)
            raise ValueError(f"expected a kind ({kinds}), or one kind with its options, got {found}")
        [(kind, options)] = raw.items()
        if kind in self.table:
            return self._known(kind, options, info)
        if not is_reference(kind):
            raise ValueError(complaint(kind, self.table, what="kind"))
        if context_of(info).imports:
            import_callable(kind)
        if not isinstance(options, dict | None):
            raise ValueError(f"expected a mapping of options, got {shape(options)}")
        return Plugin(kind, options or {})

    def _known(self, kind: str, raw: Any, info: core_schema.ValidationInfo) -> Plugin:
        model = self.table[kind]
        if raw is None:
            raw = {}
        elif not isinstance(raw, dict) and model.main:
            raw = {model.main: raw}
        # Validated as a mapping of one key, so that the kind is part of where pydantic says a fault is.
        options: Options = _adapter(model).validate_python({kind: raw}, context=info.context)[kind]
        options.check(context_of(info))
        return Plugin(kind, options)


@functools.cache
def _adapter(model: type[Options]) -> TypeAdapter[dict[str, Any]]:
    return TypeAdapter(dict[str, model])  # type: ignore[valid-type]  # the model is a value here


def _shown(plugin: Plugin) -> dict[str, Any]:
    if isinstance(plugin.options, Options):
        return {plugin.kind: plugin.options.model_dump(mode="json", by_alias=True)}
    # Nobody here knows which options of a third party are secret.
    return {plugin.kind: dict.fromkeys(plugin.options, MASK)}
