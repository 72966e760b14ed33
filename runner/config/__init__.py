"""The configuration: one file, one schema, every fault with its place."""

from __future__ import annotations

from .advice import advice
from .dsn import Dsn
from .json_schema import json_schema
from .loader import dump, load_config
from .schema import Config
from .secret import Secret

__all__ = ["Config", "Dsn", "Secret", "advice", "dump", "json_schema", "load_config"]
