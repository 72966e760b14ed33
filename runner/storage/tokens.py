"""Lease tokens, and their holders."""

from __future__ import annotations

import secrets

__all__ = ["HOLDER", "holder_of", "new_token"]

_BITS = 32

HOLDER = secrets.randbits(31)
"""The first half of every token of this process; its heartbeat reports it."""


def new_token() -> int:
    """Return a new lease token: 63 random bits, compared only with the tokens of one row."""
    return HOLDER << _BITS | secrets.randbits(_BITS)


def holder_of(token: int) -> int:
    """Return the `HOLDER` of the process that made the token."""
    return token >> _BITS
