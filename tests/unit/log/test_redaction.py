"""Known secrets, in every spelling somebody may repeat them in."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus, urlencode

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from runner.config.secret import Secret
from runner.log import redaction
from runner.log.redaction import know, looks_secret, redacted

SPECIAL = "c4n/ry+9 X:7\"k\\Q2é&mZ=%'<"

SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": lambda secret: f"x{secret}y",
    "url": lambda secret: f"http://h/{quote(secret, safe='')}/x",
    "path": lambda secret: f"http://h/{quote(secret)}",
    "lower case url": lambda secret: quote(secret, safe="").lower() if secret.islower() else quote(secret),
    "form": lambda secret: urlencode({"key": secret, "more": 1}),
    "form plus": quote_plus,
    "json": lambda secret: json.dumps({"password": secret}),
    "json twice": lambda secret: json.dumps({"event": json.dumps({"password": secret})}),
    "orjson": lambda secret: orjson.dumps({"password": secret}).decode(),
    "repr": repr,
    "repr in a log line": lambda secret: json.dumps({"event": repr(secret)}),
    "html": html.escape,
    "escaped": lambda secret: secret.encode("unicode_escape").decode(),
    **{
        f"base64 after {len(user)} characters": lambda secret, user=user: base64.b64encode(  # type: ignore[misc]
            f"{user}{secret} and more".encode()
        ).decode()
        for user in ("", "a", "me:", "user:")
    },
    "url safe base64": lambda secret: base64.urlsafe_b64encode(f"me:{secret}".encode()).decode(),
}


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_spellings", ())


@pytest.mark.parametrize("secret", [SPECIAL, "hunter2", "0123456789abcdef", "пароль-секрет"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_known_secret_is_hidden_however_it_is_spelled(spelling: str, secret: str) -> None:
    text = SPELLINGS[spelling](secret)
    assert redacted(text) == text
    know(secret)
    shown = redacted(text)
    assert "***" in shown
    assert secret not in shown
    if "base64" in spelling:
        assert len(shown) < len(text)


@given(st.text(min_size=8, max_size=60), st.text(max_size=30), st.text(max_size=30))
def test_nothing_but_the_secret_is_touched(secret: str, before: str, after: str) -> None:
    assume(secret.strip() not in redaction._WORDS)
    redaction._spellings = ()
    know(secret)
    shown = redacted(f"{before}\x00{secret}\x00{after}")
    assert secret.strip() not in shown or not secret.strip() or len(secret.strip()) < 6
    redaction._spellings = ()
    assert redacted(before) == before


def test_what_is_short_or_said_by_everybody_is_let_stand() -> None:
    for word in ("", "a", "short", "runner", "postgres", "password"):
        know(word)
    know("shopkeeper", public=("shopkeeper", None))
    text = "a short runner of postgres says password to the shopkeeper"
    assert redacted(text) == text


def test_a_text_that_was_cut_keeps_no_beginning_of_a_secret() -> None:
    know("cAn4ry9X7kQ2mZ81wP")
    for size in range(6, 18):
        assert redacted("the body was cAn4ry9X7kQ2mZ81wP"[: 13 + size], cut=True) == "the body was ***"
    assert redacted("the body was cAn4r", cut=True) == "the body was cAn4r"


def test_a_secret_is_known_from_its_first_moment() -> None:
    secret = Secret("cAn4ry9X7kQ2mZ81wP")
    assert redacted(f"said {secret.reveal()}") == "said ***"


@pytest.mark.parametrize(
    "word", ["whsec_MfKQ9r8GKYqrTwjUPD8I", "0198a7b0-5c7e-7e5a-b1b2-c3d4e5f60718", "T00000000/B0000000x"]
)
def test_a_token_looks_like_one(word: str) -> None:
    assert looks_secret(word)


@pytest.mark.parametrize(
    "word", ["orders", "max_attempts", "order.created.v2.for.all", "a-long-name-without-any-number", "1234567890123456"]
)
def test_a_word_does_not(word: str) -> None:
    assert not looks_secret(word)
