"""Signatures of posts by Standard Webhooks 1.0.0: the id, the time and the exact bytes of the body."""

from __future__ import annotations

import binascii
import re
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Protocol

__all__ = ["EXPECTED", "Key", "Signer", "message_id", "parse_key"]

EXPECTED = "expected whsec_ and the base64 of 24 to 64 random bytes, or whsk_ and that of an ed25519 key of 32 or 64"
"""The form of a secret, for messages: Standard Webhooks, section "Signature scheme"."""

_SECRET = re.compile(r"(whsec|whsk)_([A-Za-z0-9+/_-]+={0,2})")
_EMPTY = sha256()  # to copy it takes less than to begin anew
_INNER, _OUTER = (bytes(byte ^ pad for byte in range(256)) for pad in (0x36, 0x5C))  # RFC 2104 §2


class Key(Protocol):
    """A key that signs."""

    def sign(self, content: bytes) -> str:
        """Return the signature of `content` with its version: `v1,…` or `v1a,…`."""


class _HmacKey:
    """HMAC-SHA256 (RFC 2104), whose two digests have begun with the key: the module `hmac` takes twice as long."""

    def __init__(self, key: bytes) -> None:
        block = key.ljust(_EMPTY.block_size, b"\0")  # keys are no longer than that
        self._inner = sha256(block.translate(_INNER))
        self._outer = sha256(block.translate(_OUTER))

    def sign(self, content: bytes) -> str:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(content)
        outer.update(inner.digest())
        return f"v1,{b64encode(outer.digest()).decode()}"


class _Ed25519Key:
    def __init__(self, seed: bytes) -> None:
        from nacl.signing import SigningKey  # it loads libsodium

        self._key = SigningKey(seed)

    def sign(self, content: bytes) -> str:
        return f"v1a,{b64encode(self._key.sign(content).signature).decode()}"


def parse_key(secret: str) -> Key:
    """Return the key in `secret`. Raise `ValueError`, whose text repeats nothing of it, for anything else."""
    found = _SECRET.fullmatch(secret.strip())
    if found is None:
        raise ValueError(EXPECTED)
    try:
        key = b64decode(found[2].replace("-", "+").replace("_", "/"), validate=True)
    except binascii.Error as error:
        raise ValueError(f"{EXPECTED}; this is no base64") from error
    if found[1] == "whsec":
        if not 24 <= len(key) <= 64:
            raise ValueError(f"{EXPECTED}; this has {len(key)}")
        return _HmacKey(key)
    if len(key) not in (32, 64):
        raise ValueError(f"{EXPECTED}; this has {len(key)}")
    return _Ed25519Key(key[:32])  # the second half of a long one is the public key


class Signer:
    """Signs with every key that is in force: the current one first, the one before it during its grace."""

    def __init__(
        self,
        key: Key,
        previous: Key | None = None,
        until: datetime | None = None,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        Sign with `key`.

        Args:
            previous: signs as well, so that receivers may change over one by one.
            until: when `previous` stops signing; None is never.
            now: seconds since 1970.
        """
        self._keys: Sequence[Key] = (key,)
        self._both: Sequence[Key] = (key,) if previous is None else (key, previous)
        self._until = float("inf") if until is None else until.timestamp()
        self._now = now

    def headers(self, id: str, body: bytes) -> dict[str, str]:
        """
        Return the three headers of one attempt to post `body`.

        Args:
            id: of the message, the same for each attempt; without a dot.
        """
        now = self._now()
        timestamp = str(int(now))
        content = f"{id}.{timestamp}.".encode() + body
        keys = self._both if now < self._until else self._keys
        signature = keys[0].sign(content) if len(keys) == 1 else " ".join([key.sign(content) for key in keys])
        return {"webhook-id": id, "webhook-timestamp": timestamp, "webhook-signature": signature}


def message_id(identities: Iterable[tuple[str, str]]) -> str:
    """
    Return the id of a message with the events of these (source, id) pairs.

    It is a digest, because the attributes are the publisher's: the id of a message must not be chosen by others and has
    no dot, which separates it from the rest of what is signed (Standard Webhooks, "Signature scheme").
    """
    digest = _EMPTY.copy()
    for source, id in identities:
        digest.update(f"{source}\0{id}\0".encode())
    return f"evt_{digest.hexdigest()[:40]}"
