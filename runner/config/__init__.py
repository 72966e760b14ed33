"""The configuration: one file, one schema, every fault with its place."""

from __future__ import annotations

from .dsn import Dsn
from .loader import dump, json_schema, load_config
from .schema import Config
from .secret import Secret

__all__ = ["Config", "Dsn", "Secret", "dump", "json_schema", "load_config"]
