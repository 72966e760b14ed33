"""The pages of docs/ that are written from the code: every key of the file, every verb of the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from . import keys, verbs

__all__ = ["PAGES"]

PAGES: Mapping[str, Callable[[], str]] = {"docs/reference.md": keys.page, "docs/commands.md": verbs.page}
"""The pages by their paths in the repository, each with what writes it."""
