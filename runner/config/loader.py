"""Load a configuration from a file, or raise the list of its faults."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ..errors import ConfigError
from ..log.redaction import MASK
from ..policies.retry import RetryPolicy
from .errors import MOST_FAULTS, Fault, KeyPath, config_error, limited_effort, quoted
from .fields import Context
from .inclusion import read_source
from .keys import known_keys
from .messages import describe, narrowed
from .retry import Retry, RetryOverride
from .schema import Config
from .setting import apply_settings
from .source import Source

__all__ = ["dump", "load_config"]

# Faults about a missing key keep their path; other faults move up to the nearest value in the file.
_ABOUT_ABSENCE = frozenset({"missing", "extra_forbidden"})


def load_config(
    path: Path | str,
    environ: Mapping[str, str] | None = None,
    *,
    imports: bool = True,
    settings: Sequence[str] = (),
) -> Config:
    """
    Return the configuration in the file and in those it includes.

    Nothing is connected to.

    Args:
        path: as the user wrote it; messages begin with it.
        environ: what `${VAR}` is looked up in; the process's environment by default.
        imports: import the modules of `python:` sinks and third-party plug-ins, as a check. A process that only
            publishes or reads may lack them.
        settings: `a.b=value`, each in place of the value in the file; the last one counts.

    Raises:
        ConfigError: every fault of the file, in its order, one per line; then those of the files it includes.
    """
    file, path = str(path), Path(path)
    base = Path(os.path.abspath(path)).parent
    environ = os.environ if environ is None else environ
    source = read_source(file, environ)
    try:
        return _checked(source, file, base, environ, imports, settings)
    except ConfigError as error:
        error.files = tuple(source.files)
        raise


def _checked(
    source: Source, file: str, base: Path, environ: Mapping[str, str], imports: bool, settings: Sequence[str]
) -> Config:
    """Return the configuration in a file that was read; see `load_config()`."""
    if source.value is None:
        raise config_error(file, source.faults or [Fault("the file is empty, expected deployment_id and storage")])
    if not isinstance(source.value, dict):
        shape = Fault("expected a mapping with deployment_id and storage", (), source.position(()))
        raise config_error(file, [*source.faults, shape])
    apply_settings(source, settings, environ)
    _keep_kinds(source)
    imports = imports and not _serves_only(source.value)
    try:
        with limited_effort():
            context = Context.of(source.value, base, environ, imports)
            config = Config.model_validate(source.value, context=context)
    except ValidationError as error:
        faults, more = _faults(error, source)
        raise config_error(file, [*source.faults, *faults], more) from None
    if source.faults:
        raise config_error(file, source.faults)
    source.files |= _schema_files(config)
    source.certificates |= context.certificates
    return config.attach(file, source, tuple(settings))


def _schema_files(config: Config) -> dict[Path, str]:
    """Return the schema files that can be read; the others are reported where they are loaded."""
    found = {}
    for entry in config.types.values():
        with contextlib.suppress(OSError):
            found[entry.schema_file] = hashlib.sha256(entry.schema_file.read_bytes()).hexdigest()
    return found


def _serves_only(document: dict[str, Any]) -> bool:
    """Return whether the process calls no handler, because `worker.enabled` is false."""
    worker = document.get("worker")
    return isinstance(worker, dict) and worker.get("enabled") in (False, "false")


def _keep_kinds(source: Source) -> None:
    """Keep the kind of a plug-in whose main option is empty: `polling: ${EVERY:-}` is `polling`."""
    for path in source.left_out:
        if len(path) == 3 and path[0] in ("strategies", "sinks"):
            with contextlib.suppress(LookupError, TypeError):  # a fault around it is reported
                plugin = source.value[path[0]][path[1]]
                if plugin == {}:
                    plugin[path[2]] = None


def dump(config: Config) -> dict[str, Any]:
    """Return the configuration with all defaults, as JSON types: durations as text, secrets as `***`."""
    # their content is part of the document
    document = config.model_dump(mode="json", by_alias=True, exclude={"include"})
    if document["api"] is None:
        del document["api"]  # null in its place would look like a section with the defaults
    document["retry"] = _shown(RetryOverride().over(config.retry))
    if config.breaker is not None:
        document["breaker"] = config.breaker.complete().model_dump(mode="json")
    for entry, subscription in zip(document["subscriptions"], config.to_subscriptions(), strict=True):
        entry["retry"] = _shown(subscription.retry)
    return document


def _shown(policy: RetryPolicy) -> dict[str, Any]:
    """Return the policy in the form of the file: either a schedule or doubling waits."""
    fields = {name: getattr(policy, name) for name in Retry.model_fields} | {"schedule": policy.schedule or None}
    left_out = {"delay", "max_delay"} if policy.schedule else set[str]()
    return Retry.model_construct(**fields).model_dump(mode="json", exclude=left_out)


def _faults(error: ValidationError, source: Source) -> tuple[list[Fault], int]:
    """Return the first faults, in the order of the file, and how many others there are: wording all takes minutes."""
    items = []
    for item in map(narrowed, error.errors(include_url=False)):
        path: KeyPath = tuple(step for step in item["loc"] if step != "[key]")
        if item["type"] not in _ABOUT_ABSENCE:
            while path and path not in source.positions and path not in source.origins:
                path = path[:-1]
        if any(path[:length] in source.broken for length in range(len(path) + 1)):
            continue  # reported already, with a better text
        if item["type"] == "too_short" and item["input"]:
            continue  # pydantic does not count items that have faults of their own
        items.append((source.place(path), path, item))
    items.sort(key=lambda each: (each[0].file, each[0].position or (0, 0)))
    # A message shows the text of the file, not the substituted value, which may be a secret.
    outside = [(quoted(value), quoted(template)) for value, template in source.templates.items()]
    outside = [pair for pair in outside if MASK not in pair[0]]
    faults = []
    for place, path, item in items[:MOST_FAULTS]:
        message = _worded(item, path, source)
        for value, template in outside:
            message = message.replace(value, template)
        faults.append(Fault(message, place.path, place.position, place.file))
    return faults, len(items) - len(faults)


def _worded(item: ErrorDetails, path: KeyPath, source: Source) -> str:
    message = describe(item, known_keys(Config, item["loc"][:-1]))
    if item["type"] == "missing" and path in source.left_out:
        return f"{message}, and {source.left_out[path]}"
    return message
