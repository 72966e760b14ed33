"""One strategy or sink in the file: `kind`, `kind: {options}` or `kind: main option`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, core_schema
from typing_extensions import override

from ..errors import ConfigError, RunnerError
from ..log.redaction import MASK
from .callables import import_callable, is_reference
from .errors import complaint, got, shape
from .fields import Context, Model, context_of
from .source import unplaced

__all__ = ["Kinds", "Options", "Plugin", "PluginField"]


class Options(Model):
    """
    The options of one kind, which build it.

    Attributes:
        main: the option that a bare value stands for.
        batches: whether it is a sink that accepts several events at once.
        uniform: whether such a sink takes either batches or single events, from all its subscriptions.
    """

    main: ClassVar[str | None] = None
    batches: ClassVar[bool] = False
    uniform: ClassVar[bool] = False

    def check(self, context: Context) -> None:
        """Raise `ValueError` if the plug-in contradicts the rest of the file."""

    def advice(self) -> Iterator[tuple[str, str]]:
        """Yield warnings about unlikely settings: the option, and the text."""
        return iter(())

    def build(self, context: Any) -> Any:
        """Build the strategy or sink with the context of its seam. Nothing connects yet."""
        raise NotImplementedError


class Kinds(Mapping[str, type[Options]]):
    """The built-in kinds by name; each module is imported on demand."""

    def __init__(self, references: Mapping[str, str], *, open: bool = True) -> None:
        """
        List the kinds.

        Args:
            references: name the options of each kind, as `module:class`.
            open: whether there may be third-party kinds besides.
        """
        self._references = references
        self.open = open

    def only(self, *kinds: str) -> Kinds:
        """Return these kinds, and allow no third-party ones."""
        return Kinds({kind: self._references[kind] for kind in kinds}, open=False)

    __hash__ = object.__hash__  # a mapping has no hash, and pydantic looks annotations up by it

    @override
    def __getitem__(self, kind: str) -> type[Options]:
        module, _, name = self._references[kind].partition(":")
        options: type[Options] = getattr(import_module(module), name)
        return options

    @override
    def __contains__(self, kind: object) -> bool:
        return kind in self._references

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._references)

    @override
    def __len__(self) -> int:
        return len(self._references)


@dataclass(frozen=True, slots=True)
class Plugin:
    """
    One strategy or sink: its kind, and its checked options.

    A third-party kind is `module:name`, which can be imported; its options are the mapping of the file, unchecked, for
    the callable to check.
    """

    kind: str
    options: Options | Mapping[str, Any]

    def build(self, context: Any, *, what: str, methods: Sequence[str], **given: object) -> Any:
        """
        Return the strategy or sink; nothing connects yet.

        Args:
            context: for the built-in kinds.
            what: the seam it is of.
            methods: those of the seam, which a third-party object must have.
            given: arguments for a third-party callable, besides its options.

        Raises:
            ConfigError: a third party's cannot be built.
            SinkError: a built-in one cannot.
        """
        if isinstance(self.options, Options):
            return self.options.build(context)
        try:
            factory = import_callable(self.kind)
            arguments = inspect.signature(factory).bind(**given, **self.options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.kind}: {error}") from error
        try:
            made = factory(*arguments.args, **arguments.kwargs)
        except RunnerError as error:  # its text is meant for the author of the file, as the guides say
            raise ConfigError(f"{self.kind}: {error}") from error
        except (Exception, SystemExit) as error:
            # Its text may repeat an option, and any of them may be secret.
            raise ConfigError(f"{self.kind}: cannot be built, it raised {type(error).__name__}") from error
        if not all(callable(getattr(made, method, None)) for method in methods):
            expected = f"{', '.join(methods[:-1])} and {methods[-1]}"
            raise ConfigError(f"{self.kind}: expected a {what} with {expected}, got {type(made).__name__!r}")
        return made


@dataclass(frozen=True, slots=True)
class PluginField:
    """Let a field of the schema accept any of the kinds in `table`, or a third-party one."""

    table: Kinds

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
        third_party = "^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_.]*$"
        mapping: dict[str, Any] = {
            "type": "object",
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": False,
        }
        mapping |= {"properties": kinds, "patternProperties": {third_party: {}} if self.table.open else {}}
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
        if not self.table.open or not is_reference(kind):
            raise ValueError(complaint(kind, self.table, what="kind"))
        if context_of(info).imports:
            import_callable(kind)
        if not isinstance(options, dict | None):
            raise ValueError(f"expected a mapping of options, got {shape(options)}")
        return Plugin(kind, unplaced(options or {}))

    def _known(self, kind: str, raw: Any, info: core_schema.ValidationInfo) -> Plugin:
        model = self.table[kind]
        if raw is None:
            raw = {}
        elif not isinstance(raw, dict) and model.main:
            raw = {model.main: raw}
        # Validated as a mapping of one key, so that the kind is part of pydantic's location of a fault.
        options: Options = _adapter(model).validate_python({kind: raw}, context=info.context)[kind]
        options.check(context_of(info))
        return Plugin(kind, options)


@functools.cache
def _adapter(model: type[Options]) -> TypeAdapter[dict[str, Any]]:
    return TypeAdapter(dict[str, model])  # type: ignore[valid-type]  # the model is a value here


def _shown(plugin: Plugin) -> dict[str, Any]:
    if isinstance(plugin.options, Options):
        return {plugin.kind: plugin.options.model_dump(mode="json", by_alias=True)}
    # Any option of a third party may be secret.
    return {plugin.kind: dict.fromkeys(plugin.options, MASK)}
