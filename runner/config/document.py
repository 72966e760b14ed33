"""One part of a configuration in a file of its own: read as the configuration is, with `${…}` filled in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .errors import config_error
from .source import parse_source
from .substitution import Substitution

__all__ = ["read_document"]


def read_document(content: bytes, file: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """
    Return the mapping in a YAML or JSON text.

    Args:
        file: its path, which messages begin with; paths of `${file:…}` start from its directory. `-` for none.
        environ: what `${VAR}` is looked up in.

    Raises:
        ConfigError: every fault, one per line.
    """
    base = Path() if file == "-" else Path(file).parent
    source = parse_source(content, Substitution(environ, base.absolute()))
    if source.faults:
        raise config_error(file, source.faults)
    if not isinstance(source.value, dict):
        raise ConfigError(f"{file}: expected a mapping, such as {{name: crm, types: [order.*], sink: crm}}")
    return source.value
