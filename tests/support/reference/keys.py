"""`docs/reference.md`: every key of the file, from the schema and configs/reference.yaml."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Le
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from runner.config.difference import is_live
from runner.config.dsn import Dsn
from runner.config.duration import format_duration
from runner.config.fields import Name, OneOrList, SinkName
from runner.config.keys import schema_keys
from runner.config.plugin import Plugin
from runner.config.schema import Config
from runner.config.secret import Secret
from runner.config.size import Size, format_size
from runner.nats.options import ServerUrl
from runner.policies.rate import Rate
from runner.sinks.http.options import WebAddress

from ..documents import ROOT

__all__ = ["EXAMPLES", "REFERENCE", "default_text", "page", "type_text", "uncommented", "values_by_key"]

REFERENCE = ROOT / "configs" / "reference.yaml"

EXAMPLES: Mapping[str, Any] = {
    "include": ["parts/*.yaml"],
    "storage.password": "${file:/run/secrets/db}",
    "storage.schema": "shop",
    "strategies[].nats.credentials": "bus.creds",
    "strategies[].nats.user": "bus",
    "strategies[].nats.password": "${NATS_PASSWORD}",
    "strategies[].nats.token": "${NATS_TOKEN}",
    "strategies[].nats.tls.ca": "ca.pem",
    "strategies[].nats.tls.cert": "client.crt",
    "strategies[].nats.tls.key": "client.key",
    "strategies[].postgres.dsn": "postgresql://listener@db/shop",
    "strategies[].postgres.password": "${file:/run/secrets/listener}",
    "sinks.<name>.nats.credentials": "bus.creds",
    "sinks.<name>.nats.user": "bus",
    "sinks.<name>.nats.password": "${NATS_PASSWORD}",
    "sinks.<name>.nats.token": "${NATS_TOKEN}",
    "sinks.<name>.nats.tls.ca": "ca.pem",
    "sinks.<name>.nats.tls.cert": "client.crt",
    "sinks.<name>.nats.tls.key": "client.key",
    "sinks.<name>.webhook.auth.oauth2.tls.ca": "ca.pem",
    "sinks.<name>.webhook.auth.oauth2.tls.cert": "client.crt",
    "sinks.<name>.webhook.auth.oauth2.tls.key": "client.key",
    "sinks.<name>.webhook.previous_secret": "${OLD_CRM_SECRET}",
    "sinks.<name>.webhook.previous_until": "2026-01-31T12:00:00Z",
    "sinks.<name>.webhook.tls.ca": "ca.pem",
    "sinks.<name>.webhook.tls.cert": "client.crt",
    "sinks.<name>.webhook.tls.key": "client.key",
    "sinks.<name>.python.target": "acme.audit:handle",
    "sinks.<name>.python.permanent": ["ValueError", "acme.errors:Bad"],
    "subscriptions[].source": "/shop/*",
    "subscriptions[].retry.schedule": ["1s", "10s", "1m"],
    "subscriptions[].batch": 100,
    "schedules[].event.source": "/reports",
    "schedules[].event.subject": "monthly",
    "retry.schedule": ["1s", "10s", "1m"],
    "retry.max_age": "24h",
    "api.root_path": "/bus",
    "api.limits.pending": 100_000,
    "destinations.allow.hosts": ["*.internal.example"],
    "destinations.allow.cidrs": ["10.1.0.0/16"],
    "tracing": "otel",
}
"""Examples of keys that configs/reference.yaml leaves empty."""

_NAMED = ((SinkName, "name of a sink"), (Name, "name"), (Size, "size"), (ServerUrl, "URL"), (WebAddress, "URL"))
_PLAIN: Mapping[Any, str] = {
    Any: "any value",
    Dsn: "DSN",
    Path: "file",
    Plugin: "kind",
    Rate: "rate",
    Secret: "secret",
    bool: "`true` or `false`",
    datetime: "time",
    float: "number",
    int: "whole number",
    str: "text",
    timedelta: "duration",
}
_KINDS = re.compile(r"(strategies\[\]|sinks\.<name>)\.(\w+)\.")
_COLUMNS = "| key | type | default | example | a change | meaning |\n|---|---|---|---|---|---|\n"
_TITLES = {"strategies[]": "Strategy", "sinks.<name>": "Sink"}

_HEAD = """\
<!-- Written by `make reference` from the schema and configs/reference.yaml. Change those. -->

# Every key of the file

All keys of the configuration file, from its schema. [configuration.md](configuration.md) explains how they work
together, and [configs/reference.yaml](../configs/reference.yaml) is one file that has them all. `runner config schema`
prints the same for editors.

`[]` stands for the items of a list, `<name>` for a name of yours. Unknown keys are faults.

| type | is |
|---|---|
| text, name | text; names have up to 63 letters, digits, `_`, `-` and `.` |
| secret | text that is shown as `***` everywhere; `${VAR}` and `${file:…}` keep it out of the file |
| duration | a number with its unit: `us`, `ms`, `s`, `m`, `h`, `d`, `w`; `1h30m` |
| size | bytes, or with a unit: `B`, `kB`, `MB`, `GB`, `KiB`, `MiB`, `GiB` |
| rate | how many in which time: `20/s`, `100/m`, `1000/h` |
| time | by RFC 3339, with its offset: `2026-01-31T12:00:00Z` |
| file | a path, relative to the file that says it |
| DSN | where a database is ([spellings](configuration.md#the-dsn)) |
| kind | the name of a strategy or sink, or one name with its options ([forms](configuration.md#strategies-and-sinks)) |
| section | a mapping with the keys below it |

*A change* says when a running process takes another value: `at once`, with a
[reload](operations.md#change-the-file-without-a-restart), or only after a `restart`. `api.tokens` change at once as
long as there are some before and after.
"""


def page() -> str:
    """Return the page."""
    given = values_by_key(yaml.safe_load(uncommented(REFERENCE.read_text())))
    tables: dict[str, list[str]] = {}
    for key, info in schema_keys(Config):
        title, intro, shown = _place(key)
        cells = (
            f"`{shown}`",
            type_text(info.annotation, info.metadata),
            default_text(key, info),
            _example_text(key, given),
            _change_text(key, info),
            info.description or "",
        )
        tables.setdefault(title, [f"## {title}\n\n{intro}{_COLUMNS}"]).append(f"| {' | '.join(cells)} |\n")
    return "\n".join([_HEAD, *("".join(rows) for rows in tables.values())])


def _place(key: str) -> tuple[str, str, str]:
    """Return the title of the table that a key is in, what is said above that, and the key as it is shown there."""
    if found := _KINDS.match(key):
        base, kind = found.groups()
        return f"{_TITLES[base]}: {kind}", f"Below `{base}`.\n\n", key.removeprefix(f"{base}.")
    top = re.split(r"[.\[]", key)[0]
    scalar = not any(other != top and re.split(r"[.\[]", other)[0] == top for other in _KEYS)
    return ("The bus" if scalar else top.capitalize()), "", key


_KEYS = tuple(key for key, _ in schema_keys(Config))


def uncommented(text: str) -> str:
    """Return configs/reference.yaml with the keys that stand there as comments, because they exclude others."""
    text = re.sub(r"^  # - sqlite:\n  #  ", "  - sqlite:\n   ", text, flags=re.MULTILINE)
    return re.sub(r"^( +)# (bearer|basic|tls): ", r"\1\2: ", text, flags=re.MULTILINE)


def type_text(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Return the type of a field in words, with the bounds of a number."""
    if typing.get_origin(annotation) is Annotated:
        annotation, *inner = typing.get_args(annotation)
        return type_text(annotation, [*inner, *metadata])
    metadata = [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        if IPv4Network in arguments:
            return "network"
        [part] = [each for each in arguments if each is not type(None)]
        return type_text(part, metadata)
    for alias, name in _NAMED:
        if typing.get_args(alias)[1] in metadata:
            return name
    match typing.get_origin(annotation):
        case origin if origin is tuple:
            either = any(isinstance(each, OneOrList) for each in metadata)
            item = type_text(arguments[0])
            return f"{item}, or a list of them" if either else f"list: {item}"
        case origin if origin in (Mapping, dict):
            return "mapping" if arguments[1] is Any else f"mapping: {type_text(arguments[1])}"
        case origin if origin is Literal:
            return " or ".join(f"`{each}`" for each in arguments)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return f"{_PLAIN[annotation]}{_bounds(metadata)}"


def _bounds(metadata: Sequence[Any]) -> str:
    low: Any = next((item.ge for item in metadata if isinstance(item, Ge)), None)
    high: Any = next((item.le for item in metadata if isinstance(item, Le)), None)
    shown = [format_duration(each) if isinstance(each, timedelta) else str(each) for each in (low, high)]
    if high is not None:
        return f", {shown[0]} to {shown[1]}"
    return "" if low is None else f", from {shown[0]}"


def default_text(key: str, info: FieldInfo) -> str:
    """Return the default of a key as it would stand in the file; `required` without one, and nothing for a section."""
    if key == "strategies":
        return "follows the DSN"
    if info.is_required():
        return "required"
    match info.get_default(call_default_factory=True):
        case BaseModel():
            return ""
        case int() as size if type_text(info.annotation, info.metadata) == "size":
            return f"`{format_size(size)}`"
        case value:
            return f"`{_written(value)}`"


def _written(value: Any) -> str:
    """Return a value as YAML on one line."""
    match value:
        case timedelta():
            return format_duration(value)
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case tuple():
            value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True, sort_keys=False)
    return " ".join(text.removesuffix("...\n").split()).replace("'", '"')


def values_by_key(node: Any, path: str = "") -> dict[str, Any]:
    """Return what the reference file gives for each key, the first one that is not empty."""
    found: dict[str, Any] = {}
    for step, value in _steps(node, path):
        for key, each in {step: value, **values_by_key(value, step)}.items():
            if found.get(key) is None:
                found[key] = each
    return found


def _steps(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{path}.{'<name>' if path in ('sinks', 'types') else key}".lstrip("."), value
    elif isinstance(node, list):
        for value in node:
            yield f"{path}[]", value


def _has_keys(key: str) -> bool:
    """Return whether a key is a section, whose keys have rows of their own."""
    return any(other.startswith((f"{key}.", f"{key}[]")) for other in _KEYS)


def _example_text(key: str, given: Mapping[str, Any]) -> str:
    if _has_keys(key):
        return ""
    value = EXAMPLES.get(key, given.get(key))
    if isinstance(value, dict | list) or (isinstance(value, str) and "${" not in value):
        return f"`{_written(value)}`"
    if isinstance(value, str):
        return f"`{re.sub(r':-[^}]*', '', value)}`"
    return f"`{_written(value)}`"


def _change_text(key: str, info: FieldInfo) -> str:
    if _has_keys(key):
        return ""
    path = [0 if step == "[]" else step for step in re.sub(r"\[\]", ".[]", key).split(".")]
    if type_text(info.annotation, info.metadata) == "DSN":
        return "restart, but for the password"
    return "at once" if is_live(path) else "restart"
