"""Known secrets, in every spelling somebody may repeat them in."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, quote_plus, urlencode

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from runner.config.secret import Secret
from runner.log import redaction
from runner.log.redaction import forget, gathered, know, looks_secret, redacted
from tests.support.secrets import forget_everything, nothing_known

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
def forgetful() -> Iterator[None]:
    with nothing_known():
        yield


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
    assume(secret.strip() not in redaction._WORDS and not redaction._is_said(secret.strip()))
    forget_everything()
    know(secret)
    shown = redacted(f"{before}\x00{secret}\x00{after}")
    assert secret.strip() not in shown or not secret.strip() or len(secret.strip()) < 6
    forget_everything()
    assert redacted(before) == before


def test_what_is_short_or_said_by_everybody_is_let_stand() -> None:
    for word in ("", "a", "short", "runner", "postgres", "password"):
        know(word)
    know("shopkeeper", public=("shopkeeper", None))
    text = "a short runner of postgres says password to the shopkeeper"
    assert redacted(text) == text


@pytest.mark.parametrize(
    "secret",
    [
        "warning",
        "delivery dead",
        "breaker open",
        '"level": "',
        "timestamp",
        "subscription",
        "livery de",
        '", "event": "n',
    ],
)
def test_nobody_blinds_the_log_by_what_they_call_a_secret(secret: str) -> None:
    """Those who may put a destination choose its secrets."""
    line = json.dumps({"subscription": "crm", "event": "delivery dead", "level": "warning", "timestamp": "2026"})
    know(secret)
    assert redacted(line) == line
    assert redacted("breaker open, nats unreachable") == "breaker open, nats unreachable"


@pytest.mark.parametrize("secret", ["2026-0", "2026-01-31T", "09:25:", "127.0.0.1"])
def test_nor_the_time_by_what_others_call_one(secret: str) -> None:
    with gathered():  # as for a destination
        know(secret)
    line = "2026-01-31T09:25:00Z 127.0.0.1"
    assert redacted(line) == line
    know(secret)  # the operator's own file: a number that is a password is one
    assert "***" in redacted(line)


@pytest.mark.parametrize("secret", ["hunter-warning", "correct horse battery", "Warning", "warning1", "пароль"])
def test_what_only_resembles_the_log_is_hidden(secret: str) -> None:
    know(secret)
    assert redacted(f"it is {secret}!") == "it is ***!"


def test_a_text_that_was_cut_keeps_no_beginning_of_a_secret() -> None:
    know("cAn4ry9X7kQ2mZ81wP")
    for size in range(6, 18):
        assert redacted("the body was cAn4ry9X7kQ2mZ81wP"[: 13 + size], cut=True) == "the body was ***"
    assert redacted("the body was cAn4r", cut=True) == "the body was cAn4r"


def test_a_secret_is_known_from_its_first_moment() -> None:
    secret = Secret("cAn4ry9X7kQ2mZ81wP")
    assert redacted(f"said {secret.reveal()}") == "said ***"


def test_what_is_forgotten_is_hidden_no_more_unless_it_is_known_elsewhere() -> None:
    for each in ("first-secret", "other-secret", "other-secret"):
        know(each)
    forget("first-secret", "other-secret", "never-known")
    assert redacted("first-secret other-secret") == "first-secret ***"
    know("third-secret")
    forget("third-secret", "other-secret")  # before anything was redacted
    assert redacted("third-secret other-secret") == "third-secret other-secret"


def test_many_secrets_are_sorted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To sort all of them for each one more would hold the event loop for minutes."""
    sorts: list[int] = []

    def counted(found: set[str], **options: Any) -> list[str]:
        sorts.append(len(found))
        return sorted(found, **options)

    monkeypatch.setattr(redaction, "sorted", counted, raising=False)
    for number in range(1000):
        know(f"secret-number-{number}")
    assert redacted("secret-number-77 and secret-number-999") == "*** and ***"
    assert redacted("again secret-number-77") == "again ***"
    assert len(sorts) == 1


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
