"""Field types of the schema, and the context of the file they are checked in."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    create_model,
)
from pydantic_core import CoreSchema, core_schema

from .dsn import Dsn
from .duration import format_duration
from .errors import complaint, got, quoted
from .source import PlacedText

__all__ = [
    "NAME",
    "Context",
    "DsnField",
    "FilePath",
    "Model",
    "Name",
    "Number",
    "OneOrList",
    "SinkName",
    "base_of",
    "check_subject",
    "context_of",
    "is_near",
    "optional",
]

T = TypeVar("T", dict[str, Any], list[Any])

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)
NAME = f"^{_NAME.pattern}$"
"""The form of a name, for JSON Schema."""
_TOKEN = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


class Model(BaseModel):
    """The base of every part of the schema: unknown keys are faults, instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def optional(model: type[Model]) -> Any:
    """Return `model` with every field optional and nullable, for a section that overrides another."""
    fields: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        annotation: Any = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
        fields[name] = (annotation | None, Field(default=None, description=info.description))
    return create_model(f"Optional{model.__name__}", __base__=model, **fields)


def check_longest(section: Model, first: str, longest: str) -> None:
    """Raise `ValueError` if the section gives a first wait that is longer than the longest one it gives."""
    wait, most = getattr(section, first), getattr(section, longest)
    if {first, longest} <= section.model_fields_set and wait is not None and most is not None and wait > most:
        raise ValueError(f"{longest}: expected at least {first}, {format_duration(wait)}, got {format_duration(most)}")


def merged(defaults: Model, own: Mapping[str, Any], first: str, longest: str) -> dict[str, Any]:
    """
    Return the fields of a section with those of its override in their place.

    Of a first wait that is longer than the longest one, the one that is not written gives way; of two that are, that
    of the section.
    """
    fields = dict(defaults)
    for written in ({key: fields[key] for key in defaults.model_fields_set}, own):
        fields |= written
        if fields[first] > fields[longest]:
            kept, moved = (first, longest) if first in written else (longest, first)
            fields[moved] = fields[kept]
    return fields


@dataclass(slots=True)
class Context:
    """Facts about the whole file that validators of its parts need, gathered before validation."""

    base: Path = field(default_factory=Path)
    dsn: Dsn | None = None
    pgbouncer: bool = False
    tls: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)
    sinks: Mapping[str, str] | None = None  # name -> kind, or the value in its place
    singly: frozenset[str] = frozenset()  # sinks that have a subscription without `batch`
    attempts: object = None  # the default of `max_attempts` as written in the file
    nats: bool = True
    imports: bool = True  # whether modules that the file names are imported
    names: set[tuple[str, str]] = field(default_factory=set)  # (kind, name) that are reserved so far
    certificates: set[Path] = field(default_factory=set)  # files of TLS that are named so far

    @classmethod
    def of(cls, document: object, base: Path, environ: Mapping[str, str], imports: bool = True) -> Context:
        """Gather the facts of an unchecked document."""
        storage, sinks = _part(document, "storage", dict), _part(document, "sinks", dict)
        strategies, subscriptions = _part(document, "strategies", list), _part(document, "subscriptions", list)
        try:
            text = storage.get("dsn")
            dsn = Dsn.parse(str(text), text.base if isinstance(text, PlacedText) else base)
        except ValueError:
            dsn = None  # reported where the field is checked
        return cls(
            base=base,
            dsn=dsn,
            pgbouncer=str(storage.get("pgbouncer")).lower() in ("true", "yes", "on", "1"),
            tls=str(storage.get("tls")),
            environ=environ,
            sinks={name: _kind(plugin) for name, plugin in sinks.items()},
            singly=frozenset(
                str(entry.get(key))
                for entry in subscriptions
                if isinstance(entry, dict)
                for key in ("sink", "dead_letter")
                if key == "dead_letter" or entry.get("batch") is None
            ),
            attempts=_part(document, "retry", dict).get("max_attempts"),
            nats=any(isinstance(entry, dict | str) and "nats" in entry for entry in strategies),
            imports=imports,
        )

    def claim(self, what: str, name: str) -> None:
        """Reserve a unique name. Raise `ValueError` if it is taken."""
        if (what, name) in self.names:
            raise ValueError(f"a second {what} is called {quoted(name)}; names are unique")
        self.names.add((what, name))


def _part(document: object, key: str, shape: type[T]) -> T:
    part = document.get(key) if isinstance(document, dict) else None
    return part if isinstance(part, shape) else shape()


def _kind(plugin: object) -> str:
    return str(next(iter(plugin), None) if isinstance(plugin, dict) else plugin)


def context_of(info: ValidationInfo) -> Context:
    """Return the context of the file; by default one without facts, based at the working directory."""
    return info.context if isinstance(info.context, Context) else Context()


def base_of(value: str, info: ValidationInfo) -> Path:
    """Return the directory that a relative path in `value` starts from: that of the file which says it."""
    return value.base if isinstance(value, PlacedText) else context_of(info).base


def is_near(host: str) -> bool:
    """Return whether the way to `host` is private: a socket, or this machine itself."""
    if host.startswith("/") or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _whole(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"expected a whole number, got {got(value)}")
    return value


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"expected up to 63 letters, digits, '_', '-' and '.', no '_', '-' or '.' first, got {got(value)}"
        )
    return value


def _sink(value: str, info: ValidationInfo) -> str:
    sinks = context_of(info).sinks
    if sinks is not None and value not in sinks:
        raise ValueError(complaint(value, sinks, what="sink"))
    return value


def _path(value: object, info: ValidationInfo) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"expected the path of a file, got {got(value)}")
    return Path(os.path.abspath(base_of(value, info) / value))


def _dsn(value: object, info: ValidationInfo) -> Dsn:
    if isinstance(value, Dsn):
        return value
    if not isinstance(value, str):
        # The value is not repeated: it may hold a password.
        raise ValueError("expected a DSN such as postgresql://user@host:5432/database or sqlite:///file.db")
    return Dsn.parse(value, base_of(value, info))


def check_subject(template: str, tokens: frozenset[str], reserved: tuple[str, ...]) -> str:
    """
    Return `template` if it can become a NATS subject.

    Each token between dots holds letters, digits, `_`, `-` and the placeholders in `tokens`: the wildcards `*` and `>`
    would reach other deployments, and a subject with an empty token reaches no one.
    """
    placeholders = re.findall(r"\{([^{}]*)\}", template)
    for name in placeholders:
        if name not in tokens:
            raise ValueError(complaint(name, tokens, what="placeholder"))
    filled = re.sub(r"\{[^{}]*\}", "x", template)
    if len(template) > 200 or not all(_TOKEN.fullmatch(token) for token in filled.split(".")):
        raise ValueError(
            "expected a NATS subject: at most 200 characters, letters, digits, '_', '-' and "
            f"{', '.join(f'{{{name}}}' for name in sorted(tokens))} between single dots, got {got(template)}"
        )
    if template.startswith(reserved):
        raise ValueError(f"subjects that start with {' or '.join(reserved)} are reserved, got {got(template)}")
    return template


class OneOrList:
    """Accept a single text for a list of one entry."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Read both forms."""
        return core_schema.no_info_before_validator_function(_one_or_list, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Describe both forms."""
        several = handler(schema)
        return {"anyOf": [several["items"], several]}


def _one_or_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Number = Annotated[int, BeforeValidator(_whole)]
"""A whole number; unlike in Python, a boolean is none."""

Name = Annotated[str, AfterValidator(_name), WithJsonSchema({"type": "string", "pattern": NAME})]
"""The name of a thing in commands, URLs and logs."""

SinkName = Annotated[str, AfterValidator(_sink)]
"""The name of a sink that the file describes."""

FilePath = Annotated[
    Path,
    PlainValidator(_path),
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "path"}),
]
"""The path of a file, relative to the configuration file; that it exists is not checked here."""

DsnField = Annotated[
    Dsn,
    PlainValidator(_dsn),
    PlainSerializer(lambda dsn: dsn.display, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "examples": ["postgresql://user@host:5432/database", "sqlite:///file.db"]}),
]
"""A DSN, shown without its password."""
