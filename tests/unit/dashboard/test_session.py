"""Sessions: which cookies open."""

from __future__ import annotations

import base64
import hashlib
from datetime import timedelta

import orjson
import pytest
import time_machine
from nacl.secret import SecretBox

from runner.config.api import TokenEntry
from runner.config.secret import Secret
from runner.dashboard import session
from runner.dashboard.session import LASTS, open_cookie, seal_cookie
from runner.service.clock import utcnow

TOKEN = "evb_" + "t" * 43
ENTRY = TokenEntry(name="a", secret=Secret(TOKEN), scopes=("read",))
LIVE = [(hashlib.sha256(b"other").digest(), ENTRY), (hashlib.sha256(TOKEN.encode()).digest(), ENTRY)]


def sealed() -> str:
    made = seal_cookie(TOKEN, LIVE, "shop")
    assert made is not None
    return made[1]


def test_a_cookie_opens_while_its_token_is_there() -> None:
    cookie = sealed()
    opened = open_cookie(cookie, LIVE, "shop")
    assert opened is not None
    assert opened.entry is ENTRY
    assert open_cookie(cookie, LIVE[:1], "shop") is None
    assert open_cookie(cookie, LIVE, "another") is None
    assert seal_cookie("evb_unknown", LIVE, "shop") is None


def test_it_ends() -> None:
    cookie = sealed()
    with time_machine.travel(utcnow() + LASTS - timedelta(minutes=1)):
        assert open_cookie(cookie, LIVE, "shop") is not None
    with time_machine.travel(utcnow() + LASTS + timedelta(minutes=1)):
        assert open_cookie(cookie, LIVE, "shop") is None


@pytest.mark.parametrize(
    "cookie", ["", "x", "=", "ä", "a" * 10_000, "AAAA", sealed()[:-2], sealed()[1:], sealed() + "A"]
)
def test_anything_else_opens_nothing(cookie: str) -> None:
    assert open_cookie(cookie, LIVE, "shop") is None


def test_every_changed_byte_shows() -> None:
    cookie = sealed()
    raw = bytearray(base64.urlsafe_b64decode(cookie + "=" * (-len(cookie) % 4)))
    for index in range(len(raw)):
        changed = bytearray(raw)
        changed[index] ^= 1
        assert open_cookie(base64.urlsafe_b64encode(changed).decode(), LIVE, "shop") is None


@pytest.mark.parametrize("token", ["", "evb_guess", 1, None, [TOKEN]])
def test_the_hash_alone_makes_no_session(token: object) -> None:
    digest = LIVE[1][0]
    content = orjson.dumps([token, utcnow().timestamp() + 3600, "n"])
    made = SecretBox(session._key(digest, "shop")).encrypt(content)
    assert open_cookie(base64.urlsafe_b64encode(made).decode(), LIVE, "shop") is None
