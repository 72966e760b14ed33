from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.datastructures import Headers

from runner.api.bodies import Bodies, ClientGone, discard
from runner.api.problems import Problem

LEFT = {"type": "http.disconnect"}


def chunk(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


class Sender:
    """A client that sends these messages, and then nothing."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self._messages = list(messages)
        self.taken = 0

    async def __call__(self) -> dict[str, Any]:
        if self.taken == len(self._messages):
            await asyncio.Event().wait()
        self.taken += 1
        return self._messages[self.taken - 1]


async def read(bodies: Bodies, sender: Sender, **headers: str) -> bytes:
    return await bodies.read(Headers({name.replace("_", "-"): value for name, value in headers.items()}), sender)


async def refused(bodies: Bodies, sender: Sender, **headers: str) -> Problem:
    with pytest.raises(Problem) as caught:
        await read(bodies, sender, **headers)
    assert caught.value.headers["connection"] == "close"
    return caught.value


@pytest.mark.parametrize(
    "messages",
    [
        [chunk(b"abc", more=False)],
        [chunk(b"a"), chunk(b"bc", more=False)],
        [chunk(b"abc"), chunk(b"", more=False)],
        [chunk(b""), chunk(b"abc", more=False)],
        [{"type": "http.request", "body": b"abc"}],
    ],
)
async def test_a_body_in_pieces(messages: list[dict[str, Any]]) -> None:
    assert await read(Bodies(3), Sender(*messages)) == b"abc"


async def test_too_long_by_its_length_is_refused_unread() -> None:
    sender = Sender(chunk(b"x"))
    assert (await refused(Bodies(3), sender, content_length="4")).status == 413
    assert sender.taken == 0


async def test_too_long_by_its_pieces_is_refused_at_once() -> None:
    sender = Sender(*[chunk(b"xx") for _ in range(100)])
    assert (await refused(Bodies(3), sender)).status == 413
    assert sender.taken == 2
    assert (await refused(Bodies(3), Sender(chunk(b"xxxx", more=False)))).status == 413


@pytest.mark.parametrize("length", ["-1", "1e3", "x", "²", "9" * 5000])
async def test_a_length_that_is_none(length: str) -> None:
    assert (await refused(Bodies(3), Sender(), content_length=length)).status in (400, 413)


async def test_a_body_that_stops_is_given_up() -> None:
    assert (await refused(Bodies(99, silence=0.01), Sender())).status == 408
    assert (await refused(Bodies(99, silence=0.01), Sender(chunk(b"x")))).status == 408


async def test_a_body_that_trickles_is_given_up() -> None:
    async def trickle() -> dict[str, Any]:
        await asyncio.sleep(0.001)
        return chunk(b"x")

    with pytest.raises(Problem) as caught:
        await Bodies(10**9, longest=0.05).read(Headers(), trickle)
    assert caught.value.status == 408


@pytest.mark.parametrize("messages", [[LEFT], [chunk(b"x"), LEFT]])
async def test_a_client_that_left(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(ClientGone):
        await read(Bodies(99), Sender(*messages))


async def test_all_together_have_a_limit() -> None:
    bodies = Bodies(10, together=25)
    waiting = [asyncio.create_task(read(bodies, Sender(chunk(b"x" * 8)))) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    problem = await refused(bodies, Sender(chunk(b"x" * 8), chunk(b"", more=False)))
    assert (problem.status, problem.headers["retry-after"]) == (503, "1")
    assert await read(bodies, Sender(chunk(b"x" * 8, more=False))) == b"x" * 8  # one piece is held nowhere
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert await read(bodies, Sender(chunk(b"x" * 8), chunk(b"y", more=False))) == b"x" * 8 + b"y"


async def test_the_rest_is_thrown_away() -> None:
    sender = Sender(*[chunk(b"x") for _ in range(9)], chunk(b"", more=False), chunk(b"next"))
    await discard(sender)
    assert sender.taken == 10
    await discard(Sender(chunk(b"x"), LEFT))
