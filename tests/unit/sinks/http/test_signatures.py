"""Signatures, against the vector of the specification and its reference implementation."""

from __future__ import annotations

import base64
import hmac
import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from runner.sinks.http.signatures import Signer, message_id, parse_key

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = f"whsec_{base64.b64encode(bytes(range(32))).decode()}"


def headers(signer: Signer, body: bytes, id: str = "evt_1") -> dict[str, str]:
    return signer.headers(id, body)


def test_the_vector_of_the_specification() -> None:
    signer = Signer(parse_key(SECRET), now=lambda: 1614265330.9)
    assert signer.headers("msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}') == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@given(st.text(max_size=200))
def test_the_reference_implementation_verifies_it(text: str) -> None:
    body = base64.b64encode(text.encode())  # the reference takes JSON alone, a text is as good
    body = b'"%b"' % body
    sent = headers(Signer(parse_key(SECRET)), body)
    Webhook(SECRET).verify(body, sent)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body + b" ", sent)
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(body, sent)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body, sent | {"webhook-id": "evt_2"})


def test_both_secrets_verify_during_the_grace_and_one_after_it() -> None:
    clock = datetime.now(UTC).timestamp()
    until = datetime.fromtimestamp(clock + 10, UTC)
    signer = Signer(parse_key(OTHER), parse_key(SECRET), until, now=lambda: clock)
    sent = headers(signer, b"{}")
    assert len(sent["webhook-signature"].split(" ")) == 2
    for secret in (SECRET, OTHER):
        Webhook(secret).verify(b"{}", sent)
    clock += 10
    sent = headers(signer, b"{}")
    Webhook(OTHER).verify(b"{}", sent)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(b"{}", sent)


def test_without_an_end_the_previous_secret_signs_for_ever() -> None:
    signer = Signer(parse_key(OTHER), parse_key(SECRET), now=lambda: 4e9)
    assert len(headers(signer, b"")["webhook-signature"].split(" ")) == 2


@pytest.mark.parametrize("long", [False, True])
def test_an_ed25519_key(long: bool) -> None:
    pair = SigningKey.generate()
    secret = bytes(pair) + (bytes(pair.verify_key) if long else b"")
    sent = headers(Signer(parse_key(f"whsk_{base64.b64encode(secret).decode()}")), b"\x00\xff")
    version, _, signature = sent["webhook-signature"].partition(",")
    assert version == "v1a"
    signed = f"{sent['webhook-id']}.{sent['webhook-timestamp']}.".encode() + b"\x00\xff"
    pair.verify_key.verify(signed, base64.b64decode(signature))


def test_both_kinds_of_key_sign_one_request() -> None:
    ed25519 = f"whsk_{base64.b64encode(bytes(SigningKey.generate())).decode()}"
    sent = headers(Signer(parse_key(ed25519), parse_key(SECRET)), b"{}")
    assert [each.partition(",")[0] for each in sent["webhook-signature"].split(" ")] == ["v1a", "v1"]
    Webhook(SECRET).verify(b"{}", sent)


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "s3cr3t-that-is-no-base64!",
        "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "whsec_",
        "whsec_YWJj",  # three bytes
        f"whsec_{base64.b64encode(bytes(23)).decode()}",
        f"whsec_{base64.b64encode(bytes(65)).decode()}",
        "whsec_abcde",
        f"whsk_{base64.b64encode(bytes(31)).decode()}",
        f"whpk_{base64.b64encode(bytes(32)).decode()}",
    ],
)
def test_what_is_no_secret_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(ValueError, match="expected whsec_") as caught:
        parse_key(secret)
    assert len(secret) < 8 or secret not in str(caught.value)


def test_a_key_in_base64_for_urls_is_taken() -> None:
    plain = base64.b64encode(b"\xff\xef" * 12).decode()
    assert plain != plain.translate(str.maketrans("+/", "-_"))
    for text in (plain, plain.translate(str.maketrans("+/", "-_"))):
        assert headers(Signer(parse_key(f"whsec_{text}"), now=lambda: 0), b"") == headers(
            Signer(parse_key(f"whsec_{plain}"), now=lambda: 0), b""
        )


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=3))
def test_an_id_is_opaque_and_depends_on_the_events_alone(identities: list[tuple[str, str]]) -> None:
    if any("\ud800" <= char <= "\udfff" for pair in identities for text in pair for char in text):
        return
    assert re.fullmatch(r"evt_[0-9a-f]{40}", message_id(identities))
    assert message_id(identities) == message_id(iter(identities))
    assert message_id(identities) != message_id([*identities, ("/", "1")])


def test_ids_differ_where_the_boundary_does() -> None:
    assert message_id([("a", "bc")]) != message_id([("ab", "c")])


@given(st.binary(min_size=24, max_size=64), st.binary(max_size=300))
def test_it_is_the_hmac_of_the_standard_library(key: bytes, body: bytes) -> None:
    signer = Signer(parse_key(f"whsec_{base64.b64encode(key).decode()}"), now=lambda: 1700000000.0)
    expected = hmac.digest(key, b"evt_1.1700000000." + body, "sha256")
    assert headers(signer, body)["webhook-signature"] == f"v1,{base64.b64encode(expected).decode()}"
