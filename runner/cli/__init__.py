"""The command line. Nothing here is imported by the rest of the package."""

from __future__ import annotations

from .program import main

__all__ = ["main"]
