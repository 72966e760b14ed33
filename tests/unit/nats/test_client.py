from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats import errors
from nats.aio.client import Client

from runner.nats import client as guarded
from runner.nats.client import GuardedClient, header_block

NAMES = st.text(st.sampled_from("abcXYZ019-_!#$%&'*+.^`|~"), min_size=1, max_size=20)


class Wire(Client):
    """A client of nats-py that keeps what it would send."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""

    async def _send_command(self, cmd: bytes, priority: bool = False) -> None:
        self.sent += cmd


async def headers_by_nats(headers: dict[str, str]) -> bytes:
    """Return the headers of a message as nats-py writes them."""
    client = Wire()
    await client._send_publish("s", "", b"", 0, headers)
    line, _, rest = client.sent.partition(b"\r\n")
    return rest[: int(line.split()[-2])]


@given(st.dictionaries(NAMES, st.text(max_size=40), min_size=1, max_size=5))
async def test_headers_are_written_as_by_the_client_of_nats(headers: dict[str, str]) -> None:
    assert header_block(headers) == await headers_by_nats(headers)


def test_no_headers_are_no_block() -> None:
    assert header_block({}) == b""


def test_a_value_stays_on_its_line() -> None:
    assert header_block({"a": " one\r\ntwo: 2\n"}) == b"NATS/1.0\r\na: one  two: 2\r\n\r\n"


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\r\nb", "é"])
def test_a_name_is_a_token(name: str) -> None:
    with pytest.raises(errors.BadHeaderError):
        header_block({name: "x"})


class TestTime:
    @pytest.mark.parametrize("way", ["exchange", "prove"])
    async def test_it_ends_though_nothing_is_written(self, way: str) -> None:
        """While too much waits a message has to wait for a place, which may never come."""
        flusher = asyncio.create_task(asyncio.Event().wait())
        client: Any = GuardedClient()
        client._status, client._flusher_task, client._inbox = Client.CONNECTED, flusher, "_INBOX.a"
        client._flush_queue = asyncio.Queue(maxsize=1)
        client._flush_queue.put_nowait(asyncio.Future())
        client._pending_data_size, client._max_pending_size = 11, 10
        async with asyncio.timeout(10):
            with pytest.raises(errors.TimeoutError):
                await getattr(client, way)("a", b"", b"", timeout=0.01)
        flusher.cancel()


class TestRefusals:
    async def test_the_names_of_a_window_are_spelled_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        spelled = 0
        named = guarded._named

        def counted(subject: str) -> str:
            nonlocal spelled
            spelled += 1
            return named(subject)

        monkeypatch.setattr(guarded, "_named", counted)
        client, told = window_of(f"s.{number % 100}" for number in range(1000))
        for number in range(1000):
            await client._process_err(f"'permissions violation for publish to \"s.{number % 100}\"'")
        assert spelled == 1000
        assert [len(each) for each in told] == [1] * 1000

    async def test_a_refusal_tells_those_that_it_names(self) -> None:
        client, told = window_of(["s.a", "s.B", "s.a"])
        await client._process_err("'permissions violation for publish to \"s.a\"'")
        await client._process_err("'permissions violation for publish to \"s.a\"'")
        assert [len(each) for each in told] == [1, 0, 1]
        client._window.append(("s.a", told[1].append))  # after the refusal, before the PING
        await client._process_err("'permissions violation for publish to \"s.a\"'")
        assert [len(each) for each in told] == [1, 1, 1]
        await client._process_err("'permissions violation for publish to \"s.b\"'")
        assert [len(each) for each in told] == [1, 2, 1]

    async def test_one_that_names_none_of_them_tells_all_once(self) -> None:
        client, told = window_of(["s.a", "s.b"])
        for _ in range(3):
            await client._process_err("'permissions violation for publish to \"s.c\"'")
        assert [len(each) for each in told] == [1, 1]


def window_of(subjects: Iterable[str]) -> tuple[Any, list[list[errors.Error | None]]]:
    """Return a client that has sent messages, and what each of them is told."""
    client: Any = GuardedClient()
    told: list[list[errors.Error | None]] = []
    for subject in subjects:
        told.append([])
        client._window.append((subject, told[-1].append))
    return client, told
