"""The configuration: one file, one schema, every fault with its place."""

from __future__ import annotations

from .advice import advice
from .dsn import Dsn
from .loader import dump, load_config
from .schema import Config
from .secret import Secret

__all__ = ["Config", "Dsn", "Secret", "advice", "dump", "load_config"]
