from __future__ import annotations

import asyncio
import io
import os
import select
import threading
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.cloudevents import decode_json
from runner.delivery import ACCEPTED, Delivery, Failed
from runner.event import Event
from runner.sinks.stdout import StdoutSink, text_line
from tests.support.eventually import eventually


def delivery(**attributes: Any) -> Delivery:
    return Delivery(Event(**{"type": "order.created", "source": "/shop", "id": "1"} | attributes), "log", 1)


@pytest.mark.parametrize(
    ("attributes", "line"),
    [
        ({}, "order.created  /shop  1"),
        ({"subject": "eu/7"}, "order.created  /shop  1  eu/7"),
        ({"data": b'{"id": 1}'}, 'order.created  /shop  1  {"id": 1}'),
        ({"data": b""}, "order.created  /shop  1  "),
        ({"data": b'{\r\n  "id": 1,\n  "b": "x  y"\n}\n'}, 'order.created  /shop  1  { "id": 1, "b": "x  y" }'),
        ({"data": b"\xff\x00"}, "order.created  /shop  1  <2 bytes of data>"),
        ({"data": b"\xff", "datacontenttype": "image/png"}, "order.created  /shop  1  <1 bytes of image/png>"),
        ({"data": b"\x1b[2J\x07\xe2\x80\xae"}, r"order.created  /shop  1  \x1b[2J\x07\u202e"),
        ({"type": "café.ouvert"}, "café.ouvert  /shop  1"),
    ],
)
def test_text(attributes: dict[str, Any], line: str) -> None:
    assert text_line(delivery(**attributes).event).decode() == line


def test_long_data_is_cut_inside_no_character() -> None:
    line = text_line(delivery(data="é€😀".encode() * 100_000).event).decode()
    assert len(line) < 600
    assert line.endswith("... (900000 bytes)")
    assert "\ufffd" not in line


@given(st.text(), st.binary())
def test_nothing_in_an_event_can_drive_a_terminal(text: str, data: bytes) -> None:
    line = text_line(delivery(subject=text, type=text, data=data).event).decode()
    assert line.isprintable()


async def test_json_is_one_event_per_line() -> None:
    stream = io.BytesIO()
    sink = StdoutSink(format="json", stream=stream)
    given = [delivery(id=str(number), data=b'{\n"a": 1}', datacontenttype="application/json") for number in range(3)]
    for each in given:
        assert await sink.deliver(each) is ACCEPTED
    await sink.stop()
    lines = stream.getvalue().splitlines()
    assert [decode_json(line).id for line in lines] == ["0", "1", "2"]
    assert [orjson.loads(line)["data"] for line in lines] == [{"a": 1}] * 3


async def test_lines_never_interleave_through_a_pipe() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as far, os.fdopen(writing, "wb") as near:
        received: list[bytes] = []
        reader = threading.Thread(target=lambda: received.extend(far))
        reader.start()
        sink = StdoutSink(format="json", stream=near)
        data = b'"' + b"x" * 20_000 + b'"'
        await asyncio.gather(
            *(sink.deliver(delivery(id=str(n), data=data, datacontenttype="application/json")) for n in range(100))
        )
        await sink.stop()
        near.close()
        await asyncio.to_thread(reader.join)
    assert sorted(int(decode_json(line).id) for line in received) == list(range(100))


async def test_a_reader_that_does_not_read_holds_up_nothing_else() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as far, os.fdopen(writing, "wb") as near:
        sink = StdoutSink(stream=near)
        stuck = asyncio.create_task(sink.deliver(delivery(type="a" * 1_000_000)))
        done, _ = await asyncio.wait({stuck}, timeout=0.05)  # the loop is free to time this out
        assert not done
        stuck.cancel()
        await asyncio.gather(stuck, return_exceptions=True)
        await asyncio.to_thread(far.readline)
        assert await sink.deliver(delivery(type="b")) is ACCEPTED
        assert far.readline().startswith(b"b  ")
        await sink.stop()


async def test_a_cancelled_line_that_waits_for_a_stalled_pipe_is_never_printed() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as far, os.fdopen(writing, "wb") as near:
        sink = StdoutSink(stream=near)
        stuck = asyncio.create_task(sink.deliver(delivery(type="a" * 1_000_000)))
        await eventually(lambda: select.select([far], [], [], 0)[0])
        given_up = [asyncio.create_task(sink.deliver(delivery(type="b"))) for _ in range(10)]
        kept = asyncio.create_task(sink.deliver(delivery(type="b")))
        await asyncio.sleep(0)
        for task in (stuck, *given_up):
            task.cancel()
        await asyncio.wait(given_up)
        assert (await asyncio.to_thread(far.readline)).startswith(b"aaa")
        assert await kept is ACCEPTED
        assert await sink.deliver(delivery(type="c")) is ACCEPTED
        assert [far.readline()[:1] for _ in range(2)] == [b"b", b"c"]
        await sink.stop()


async def test_a_broken_pipe_fails_the_delivery() -> None:
    reading, writing = os.pipe()
    near = os.fdopen(writing, "wb")
    sink = StdoutSink(stream=near)
    os.close(reading)
    outcome = await sink.deliver(delivery())
    assert outcome == Failed("standard output: Broken pipe")
    with pytest.raises(BrokenPipeError):
        near.close()
    assert await sink.deliver(delivery()) == Failed("standard output: closed")
    await sink.stop()


async def test_standard_output_is_the_default(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    sink = StdoutSink()
    await sink.start()
    await sink.deliver(delivery())
    assert capsysbinary.readouterr().out == b"order.created  /shop  1\n"
    await sink.stop()
