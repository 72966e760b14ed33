from __future__ import annotations

import asyncio
import io
import json
import sys
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.cli.output import accounted, brief, moment, print_fields, print_json, print_table, progress
from runner.log.terminal import printable


def test_columns_are_aligned_and_nothing_trails(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("seq", "type"), [(1, "order.created"), (1000, None)])
    assert capsys.readouterr().out.splitlines() == ["SEQ   TYPE", "1     order.created", "1000"]


def test_a_table_without_rows_is_its_header(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("seq", "type"), [])
    assert capsys.readouterr().out == "SEQ  TYPE\n"


def test_a_strangers_text_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("error",), [("\x1b]0;owned\x07\nnext",)])
    print_fields({"error": "\x1b[2J"})
    assert capsys.readouterr().out.splitlines()[1:] == ["\\x1b]0;owned\\x07\\nnext", "error  \\x1b[2J"]


@given(st.text())
def test_printable_text_is_one_printable_line(text: str) -> None:
    assert printable(text).isprintable()
    assert not text.isprintable() or printable(text) == text


def test_json_is_one_line_with_utc_times(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"at": datetime(2026, 1, 31, 12, tzinfo=UTC), "text": "a\nb"})
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert json.loads(line) == {"at": "2026-01-31T12:00:00Z", "text": "a\nb"}


def test_fields_without_a_value_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields({"seq": 1, "subject": None})
    assert capsys.readouterr().out == "seq      1\n"


def test_a_time_is_shown_to_the_millisecond() -> None:
    assert moment(datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)) == "2026-01-31T12:00:00.123Z"
    assert moment(None) == ""


def test_progress_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("publishing", 10) as advance:
        advance(10)
    assert capsys.readouterr().err == ""


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> io.StringIO:
    """Make standard output a terminal of that width, and return what it shows."""
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")
    return shown


ID = "01a20932-d8d5-7671-8b93-a8d6873b72a0"


def test_a_narrow_terminal_shows_less_and_cuts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    columns, row = ("seq", "source", "id", "created", "name"), (1, "/runner/cli", ID, datetime.now(UTC), "n" * 20)
    wide = on_a_terminal(monkeypatch, 200)
    print_table(columns, [row], spare=("source", "created"))
    assert "/runner/cli" in wide.getvalue()
    narrow = on_a_terminal(monkeypatch, 80)
    print_table(columns, [row], spare=("source", "created"))
    assert "source" not in narrow.getvalue()
    assert {ID, "n" * 20} <= set(narrow.getvalue().split())
    tiny = on_a_terminal(monkeypatch, 30)
    print_table(columns, [row], spare=("source", "created"))
    assert "…" not in tiny.getvalue()


def test_no_color_leaves_nothing_of_style(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = on_a_terminal(monkeypatch, 80)
    print_table(("seq",), [(1,)])
    assert "\x1b[" in shown.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    shown = on_a_terminal(monkeypatch, 80)
    print_table(("seq",), [(1,)])
    assert "\x1b[" not in shown.getvalue()


def test_a_time_is_brief_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now, past = datetime.now(UTC), datetime(2020, 1, 31, 12, tzinfo=UTC)
    assert (brief(now), brief(past)) == (now.strftime("%H:%M:%SZ"), "2020-01-31")
    print_table(("at",), [(past,)])
    assert "2020-01-31T12:00:00.000Z" in capsys.readouterr().out


def test_values_are_written_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields(
        {"alive": True, "paused": False, "timeout": timedelta(seconds=25), "took": timedelta(microseconds=1499)}
    )
    assert capsys.readouterr().out.split() == ["alive", "yes", "paused", "no", "timeout", "25s", "took", "1ms"]


def test_after_an_interrupt_it_is_said_how_far_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    def retry() -> None:
        with accounted("retrying deliveries", None) as advance:
            advance(1000)
            advance(500)
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        retry()
    assert capsys.readouterr().err == "interrupted while retrying deliveries: at least 1500 done, which stays\n"
