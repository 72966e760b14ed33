"""The section `api`: what it takes, and what it says of what is wrong in it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from runner.config import Config, Secret, dump, load_config
from runner.config.api import Api, place_of
from runner.config.size import format_size, parse_size
from runner.errors import ConfigError

MINIMAL = "deployment_id: d\nstorage: {dsn: 'sqlite:///d.db'}\n"
TOKEN = "evb_" + "k" * 43

Load = Callable[[str], Config]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str) -> Config:
        (tmp_path / "f.yaml").write_text(MINIMAL + text)
        return load_config(tmp_path / "f.yaml", {"TOKEN": TOKEN})

    return load


def api(config: Config) -> Api:
    assert config.api is not None
    return config.api


@pytest.mark.parametrize("text", ["", "api: null", "api:"])
def test_without_the_section_nothing_is_served(load: Load, text: str) -> None:
    assert load(text).api is None
    assert "api" not in dump(load(text))


def test_the_defaults_serve_the_loopback(load: Load) -> None:
    made = api(load("api: {}"))
    assert (made.listen, made.root_path, made.hosts, made.tokens) == ("127.0.0.1:8080", "", (), ())
    assert (made.limits.body, made.limits.batch, made.limits.pending) == (1024 * 1024, 1000, None)
    assert (made.metrics, made.reuse_port, made.tls) == (True, False, None)


def test_everything_that_can_be_said(load: Load) -> None:
    made = api(
        load(
            """\
api:
  listen: "0.0.0.0:8080"
  root_path: /bus
  hosts: [Bus.example.com, "*.example.org"]
  tokens:
    - {name: shop, secret: "${TOKEN}", scopes: [publish], types: "order.*", attributes: {tenantid: shop}}
    - {name: ops, sha256: "%s", scopes: [read, admin], expires: 2027-01-01}
    - {name: ops, secret: "another-secret-0123456789abcdef", scopes: [read], expires: "2027-01-01T10:00:00+02:00"}
  limits: {body: 64KiB, batch: 10, pending: 5}
  metrics: false
  reuse_port: true
"""
            % ("A" * 64)
        )
    )
    shop, ops, again = made.tokens
    assert made.hosts == ("bus.example.com", "*.example.org")
    assert (shop.secret, shop.types, dict(shop.attributes)) == (Secret(TOKEN), ("order.*",), {"tenantid": "shop"})
    assert (ops.sha256, ops.expires) == ("a" * 64, datetime(2027, 1, 1, tzinfo=UTC))
    assert again.expires == datetime(2027, 1, 1, 8, tzinfo=UTC)
    assert (made.limits.body, made.limits.batch, made.limits.pending) == (65536, 10, 5)
    assert TOKEN not in repr(made)


def test_no_secret_is_shown(load: Load) -> None:
    shown = dump(load("api: {tokens: [{name: a, secret: '${TOKEN}', scopes: [read]}]}"))["api"]
    assert shown["tokens"][0]["secret"] == "***"
    assert shown["limits"]["body"] == "1MiB"


def test_a_socket_is_relative_to_the_file(load: Load, tmp_path: Path) -> None:
    assert api(load("api: {listen: 'unix:run.sock'}")).place.path == tmp_path / "run.sock"
    assert api(load("api: {listen: 'unix:/run/x.sock'}")).place.path == Path("/run/x.sock")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{listen: 8080}", "3:7: api.listen: expected text, got a number; quote it"),
        ("{listen: '8080'}", "3:7: api.listen: expected address:port or unix:/path, such as 127.0.0.1:8080, "),
        ("{listen: 'h:99999'}", "3:7: api.listen: expected a port from 0 to 65535, got 'h:99999'"),
        ("{listen: '[1:2]:80'}", "3:7: api.listen: expected address:port"),
        ("{listen: 'unix:'}", "3:7: api.listen: expected unix: and the path of a socket"),
        ("{listen: '0.0.0.0:80'}", "3:1: api: tokens: expected at least one, because listen is not a loopback address"),
        ("{root_path: bus/}", "3:7: api.root_path: expected a path such as /bus, without a slash at its end"),
        ("{hosts: ['a:80']}", "3:15: api.hosts[0]: expected a name without a port, such as bus.example.com"),
        ("{limits: {body: much}}", "3:16: api.limits.body: expected a size such as 64KiB or 1MiB, got 'much'"),
        ("{limits: {batch: 0}}", "3:16: api.limits.batch: expected at least 1, got 0"),
        ("{tokens: [x]}", "3:16: api.tokens[0]: expected a mapping"),
        (
            "{tokens: [{name: a, scopes: [read]}]}",
            "3:16: api.tokens[0]: expected either secret or sha256",
        ),
        (
            "{tokens: [{name: a, sha256: 'abc', scopes: [read]}]}",
            "3:26: api.tokens[0].sha256: expected the SHA-256 of the token, 64 hexadecimal digits: printf %s",
        ),
        (
            "{tokens: [{name: a, secret: '${TOKEN}', scopes: [write]}]}",
            "3:55: api.tokens[0].scopes[0]: expected one of: publish, read, subscribe, admin, got 'write'",
        ),
        ("{tokens: [{name: a, secret: '${TOKEN}', scopes: []}]}", "3:46: api.tokens[0].scopes: expected a non-empty"),
        (
            "{tokens: [{name: a, secret: '${TOKEN}', scopes: [read], expires: soon}]}",
            "3:62: api.tokens[0].expires: expected a date such as 2027-01-01, or a time with an offset, got 'soon'",
        ),
        (
            "{tokens: [{name: a, secret: '${TOKEN}', scopes: [admin], types: [a]}]}",
            "3:16: api.tokens[0]: types and attributes limit the events of a token; they do not go with scope admin",
        ),
        ("{listen: 'unix:/x', reuse_port: true}", "3:26: api.reuse_port: a socket cannot be shared"),
        ("{tls: {cert: c.pem}}", "3:7: api.tls.key: this key is required"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(load: Load, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(f"api: {text}")
    assert [line.partition("f.yaml:")[2][: len(message)] for line in caught.value.faults] == [message]


def test_every_fault_is_told_in_one_run(load: Load) -> None:
    with pytest.raises(ConfigError) as caught:
        load("api: {listen: x, hosts: ['a b'], limits: {batch: x}, tokens: [{name: a, scopes: [x]}], nothing: 1}")
    keys = [line.split(": ")[1] for line in caught.value.faults]
    assert keys == ["api.listen", "api.hosts[0]", "api.limits.batch", "api.tokens[0].scopes[0]", "api.nothing"]


def test_a_third_token_of_one_name_is_one_too_many(load: Load) -> None:
    entry = "{name: a, secret: '${TOKEN}', scopes: [read]}"
    with pytest.raises(ConfigError, match="3 tokens are called 'a'; at most two may be"):
        load(f"api: {{tokens: [{entry}, {entry}, {entry}]}}")


def test_sizes() -> None:
    assert [parse_size(text) for text in ("1", "1kB", "1KiB", "2 MiB", 5)] == [1, 1000, 1024, 2 * 1024**2, 5]
    assert [format_size(size) for size in (1000, 1024, 1024**2, 3 * 1024**3)] == ["1000", "1KiB", "1MiB", "3GiB"]
    for wrong in ("", "0", "-1", "1.5MiB", "1TB", True, None, 0):
        with pytest.raises(ValueError, match="expected a size"):
            parse_size(wrong)


@pytest.mark.parametrize(
    ("listen", "near"),
    [("127.0.0.1:1", True), ("[::1]:1", True), ("localhost:1", True), ("unix:/x", True), ("10.0.0.1:1", False)],
)
def test_who_is_near(listen: str, near: bool) -> None:
    assert place_of(listen).near is near
