from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from runner.log.setup import configure


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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def fail(secret: str) -> None:
    raise ValueError(f"failed with {len(secret)} characters")


@pytest.mark.parametrize("format", ["json", "auto"])
def test_machines_get_one_json_object_per_line(format: str) -> None:
    stream = io.StringIO()
    configure("info", format, stream)
    structlog.get_logger("runner").info("event published", seq=12)
    logging.getLogger("library").warning("connection %s", "lost")
    ours, theirs = map(json.loads, stream.getvalue().splitlines())
    assert ours.items() >= {"event": "event published", "level": "info", "seq": 12}.items()
    assert theirs.items() >= {"event": "connection lost", "level": "warning"}.items()


def test_people_get_text_with_colours_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for stream, colored in ((Terminal(), True), (io.StringIO(), False)):
        configure("info", "console", stream)
        structlog.get_logger("runner").info("event published", seq=12)
        assert "event published" in stream.getvalue()
        assert ("\x1b[" in stream.getvalue()) is colored
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    configure("info", "auto", stream)
    structlog.get_logger("runner").info("event published", seq=12)
    assert "\x1b[" not in stream.getvalue()


@pytest.mark.parametrize("format", ["json", "console"])
def test_a_traceback_shows_no_variables(format: str) -> None:
    stream = io.StringIO()
    configure("info", format, stream)
    try:
        fail("tops" + "ecret")
    except ValueError:
        structlog.get_logger("runner").exception("ours failed")
        logging.getLogger("library").exception("theirs failed")
    output = stream.getvalue()
    assert output.count("failed with 9 characters") == 2
    assert "topsecret" not in output


def test_libraries_are_heard_from_warning_upwards_even_when_debugging() -> None:
    stream = io.StringIO()
    configure("debug", "json", stream)
    logging.getLogger("library").info("INSERT INTO events …")
    structlog.get_logger("runner").debug("claimed")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["claimed"]


def test_the_nats_client_is_not_heard_at_all() -> None:
    stream = io.StringIO()
    configure("debug", "json", stream)
    logging.getLogger("nats.aio.client").error("nats: encountered error")
    assert stream.getvalue() == ""


def test_what_is_below_the_level_is_dropped() -> None:
    stream = io.StringIO()
    configure("warning", "json", stream)
    structlog.get_logger("runner").info("started")
    assert stream.getvalue() == ""


HOSTILE = "\x1b]0;owned\x07 \x9b2J \u202e\r"


def test_a_strangers_text_cannot_steer_the_terminal() -> None:
    stream = Terminal()
    configure("info", "console", stream)
    structlog.get_logger("runner").warning("delivery failed", error=HOSTILE, many=[HOSTILE])
    shown = stream.getvalue()
    assert not [each for each in ("\x1b]0;", "\x07", "\x9b", "\u202e", "\r") if each in shown]


@pytest.mark.parametrize("format", ["json", "console"])
def test_nor_can_a_traceback(format: str) -> None:
    """What a handler or a library says of an event is a stranger's text, too."""
    stream = io.StringIO()
    configure("info", format, stream)
    try:
        raise ValueError(f"no order {HOSTILE}")
    except ValueError as error:
        structlog.get_logger("runner").exception("ours failed")
        logging.getLogger("library").exception("theirs failed for %s", HOSTILE, stack_info=True)
        logging.getLogger("asyncio").error("never retrieved", exc_info=error)
    shown = stream.getvalue()
    assert shown.count("ValueError") >= 3
    assert not [each for each in ("\x1b", "\x07", "\x9b", "\u202e", "\r") if each in shown]
