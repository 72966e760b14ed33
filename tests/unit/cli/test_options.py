from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.cli.options import DURATION, MOMENT, SINCE
from runner.cli.program import PROGRAM, run


@given(
    st.datetimes(
        datetime(1900, 1, 1),
        datetime(8999, 12, 31),
        timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]),
    )
)
def test_a_time_with_an_offset_is_the_same_moment_in_utc(time: datetime) -> None:
    moment = MOMENT.convert(time.isoformat(), None, None)
    assert moment == time
    assert moment.tzinfo is UTC


def test_an_age_counts_back_from_now() -> None:
    before = datetime.now(UTC)
    moment = SINCE.convert("1h30m", None, None)
    assert before <= moment + timedelta(minutes=90) <= datetime.now(UTC)


@pytest.mark.parametrize("text", ["", "now", "2026-01-31", "2026-01-31T12:00:00", "-1h", "1"])
def test_what_is_no_time_is_refused(text: str) -> None:
    for kind in (MOMENT, SINCE):
        with pytest.raises(click.BadParameter):
            kind.convert(text, None, None)


@pytest.mark.parametrize(
    "text", ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00", "9999-12-31T23:59:59Z"]
)
def test_the_ends_of_the_calendar_are_refused_with_what_is_expected(text: str) -> None:
    for kind in (MOMENT, SINCE):
        with pytest.raises(click.BadParameter, match="expected a year from 1900 to 8999"):
            kind.convert(text, None, None)


def test_an_age_is_no_future_time() -> None:
    with pytest.raises(click.BadParameter):
        MOMENT.convert("1h", None, None)


def test_a_duration_is_written_as_in_the_configuration() -> None:
    assert DURATION.convert("1m500ms", None, None) == timedelta(minutes=1, milliseconds=500)
    with pytest.raises(click.BadParameter, match="30s"):
        DURATION.convert("2 seconds", None, None)


def verbs(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            inside = command.get_command(click.Context(command), name)
            assert inside is not None
            yield from verbs(inside, (*path, name))
    else:
        yield path, command


def test_every_verb_that_reads_a_file_takes_settings() -> None:
    with_file = {
        path: {option for parameter in command.params for option in parameter.opts}
        for path, command in verbs(PROGRAM)
        if "-c" in {option for parameter in command.params for option in parameter.opts}
    }
    assert len(with_file) > 20
    assert [path for path, options in with_file.items() if "--set" not in options] == [
        ("dev",)
    ]  # which has a file of its own


def test_settings_reach_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "runner.yaml"
    file.write_text('deployment_id: d\nstorage: {dsn: "sqlite:///x.db"}')
    show = ["config", "show", "-c", str(file)]
    assert run([*show, "--set", "worker.batch=7", "--set", "retention.dead="]) == 0
    shown = capsys.readouterr().out
    assert "batch: 7\n" in shown
    assert "dead: null\n" in shown
    assert run([*show, "--set", "worker.bath=7"]) == 78
    assert capsys.readouterr().err.startswith("--set worker.bath: unknown key 'bath', expected one of: batch,")
