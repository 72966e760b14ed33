from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats import errors
from nats.aio.client import Client

from runner.nats.client import header_block

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
