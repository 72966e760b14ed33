from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import StrategyError
from runner.nats.options import BrokerOptions, NatsConnection, Server

JWT = "eyJ0eXAi.eyJqdGki.c2ln-_"
SEED = "SU" + "A" * 56
GOOD = f"""-----BEGIN NATS USER JWT-----
{JWT}
------END NATS USER JWT------

************************* IMPORTANT *************************
-----BEGIN USER NKEY SEED-----
{SEED}
------END USER NKEY SEED------
"""


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("nats://host:4333", Server("host", 4333)),
        ("host", Server("host", 4222)),
        ("host:4333", Server("host", 4333)),
        ("tls://host", Server("host", 4222, tls=True)),
        ("nats://[::1]:4222", Server("::1", 4222)),
    ],
)
def test_url_is_split_and_decoded(url: str, server: Server) -> None:
    assert Server.parse(url) == server


words = st.text(min_size=1, max_size=20, alphabet=st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]))


@given(words, words)
def test_no_credentials_are_left_in_the_url(user: str, password: str) -> None:
    url = f"nats://{quote(user, safe='')}:{quote(password, safe='')}@host:4222"
    options = BrokerOptions.of(NatsConnection.model_validate({"servers": url}))
    assert (options.user, options.password) == (user, password)
    assert [server.url for server in options.parsed()] == ["nats://host:4222"]


@pytest.mark.parametrize(
    "url", ["http://s3cret@host", "nats://", "nats://host:port", "nats://me:s3cret#x@host", "nats://host/s3cret", ""]
)
def test_wrong_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match="expected a URL such as nats://host:4222") as caught:
        Server.parse(url)
    assert "s3cret" not in str(caught.value)


def test_one_entry_may_hold_several_urls() -> None:
    options = BrokerOptions.of(NatsConnection.model_validate({"servers": ["nats://a:1,nats://b:2", "c"]}))
    assert [server.address for server in options.parsed()] == ["a:1", "b:2", "c:4222"]


def test_no_secret_in_its_text() -> None:
    options = BrokerOptions(servers=("nats://host",), user="s3cret", password="s3cret", token="s3cret")
    assert "s3cret" not in repr(options)
    assert "s3cret" not in repr(options.parsed())


def test_what_the_configuration_says_arrives() -> None:
    connection = NatsConnection.model_validate(
        {"servers": ["nats://me:pa%40ss@host:4222"], "tls": {"insecure": True, "handshake_first": True}}
    )
    options = BrokerOptions.of(connection)
    assert (options.user, options.password) == ("me", "pa@ss")
    assert options.servers == ("nats://host:4222",)
    assert (options.tls, options.tls_handshake_first, options.tls_insecure) == (True, True, True)
    assert options == BrokerOptions.of(connection)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_credentials_are_given_on_in_the_form_nats_py_takes(tmp_path: Path, end: str) -> None:
    path = tmp_path / "user.creds"
    path.write_bytes(GOOD.replace("\n", end).encode())
    options = BrokerOptions(servers=("host",), credentials=path)
    credentials = options.material(options.parsed()[0]).credentials
    assert credentials is not None
    lines = credentials.splitlines()
    assert lines[lines.index("-----BEGIN NATS USER JWT-----") + 1] == JWT
    assert lines[lines.index("-----BEGIN USER NKEY SEED-----") + 1] == SEED
    assert "\r" not in credentials


@pytest.mark.parametrize("length", range(7, len(GOOD) - 30, 7))
def test_truncated_credentials_are_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "user.creds"
    path.write_text(GOOD[:length])
    options = BrokerOptions(servers=("host",), credentials=path)
    with pytest.raises(StrategyError, match="expected a NATS credentials file") as caught:
        options.material(options.parsed()[0])
    assert SEED not in str(caught.value)
