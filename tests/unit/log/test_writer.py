from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
import structlog

from runner.log.setup import configure, flush, tell
from runner.log.writer import LogWriter


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("nats").setLevel(logging.NOTSET)
    logging.captureWarnings(False)
    structlog.reset_defaults()


class Pipe:
    """A pipe, whose writing end is a stream as standard error is one."""

    def __init__(self) -> None:
        self.reading, writing = os.pipe()
        self.stream: TextIO = os.fdopen(writing, "w", buffering=1)

    def read(self, size: int = 1 << 16) -> str:
        return os.read(self.reading, size).decode()

    def until(self, text: str) -> str:
        """Read up to `text`."""
        read = ""
        while text not in read:
            read += self.read()
        return read

    def close(self) -> None:
        for close in (self.stream.close, lambda: os.close(self.reading)):
            with contextlib.suppress(OSError, ValueError):
                close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def dropped_lines(read: str) -> list[int]:
    """Return how many lines were dropped, by each report of it."""
    return [int(line.split()[0]) for line in read.splitlines() if line.endswith(" log lines dropped")]


@pytest.mark.timeout(20)
class TestStreams:
    def test_lines_come_in_order(self, pipe: Pipe) -> None:
        writer = LogWriter(pipe.stream)
        for number in range(100):
            writer.write(f"line {number}")
        writer.flush()
        assert pipe.read().splitlines() == [f"line {number}" for number in range(100)]

    def test_a_pipe_that_nobody_reads_holds_up_nobody_and_what_is_dropped_is_counted(self, pipe: Pipe) -> None:
        writer = LogWriter(pipe.stream, limit=100_000)
        for number in range(10_000):
            writer.write(f"{number} " + 90 * "x")
        writer.flush(0.01)  # gives up
        writer.write("and on")
        read, dropped = "", 0
        while not read.endswith("\n") or len(read.splitlines()) - len(dropped_lines(read)) + dropped < 10_001:
            read += pipe.read()
            dropped = sum(dropped_lines(read))
        kept = [int(line.split()[0]) for line in read.splitlines() if line.endswith("x")]
        assert kept == sorted(set(kept))
        assert kept[0] == 0
        assert len(kept) < 5000
        writer.write("and on")
        assert pipe.until("on\n") == "and on\n"

    def test_a_reader_that_has_gone_ends_nothing(self, pipe: Pipe) -> None:
        writer = LogWriter(pipe.stream)
        os.close(pipe.reading)
        for _ in range(3):
            writer.write("to nobody")
            writer.flush(None)  # and this does not wait

    def test_a_reader_that_comes_back_hears_how_much_it_missed(self, tmp_path: Path) -> None:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        first = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        with open(fifo, "w") as stream:
            writer = LogWriter(stream)
            os.close(first)
            for _ in range(3):
                writer.write("to nobody")
            writer.flush()
            second = os.open(fifo, os.O_RDONLY)
            writer.write("to somebody")
            writer.flush()
            assert os.read(second, 1000).decode().splitlines() == ["to somebody", "3 log lines dropped"]
            os.close(second)

    def test_a_full_disk_is_tried_until_there_is_room(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        with open("/dev/full", "w") as stream:
            writer = LogWriter(stream, limit=1000)
            for number in range(100):
                writer.write(f"line {number:03} " + 90 * "x")
            writer.flush(None)  # waits for no room
            with open(path, "wb") as room:
                os.dup2(room.fileno(), stream.fileno())
            writer.flush(5.0)
        lines = path.read_text().splitlines()
        assert [line[:8] for line in lines] == [
            *(f"line {number:03}" for number in range(len(lines) - 1)),
            lines[-1][:8],
        ]
        assert lines[-1] == f"{100 - len(lines) + 1} log lines dropped"

    def test_a_pipe_that_another_process_made_non_blocking(self, pipe: Pipe) -> None:
        flags = fcntl.fcntl(pipe.stream.fileno(), fcntl.F_GETFL)
        fcntl.fcntl(pipe.stream.fileno(), fcntl.F_SETFL, flags | os.O_NONBLOCK)
        writer = LogWriter(pipe.stream)
        line = 300_000 * "x"
        writer.write(line)
        assert pipe.until("\n") == f"{line}\n"

    @pytest.mark.parametrize("state", ["missing", "closed", "detached", "descriptor closed"])
    def test_a_stream_that_is_not_there(self, pipe: Pipe, state: str) -> None:
        stream: Any = pipe.stream
        if state == "missing":
            stream = None
        elif state == "closed":
            stream.close()
        elif state == "detached":
            buffer = stream.detach()
        else:
            os.close(stream.fileno())
        writer = LogWriter(stream)
        writer.write("to nobody")
        writer.flush()
        if state == "detached":
            buffer.close()

    def test_a_stream_that_is_closed_later_takes_no_line_for_whoever_has_its_descriptor_next(self, pipe: Pipe) -> None:
        writer = LogWriter(pipe.stream)
        writer.write("to the pipe")
        writer.flush()
        descriptor = pipe.stream.fileno()
        pipe.stream.close()
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        assert descriptor in (reading, writing)
        writer.write("to nobody")
        writer.flush()
        with pytest.raises(BlockingIOError):
            os.read(reading, 100)
        os.close(reading)
        os.close(writing)

    def test_text_that_no_encoding_takes(self, pipe: Pipe) -> None:
        writer = LogWriter(pipe.stream)
        writer.write("half of a character: \udcff")
        assert pipe.until("\n") == "half of a character: \\udcff\n"

    @pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
    def test_a_forked_child_logs_its_own_lines_once(self, pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stderr", pipe.stream)
        tell("parent")
        child = os.fork()
        if child == 0:
            tell("child")
            os._exit(0)
        os.waitpid(child, 0)
        assert pipe.read().splitlines() == ["parent", "child"]


@pytest.mark.timeout(20)
class TestMessages:
    def test_they_come_after_what_was_logged_before_and_are_there_on_return(
        self, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stderr", pipe.stream)
        configure("info", "console")
        for number in range(5):
            structlog.get_logger("runner").info(f"logged {number}")
            tell(f"told {number}")
        os.set_blocking(pipe.reading, False)
        words = [line.split()[-1] + line.split()[-2] for line in pipe.read().splitlines()]
        assert words == [f"{number}{verb}" for number in range(5) for verb in ("logged", "told")]

    def test_nothing_in_them_steers_a_terminal(self, pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stderr", pipe.stream)
        tell("first \x1b]0;owned\x07\nsecond \u202e \udcff")
        assert pipe.read() == "first \\x1b]0;owned\\x07\nsecond \\u202e \\udcff\n"

    @pytest.mark.parametrize("state", ["no reader", "full", "missing"])
    def test_they_never_fail(self, pipe: Pipe, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
        with open("/dev/full", "w") as full:
            os.close(pipe.reading)
            monkeypatch.setattr(sys, "stderr", {"no reader": pipe.stream, "full": full, "missing": None}[state])
            for _ in range(3):
                tell("to nobody")
            with open(os.devnull, "w") as room:
                os.dup2(room.fileno(), full.fileno())


class Unshowable:
    """A value whose `repr` raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __repr__(self) -> str:
        raise self.error


@pytest.mark.timeout(20)
class TestEvents:
    @pytest.mark.parametrize("format", ["json", "console"])
    @pytest.mark.parametrize("error", [ValueError("no"), RecursionError(), SystemExit(1), GeneratorExit()])
    def test_a_value_that_cannot_be_shown_is_named_beside_the_others(
        self, pipe: Pipe, format: str, error: BaseException
    ) -> None:
        configure("info", format, pipe.stream)
        structlog.get_logger("runner").warning("delivery failed", value=Unshowable(error), seq=12)
        line = pipe.until("\n")
        assert "delivery failed" in line
        assert "12" in line
        assert f"<Unshowable, whose repr raises {type(error).__name__}>" in line

    @pytest.mark.parametrize("format", ["json", "console"])
    def test_a_library_that_logs_what_cannot_be_shown(self, pipe: Pipe, format: str) -> None:
        configure("info", format, pipe.stream)
        for arguments in (("one", "too many"), (Unshowable(ValueError()),), (Unshowable(SystemExit()),)):
            logging.getLogger("library").warning("connection %s lost", *arguments)
            assert "connection %s lost" in pipe.until("\n")
        logging.getLogger("library").warning(Unshowable(ValueError()))
        assert "Unshowable" in pipe.until("\n")

    @pytest.mark.parametrize("format", ["json", "console"])
    def test_half_a_character(self, pipe: Pipe, format: str) -> None:
        configure("info", format, pipe.stream)
        structlog.get_logger("runner").warning("file \udcff", name="\udcff")
        assert pipe.until("\n").count("udcff") == 2

    def test_what_is_dropped_is_an_event_like_any_other(self, pipe: Pipe) -> None:
        configure("info", "json", pipe.stream)
        log = structlog.get_logger("runner")
        for _ in range(6):
            log.info("long", text=1_000_000 * "x")
        [dropped] = [line for line in pipe.until('"log lines dropped"').splitlines() if "log lines dropped" in line]
        entry = json.loads(dropped if dropped.endswith("}") else dropped + pipe.until("}"))
        assert entry.items() >= {"event": "log lines dropped", "count": 2, "level": "warning"}.items()
        assert "timestamp" in entry

    def test_many_threads(self, pipe: Pipe) -> None:
        configure("info", "json", pipe.stream)
        log = structlog.get_logger("runner")
        threads = [threading.Thread(target=lambda: [log.info("here") for _ in range(50)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        flush()
        lines = pipe.read(1 << 20).splitlines()
        assert len(lines) == 400
        assert all(json.loads(line)["event"] == "here" for line in lines)

    def test_a_reload_goes_on_with_the_same_thread(self, pipe: Pipe) -> None:
        before = set(threading.enumerate())
        for _ in range(3):
            configure("info", "json", pipe.stream)
            structlog.get_logger("runner").info("here")
        assert len(set(threading.enumerate()) - before) == 1
