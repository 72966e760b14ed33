"""Access tokens of OAuth 2.0 by client credentials (RFC 6749 §4.4): one for all deliveries, renewed before its end."""

from __future__ import annotations

import asyncio
import re
import time
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Literal
from urllib.parse import quote_plus, urlencode

import orjson
import structlog

from ...log.redaction import forget, know
from .client import Client
from .connection import NoAnswer

__all__ = ["NoToken", "TokenSource", "token_request"]

log = structlog.get_logger(__name__)

_READ = 64 * 1024  # bytes of an answer
_TOKEN = re.compile(r"[\x21-\x7e]{1,16384}")  # what a header can carry (RFC 6750 §2.1)
_ERROR = re.compile(r"[a-z_]{1,60}")  # of RFC 6749 §5.2
_LONGEST = 365 * 86400.0  # the longest lifetime in seconds that is believed
_UNSAID = 3600.0  # the lifetime in seconds if the answer has none
_AHEAD = 60.0  # seconds before its end at which a token is renewed; of a short lifetime, a fifth
_PAUSE = 1.0  # seconds after a failure in which no token is asked for


class NoToken(Exception):
    """There is no token now. The text says why, and holds nothing of the answer but its error code."""


def token_request(
    client_id: str,
    client_secret: str,
    *,
    scopes: Sequence[str] = (),
    parameters: Mapping[str, str] | None = None,
    send: Literal["header", "body"] = "header",
) -> tuple[dict[str, str], bytes]:
    """
    Return headers and body of the request for a token.

    Args:
        parameters: further ones, such as `audience`.
        send: how the client proves who it is: HTTP Basic (RFC 6749 §2.3.1), or as parameters of the body.
    """
    form = {"grant_type": "client_credentials"} | dict(parameters or {})
    if scopes:
        form["scope"] = " ".join(scopes)
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
    if send == "body":
        form |= {"client_id": client_id, "client_secret": client_secret}
    else:
        pair = f"{quote_plus(client_id)}:{quote_plus(client_secret)}"
        headers["Authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
    return headers, urlencode(form).encode()


class TokenSource:
    """
    The token of one client, shared by all that ask.

    One request is under way at most. The token is renewed while the old one still lasts, so that no delivery waits for
    that; after a failure none is asked for during a second.
    """

    def __init__(
        self,
        client: Client,
        headers: Mapping[str, str],
        body: bytes,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask by posting `body` with `headers` through `client`."""
        self._client = client
        self._headers = headers
        self._body = body
        self._clock = clock
        self._token: str | None = None
        self._ends = 0.0
        self._renewed_from = 0.0  # when the next one is asked for
        self._asking: asyncio.Task[None] | None = None
        self._failed: tuple[str, float] | None = None  # why, and when
        self._users = 0

    async def start(self) -> None:
        """Get ready, as often as there are users."""
        self._users += 1
        await self._client.start()

    async def stop(self) -> None:
        """Give up what is under way, and forget the token, once no user is left."""
        self._users = max(0, self._users - 1)
        if self._users:
            return
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})
        self._asking = self._failed = None
        self._drop()
        await self._client.stop()

    @property
    def used(self) -> bool:
        """Whether it is started, and not stopped by all of its users."""
        return self._users > 0

    async def token(self) -> str:
        """Return the token; ask for one if there is none. Raise `NoToken`."""
        now = self._clock()
        if self._token is None or now >= self._ends:
            await self._obtain(now)
        elif now >= self._renewed_from:
            self._ask(now)
        if self._token is None:
            raise NoToken(self._failed[0] if self._failed else "the request for a token was cut off")
        return self._token

    def refused(self, token: str) -> None:
        """Drop a token that was not taken: the next delivery asks for another."""
        if token == self._token:
            self._drop()

    async def _obtain(self, now: float) -> None:
        self._drop()
        asking = self._ask(now)
        if asking is not None:
            await asyncio.wait({asking})  # the request goes on if this delivery is cancelled

    def _ask(self, now: float) -> asyncio.Task[None] | None:
        """Return the request under way, a new one if there is none; None just after a failure."""
        if self._asking is None or self._asking.done():
            if self._failed is not None and now < self._failed[1] + _PAUSE:
                return None
            self._asking = asyncio.create_task(self._renew(), name="oauth2 token")
        return self._asking

    async def _renew(self) -> None:
        try:
            answer = await self._client.post(self._headers, self._body, _READ)
        except NoAnswer as error:
            self._fail(str(error))
            return
        try:
            said = orjson.loads(answer.body)
            said = said if isinstance(said, dict) else {}
        except ValueError:
            said = {}
        if answer.status != 200:
            code = said.get("error")
            detail = f": {code}" if isinstance(code, str) and _ERROR.fullmatch(code) else ""
            self._fail(f"HTTP {answer.status}{detail}")
            return
        token, kind = said.get("access_token"), said.get("token_type", "Bearer")
        if not isinstance(token, str) or not _TOKEN.fullmatch(token) or str(kind).lower() != "bearer":
            self._fail("the answer holds no bearer token")
            return
        self._take(token, _lifetime(said.get("expires_in")))

    def _take(self, token: str, lifetime: float) -> None:
        now = self._clock()
        if token != self._token:
            self._drop()
            know(token)
        self._token, self._failed = token, None
        self._ends = now + lifetime
        self._renewed_from = self._ends - min(_AHEAD, lifetime / 5)

    def _fail(self, reason: str) -> None:
        if self._failed is None:
            log.warning("no oauth2 token", detail=reason)
        self._failed = reason, self._clock()

    def _drop(self) -> None:
        if self._token is not None:
            forget(self._token)
            self._token = None


def _lifetime(value: object) -> float:
    """Return the seconds in `expires_in`, which some servers write as text."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:12])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _UNSAID
    return min(max(float(value), 0.0), _LONGEST)
