from __future__ import annotations

import asyncio
import json
import os
import tracemalloc
from pathlib import Path

import pytest

from runner.errors import EventError
from runner.operations.event_file import check, is_stream, read_batches


def line(number: int) -> str:
    return json.dumps({"specversion": "1.0", "id": str(number), "source": "/test", "type": "a.b"}) + "\n"


async def ids(name: Path | str, size: int = 500) -> list[list[str]]:
    return [[event.id for _, event in batch] async for batch in read_batches(str(name), size)]


async def test_a_file_is_read_in_batches_in_order(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("".join(line(number) for number in range(5)) + "\n  \n" + line(5))
    assert check(str(path)) == 6
    assert await ids(path, 4) == [["0", "1", "2", "3"], ["4", "5"]]


async def test_the_last_line_needs_no_end(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(line(1) + line(2).rstrip())
    assert check(str(path)) == 2
    assert [each for batch in await ids(path) for each in batch] == ["1", "2"]


async def test_lines_are_whole_wherever_a_read_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.operations.event_file._CHUNK", 7)
    path = tmp_path / "events.jsonl"
    path.write_text("".join(line(number) for number in range(3)))
    assert [each for batch in await ids(path) for each in batch] == ["0", "1", "2"]


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(line(1) + "{\n" + line(2) + '{"specversion": "1.0"}\n')
    with pytest.raises(EventError) as caught:
        check(str(path))
    faults = str(caught.value).splitlines()
    assert [fault.split(": ")[0] for fault in faults] == [f"{path}:2", f"{path}:4"]


def test_the_list_of_bad_lines_has_an_end(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("{\n" * 1000)
    with pytest.raises(EventError) as caught:
        check(str(path))
    assert len(str(caught.value).splitlines()) == 21


async def test_all_before_a_bad_line_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(line(1) + line(2) + line(3) + "{\n" + line(4))
    batches = read_batches(str(path), 2)
    assert [event.id for _, event in await anext(batches)] == ["1", "2"]
    assert [(place, event.id) for place, event in await anext(batches)] == [(f"{path}:3", "3")]
    with pytest.raises(EventError, match=r"events\.jsonl:4: "):
        await anext(batches)


async def test_a_pipe_is_read_as_it_comes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writing = os.open(pipe, os.O_RDWR)  # both ends, so that opening the other one does not wait
    assert is_stream(str(pipe))
    batches = read_batches(str(pipe), 500)
    os.write(writing, line(1).encode() + line(2).encode() + b'{"spec')
    async with asyncio.timeout(20):
        first = await anext(batches)
    assert [event.id for _, event in first] == ["1", "2"]
    os.write(writing, line(3).encode()[6:])
    async with asyncio.timeout(20):
        assert [event.id for _, event in await anext(batches)] == ["3"]
    waiting = asyncio.ensure_future(anext(batches))
    os.close(writing)
    with pytest.raises(StopAsyncIteration):
        async with asyncio.timeout(20):
            await waiting


def test_a_file_is_no_stream_and_standard_input_is(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.touch()
    assert not is_stream(str(path))
    assert is_stream("-")


class TestALineWithoutAnEnd:
    """`/dev/zero` has one, and so has a file that is no file of events."""

    async def test_is_refused_in_constant_memory(self, tmp_path: Path) -> None:
        path = tmp_path / "events.jsonl"
        with path.open("wb") as file:
            file.write(line(1).encode())
            file.truncate(300 << 20)
        for name, number in ((str(path), 2), ("/dev/zero", 1)):
            tracemalloc.start()
            try:
                with pytest.raises(EventError, match=rf"{name}:{number}: the line has more than 8388608 bytes"):
                    check(name)
                with pytest.raises(EventError, match=rf"{name}:{number}: the line has more than 8388608 bytes"):
                    await ids(name)
                assert tracemalloc.get_traced_memory()[1] < 40 << 20
            finally:
                tracemalloc.stop()

    async def test_what_came_before_it_is_published_from_a_stream(self, tmp_path: Path) -> None:
        path = tmp_path / "events.jsonl"
        path.write_bytes(line(1).encode() + b"x" * (9 << 20))
        batches = read_batches(str(path), 2)
        assert [event.id for _, event in await anext(batches)] == ["1"]
        with pytest.raises(EventError, match="more than"):
            await anext(batches)


async def test_the_largest_event_there_is_fits_a_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    event = {
        "specversion": "1.0",
        "source": "/s",
        "type": "t",
        "datacontenttype": "text/plain",
        "data": "\0" * (1 << 20),
    }
    path.write_text("".join(json.dumps(event | {"id": str(number)}) + "\n" for number in range(20)))
    assert check(str(path)) == 20
    assert sum([len(batch) for batch in await ids(path)]) == 20
