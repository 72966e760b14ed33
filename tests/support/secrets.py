"""What this process knows of secrets, for tests of what it hides."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from runner.log import redaction

__all__ = ["forget_everything", "nothing_known"]


def forget_everything() -> None:
    """Hide nothing but what is learnt from now on."""
    redaction._learnt.clear()
    redaction._spellings = ()


@contextlib.contextmanager
def nothing_known() -> Iterator[None]:
    """Hide nothing in this block but what is learnt in it."""
    before = redaction._all_spellings()
    forget_everything()
    try:
        yield
    finally:
        forget_everything()
        redaction._spellings = before
