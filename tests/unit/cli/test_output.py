from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.cli.output import moment, print_fields, print_json, print_table, progress
from runner.log import printable


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
