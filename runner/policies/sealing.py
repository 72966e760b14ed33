"""Sealing: secrets are stored encrypted, so that a copy of the tables reveals none without a key."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["SHORTEST_KEY", "CannotOpen", "Keyring"]

SHORTEST_KEY = 32  # characters: 128 random bits in hexadecimal digits, 192 in Base64
_NONCE = 24  # bytes, of XSalsa20


class CannotOpen(Exception):
    """A sealed text does not open. The text says why, and nothing of what is in it."""


@dataclass(frozen=True, slots=True)
class _Key:
    id: str
    box: bytes
    nonces: bytes

    @classmethod
    def of(cls, text: str) -> _Key:
        """Derive from the text of a key the encryption key, the nonce key and the public id."""
        secret = text.encode()
        return cls(
            id=hashlib.blake2b(secret, digest_size=6, person=b"runner key id").hexdigest(),
            box=hashlib.blake2b(secret, digest_size=32, person=b"runner sealing").digest(),
            nonces=hashlib.blake2b(secret, digest_size=32, person=b"runner nonces").digest(),
        )


class Keyring:
    """
    The keys of a deployment: the first one seals, each one opens.

    XSalsa20-Poly1305 (libsodium's secretbox). The nonce is a keyed digest of the content, so that equal content has
    equal sealed texts: what is put twice is seen to be the same without being opened.
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        """Args: keys are random texts of at least `SHORTEST_KEY` characters."""
        self._keys = tuple(_Key.of(each) for each in keys)

    def __bool__(self) -> bool:
        """Return whether there is a key."""
        return bool(self._keys)

    def seal(self, content: bytes, about: str) -> str:
        """
        Return `content` sealed with the first key, as text.

        Args:
            about: name of the thing it belongs to; the text opens for no other.
        """
        from nacl.secret import SecretBox  # it loads libsodium

        key = self._keys[0]
        whole = about.encode() + b"\0" + content
        nonce = hashlib.blake2b(whole, digest_size=_NONCE, key=key.nonces).digest()
        return f"{key.id}:{base64.b64encode(SecretBox(key.box).encrypt(whole, nonce)).decode()}"

    def open(self, sealed: str, about: str) -> bytes:
        """Return the content of a sealed text. Raise `CannotOpen`."""
        from nacl.exceptions import CryptoError
        from nacl.secret import SecretBox

        id, _, text = sealed.partition(":")
        key = next((each for each in self._keys if each.id == id), None)
        if key is None:
            raise CannotOpen(f"it is sealed with the key {id!r}, which is not among sealing.keys")
        try:
            whole = SecretBox(key.box).decrypt(base64.b64decode(text, validate=True))
        except (CryptoError, binascii.Error, ValueError):
            raise CannotOpen("it has been changed since it was sealed") from None
        owner, _, content = whole.partition(b"\0")
        if owner != about.encode():
            raise CannotOpen("it was sealed for another subscription")
        return content

    def is_current(self, sealed: str) -> bool:
        """Return whether a text is sealed with the first key."""
        return bool(self._keys) and sealed.partition(":")[0] == self._keys[0].id
