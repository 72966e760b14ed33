"""Users of a nats-server that trusts an operator: signed tokens and credentials files, in place of the `nsc` tool."""

from __future__ import annotations

import base64
import json
import os
import time
from typing import Any

import nkeys

__all__ = ["Operator"]

_NO_LIMIT = {name: -1 for name in ("subs", "data", "payload")}


class Operator:
    """An operator with one account; `config` is what a server needs to trust its users."""

    def __init__(self) -> None:
        operator = _pair(nkeys.PREFIX_BYTE_OPERATOR)
        self._account = _pair(nkeys.PREFIX_BYTE_ACCOUNT)
        limits = {**_NO_LIMIT, "imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}
        account = _token(operator, self._account, "account", {"limits": limits, "default_permissions": {}})
        self.config = (
            f"operator: {_token(operator, operator, 'operator', {})}\nresolver: MEMORY\n"
            f"resolver_preload: {{ {_public(self._account)}: {account} }}"
        )

    def credentials(self) -> str:
        """Return the credentials file of a new user."""
        user = _pair(nkeys.PREFIX_BYTE_USER)
        token = _token(self._account, user, "user", {**_NO_LIMIT, "pub": {}, "sub": {}})
        return (
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{bytes(user.seed).decode()}\n------END USER NKEY SEED------\n"
        )


def _pair(prefix: int) -> nkeys.KeyPair:
    return nkeys.from_seed(nkeys.encode_seed(os.urandom(32), prefix))


def _public(pair: nkeys.KeyPair) -> str:
    return bytes(pair.public_key).decode()


def _token(issuer: nkeys.KeyPair, subject: nkeys.KeyPair, kind: str, claims: dict[str, Any]) -> str:
    body = {
        "jti": os.urandom(8).hex(),
        "iat": int(time.time()) - 60,
        "iss": _public(issuer),
        "sub": _public(subject),
        "name": kind,
        "nats": {**claims, "type": kind, "version": 2},
    }
    signed = ".".join(_encoded(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, body))
    return f"{signed}.{_encoded(issuer.sign(signed.encode()))}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
