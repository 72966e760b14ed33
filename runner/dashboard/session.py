"""Sessions: the cookie of a visitor who logged in with a token; every instance reads it, none stores it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import orjson
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from ..service.clock import utcnow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..config.api import TokenEntry

__all__ = ["LASTS", "Session", "open_cookie", "seal_cookie"]

LASTS = timedelta(hours=12)
"""How long a session lasts, unless its token ends before."""

_LONGEST = 4096  # characters of a cookie that is looked at


@dataclass(frozen=True, slots=True)
class Session:
    """
    A session.

    Attributes:
        entry: the token of the file that it was begun with.
        nonce: random, and the same as long as the session lasts.
        ends: when it ends.
    """

    entry: TokenEntry
    nonce: str
    ends: datetime


def seal_cookie(token: str, live: Sequence[tuple[bytes, TokenEntry]], deployment_id: str) -> tuple[Session, str] | None:
    """
    Return a session that is begun now, and its cookie; None where the token is none of those that are live.

    The cookie is the token, when the session ends, and a nonce, encrypted and authenticated (XSalsa20-Poly1305) with a
    key that is made of the SHA-256 of the token. So every process that has the token in its file reads it, also after a
    restart. Because the token is in it, the hashes of a file alone make none.
    """
    digest = hashlib.sha256(token.encode()).digest()
    for known, entry in live:
        if hmac.compare_digest(digest, known):
            ends = min(utcnow() + LASTS, entry.expires or datetime.max.replace(tzinfo=UTC))
            session = Session(entry, secrets.token_hex(16), ends)
            content = orjson.dumps([token, session.ends.timestamp(), session.nonce])
            sealed = SecretBox(_key(known, deployment_id)).encrypt(content)
            return session, base64.urlsafe_b64encode(sealed).decode().rstrip("=")
    return None


def open_cookie(cookie: str, live: Sequence[tuple[bytes, TokenEntry]], deployment_id: str) -> Session | None:
    """Return the session of a cookie; None if it is over, or its token is none of those that are live any more."""
    try:
        sealed = base64.b64decode(cookie[:_LONGEST] + "=" * (-len(cookie) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        return None
    for known, entry in live:
        try:
            token, ends, nonce = orjson.loads(SecretBox(_key(known, deployment_id)).decrypt(sealed))
            digest = hashlib.sha256(str(token).encode()).digest()
        except (CryptoError, ValueError):
            continue
        if not hmac.compare_digest(digest, known):
            return None  # made from the hash, without the token
        session = Session(entry, nonce, datetime.fromtimestamp(ends, UTC))
        return session if utcnow() < session.ends else None
    return None


def _key(digest: bytes, deployment_id: str) -> bytes:
    return hmac.digest(digest, b"dashboard session of " + deployment_id.encode(), "sha256")
