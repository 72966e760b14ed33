"""Schedules in the file: what is taken, and every fault with its place."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runner.config import Config, load_config
from runner.config.loader import dump
from runner.errors import ConfigError
from runner.policies.schedule import EventTemplate, Schedule

HEAD = "deployment_id: d\nstorage: {dsn: 'sqlite:///x.db'}\n"


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "f.yaml"
    path.write_text(HEAD + text)
    return load_config(path, {})


def faults(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as failure:
        load(tmp_path, text)
    return [fault.split("f.yaml:", 1)[1] for fault in failure.value.faults]


def one(tmp_path: Path, entry: str) -> Schedule:
    [schedule] = load(tmp_path, f"schedules: [{{name: n, event: {{type: t}}, {entry}}}]").to_schedules()
    return schedule


def test_what_is_given_and_what_is_the_default(tmp_path: Path) -> None:
    text = """\
schedules:
  - {name: nightly, cron: "0 2 * * *", timezone: Europe/Paris, catch_up: one, window: 1d, jitter: 5m, overlap: allow,
     event: {type: report.due, subject: all, source: /reports, data: {format: pdf}}}
  - {name: pulse, every: 15m, anchor: 2026-01-01T00:00:00Z, start_at: 2026-02-01T00:00:00+01:00,
     end_at: "2027-01-01T00:00:00Z", event: {type: pulse}}
"""
    config = load(tmp_path, text)
    nightly, pulse = config.to_schedules()
    template = EventTemplate(type="report.due", source="/reports", subject="all", data='{"format":"pdf"}')
    assert nightly == Schedule(
        name="nightly", cron="0 2 * * *", timezone="Europe/Paris", jitter=timedelta(minutes=5), event=template
    )
    assert (pulse.catch_up, pulse.window, pulse.overlap) == ("one", timedelta(days=1), "allow")
    assert pulse.every == timedelta(minutes=15)
    assert pulse.anchor == datetime(2026, 1, 1, tzinfo=UTC)
    assert pulse.start_at == datetime(2026, 1, 31, 23, tzinfo=UTC)
    assert dump(config)["schedules"][1]["anchor"] == "2026-01-01T00:00:00Z"


@pytest.mark.parametrize("expression", ["@daily", "*/10 * * * * *", "0 9 * * MON-FRI", "0 0 L * *", "0 0 29 2 *"])
def test_every_kind_of_expression_is_taken(tmp_path: Path, expression: str) -> None:
    assert one(tmp_path, f"cron: '{expression}'").cron == expression


@pytest.mark.parametrize("data", ["0", "false", "''", "[]", "{}"])
def test_data_that_is_false_is_data(tmp_path: Path, data: str) -> None:
    [schedule] = load(tmp_path, f"schedules: [{{name: n, every: 1h, event: {{type: t, data: {data}}}}}]").to_schedules()
    assert schedule.event.data == data.replace("'", '"')


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        (
            "cron: '0 2 * *'",
            "cron: expected a cron expression such as '0 2 * * *', got '0 2 * *': expected five fields, or six "
            "with seconds first, got 4",
        ),
        ("cron: '60 2 * * *'", "cron: expected a cron expression such as '0 2 * * *', got '60 2 * * *': bad minute"),
        ("cron: '0 0 30 2 *'", "cron: '0 0 30 2 *' names no date that ever comes"),
        (
            "cron: '@reboot'",
            "cron: expected a cron expression such as '0 2 * * *', got '@reboot': expected one of @annually, @daily, "
            "@hourly, @midnight, @monthly, @weekly, @yearly",
        ),
        (
            "cron: '0 2 * * *', timezone: Europe/Pariss",
            "timezone: expected an IANA time zone such as Europe/Paris, got 'Europe/Pariss'; did you mean "
            "'Europe/Paris'?",
        ),
        ("cron: '0 2 * * *', every: 1h", "every: cron and every exclude each other; leave one of them out"),
        ("catch_up: all", "expected cron or every"),
        ("every: 1h, timezone: UTC", "timezone: it belongs to cron; every is counted in elapsed time, from anchor"),
        (
            "cron: '0 2 * * *', anchor: 2026-01-01T00:00:00Z",
            "anchor: it belongs to every; for the first event of cron use start_at",
        ),
        ("every: 500ms", "every: expected at least 1s, got 500ms"),
        ("every: 1500ms", "every: expected whole seconds: the id of an event has no more of its time"),
        ("every: -5m", "every: expected a duration such as 30s, 25ms, 1h30m or 7d, got '-5m'"),
        (
            "every: 1h, start_at: 2026-02-01T00:00:00Z, end_at: 2026-01-01T00:00:00Z",
            "end_at: expected a time after start_at, 2026-02-01T00:00:00Z, got 2026-01-01T00:00:00Z",
        ),
        (
            "every: 1h, start_at: 2026-02-01",
            "start_at: expected a time such as 2026-01-31T02:00:00Z, with Z or an offset, got '2026-02-01'",
        ),
        (
            "every: 1h, start_at: 2026-02-01T00:00:00",
            "start_at: expected a time such as 2026-01-31T02:00:00Z, with Z or an offset, got '2026-02-01T00:00:00'",
        ),
        ("every: 1h, window: 0s", "window: expected a duration above zero, got 0s"),
        ("every: 1h, window: -1d", "window: expected a duration such as 30s, 25ms, 1h30m or 7d, got '-1d'"),
        ("every: 1h, jitter: 2h", "jitter: expected no more than every, or events would pass each other"),
        ("every: 1h, catch_up: two", "catch_up: expected one of: none, one, all, got 'two'"),
        ("every: 1h, overlap: alow", "overlap: expected one of: allow, skip, queue, got 'alow'; did you mean 'allow'?"),
        ("every: 1h, evry: 1", "evry: unknown key; did you mean 'every'?"),
    ],
)
def test_a_fault_says_where_it_is_and_what_is_expected(tmp_path: Path, entry: str, fault: str) -> None:
    [found] = faults(
        tmp_path, f"schedules:\n- name: n\n  event: {{type: t}}\n  {entry.replace(', ', chr(10) + '  ')}\n"
    )
    place, _, message = found.partition(" ")
    line, column, _ = place.split(":")
    assert message.removeprefix("schedules[0]").lstrip(".: ") == fault
    assert (int(line) >= 6 and column == "3") or fault == "expected cron or every"


def test_all_faults_of_all_schedules_are_reported_at_once(tmp_path: Path) -> None:
    text = """\
schedules:
  - {name: a, cron: x, event: {type: t}}
  - {name: a, every: 1h, event: {type: t}}
  - {name: "a b", every: 1h, event: {tpe: t}}
  - {cron: "0 2 * * *", timezone: Mars/North}
"""
    found = faults(tmp_path, text)
    assert [each.split(":")[0] for each in found] == ["4", "5", "6", "6", "6", "7", "7", "7"]
    assert "a second schedule is called 'a'; names are unique" in found[1]


@pytest.mark.parametrize(
    ("event", "fault"),
    [
        ("{type: ''}", "must not be empty"),
        ('{type: "a\\u0007b"}', "type: the character U+0007 is not allowed"),
        ('{type: t, source: "a\\u0007b"}', "source: the character U+0007 is not allowed"),
        ("{type: t, source: my shop}", "source: expected a URI reference"),
        (f"{{type: t, data: {'x' * 70_000}}}", "data: 70002 bytes as JSON, at most 65536 are taken"),
        ("{}", "this key is required"),
    ],
)
def test_what_could_be_no_event_is_a_fault_of_the_file(tmp_path: Path, event: str, fault: str) -> None:
    [found] = faults(tmp_path, f"schedules: [{{name: n, every: 1h, event: {event}}}]")
    assert fault in found
