"""Who a request may be for."""

from __future__ import annotations

import pytest

from runner.api.hosts import HostGuard, host_of
from runner.config.api import Api, TokenEntry
from runner.config.secret import Secret

TOKEN = TokenEntry(name="a", secret=Secret("evb_" + "x" * 43), scopes=("read",))
NEAR = Api()
FAR = Api(listen="0.0.0.0:80", tokens=(TOKEN,))
NAMED = Api(hosts=("bus.example.com", "*.example.org"))


async def status(options: Api, *hosts: bytes, path: str = "/events", root_path: str = "") -> int:
    answers = []

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):  # type: ignore[no-untyped-def]
        answers.append(message)

    scope = {"type": "http", "path": path, "root_path": root_path, "headers": [(b"host", each) for each in hosts]}
    await HostGuard(app, options)(scope, None, send)  # type: ignore[arg-type]
    return int(answers[0]["status"])


@pytest.mark.parametrize("host", [b"localhost", b"LOCALHOST:8080", b"127.0.0.1:80", b"[::1]:80", b"a.localhost"])
async def test_the_loopback_answers_to_its_names(host: bytes) -> None:
    assert await status(NEAR, host) == 200


@pytest.mark.parametrize(
    "host", [b"evil.example", b"127.0.0.1.evil.example", b"localhost@evil.example", b"", b"10.0.0.1", b"local host"]
)
async def test_and_to_no_other(host: bytes) -> None:
    assert await status(NEAR, host) == 421


async def test_one_host_it_has_to_be() -> None:
    assert await status(NEAR) == 421
    assert await status(NEAR, b"localhost", b"localhost") == 421


async def test_beyond_the_loopback_tokens_keep_guard() -> None:
    assert await status(FAR, b"bus.example.com") == 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (b"bus.example.com:443", 200),
        (b"a.example.org", 200),
        (b"example.org", 421),
        (b"notexample.org", 421),
        (b"localhost", 421),
    ],
)
async def test_with_a_list_the_list_counts(host: bytes, expected: int) -> None:
    assert await status(NAMED, host) == expected


async def test_probes_come_by_address() -> None:
    assert await status(NAMED, b"10.1.2.3:8080", path="/healthz") == 200
    assert await status(NAMED, b"10.1.2.3:8080", path="/bus/readyz", root_path="/bus") == 200
    assert await status(NAMED, b"10.1.2.3:8080", path="/metrics") == 421


async def test_what_was_good_once_is_not_looked_at_again_for_another() -> None:
    guard = Api()
    assert await status(guard, b"localhost") == 200
    assert await status(guard, b"evil.example") == 421


def test_hosts_are_read_without_their_ports() -> None:
    assert [host_of(each) for each in (b"A:1", b"[::1]:1", b"a:", b"a:b", b"a/b")] == ["a", "[::1]", "a", None, None]
