"""`runner schedules` and `runner cron`, as somebody types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from .deployment import Deployment, started

SCHEDULES = """\
schedules:
  - {name: nightly, cron: "30 2 * * *", timezone: Europe/Paris, event: {type: report.due, data: {format: pdf}}}
  - {name: pulse, every: 1s, catch_up: all, event: {type: pulse}}
"""


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    made = Deployment(tmp_path, "sqlite:///runner.db")
    made.write(more=SCHEDULES)
    made.cli("migrate")
    return made


def ids(deployment: Deployment) -> list[str]:
    return [each["event"]["id"] for each in deployment.json("events", "list", "--limit", "1000")]


def until(check: Callable[[], bool]) -> None:
    while not check():  # the time limit of the test ends it
        pass


def test_check_shows_them(deployment: Deployment) -> None:
    assert "schedule       nightly: 30 2 * * * Europe/Paris -> report.due\n" in deployment.cli("check")[0]
    [plan] = deployment.json("check")
    nightly, pulse = plan["schedules"]
    assert (nightly["name"], nightly["cron"], pulse["every"]) == ("nightly", "30 2 * * *", 1.0)
    assert nightly["event"].keys() == {"type", "source", "subject", "data"}


def test_the_life_of_a_schedule(deployment: Deployment) -> None:
    assert deployment.json("schedules", "list") == []
    with started(deployment):
        until(lambda: sum(id.startswith("pulse/2") for id in ids(deployment)) >= 2)
        nightly, pulse = deployment.json("schedules", "list")
        assert (nightly["name"], nightly["state"], nightly["cron"], nightly["origin"]) == (
            "nightly",
            "active",
            "30 2 * * *",
            "file",
        )
        assert (pulse["every"], pulse["missed"], pulse["event"]["type"]) == (1.0, 0, "pulse")
        assert datetime.fromisoformat(pulse["next_at"]) - datetime.fromisoformat(pulse["last_at"]) == timedelta(
            seconds=1
        )
        assert deployment.cli("schedules", "pause", "pulse")[0] == "pulse is paused\n"
        assert deployment.cli("schedules", "pause", "pulse")[0] == "pulse was already paused\n"
        [shown] = deployment.json("schedules", "show", "pulse")
        assert (shown["state"], shown["next_at"]) == ("paused", None)
        assert "@" in shown["paused_by"]
        [receipt] = deployment.json("schedules", "run", "pulse")
        assert receipt["id"].startswith("pulse/run/")
        assert receipt["source"] == "/schedules/pulse"
        count = len(ids(deployment))
        assert deployment.json("schedules", "resume", "pulse") == [{"name": "pulse", "paused": False, "changed": True}]
        until(lambda: len(ids(deployment)) >= count + 2)
        put = ("schedules", "put", "mine", "--every", "1s", "--type", "mine", "--data", '{"n": 1}')
        assert deployment.cli(*put)[0] == "mine is put\n"
        assert deployment.cli(*put)[0] == "mine is as it was\n"
        until(lambda: any(id.startswith("mine/") for id in ids(deployment)))
        data = deployment.directory / "data.json"
        data.write_text('{"n": 2}')
        assert deployment.cli(*put[:-1], f"@{data}")[0] == "mine is put\n"
        [mine] = deployment.json("schedules", "show", "mine")
        assert mine["event"]["data"] == {"n": 2}
        assert deployment.cli("schedules", "remove", "mine")[0] == "mine is removed\n"
    assert [each["name"] for each in deployment.json("schedules", "list")] == ["nightly", "pulse"]
    header, *rows = deployment.cli("schedules", "list")[0].splitlines()
    assert header.split() == ["NAME", "STATE", "TIMES", "NEXT", "LAST", "MISSED", "ORIGIN"]
    assert rows[0].startswith("nightly  active  30 2 * * * Europe/Paris  2")


def test_the_next_times(deployment: Deployment) -> None:
    with started(deployment):
        pass
    ticks = deployment.json("schedules", "next", "nightly", "-n", "3")
    assert len(ticks) == 3
    assert all(each["local"][11:19] in ("02:30:00", "03:00:00") for each in ticks)
    assert len(deployment.cli("schedules", "next", "pulse")[0].splitlines()) == 11


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (("remove", "pulse"), 1, "pulse is in the file, and would come back with it; take it out there"),
        (("put", "pulse", "--every", "2s", "--type", "a"), 1, "schedule pulse is in the file; change it there"),
        (("show", "nope"), 1, "no schedule 'nope'; there are: nightly, pulse"),
        (("put", "n", "--type", "a"), 2, "expected cron or every"),
        (
            ("put", "n", "--type", "a", "--every", "1h", "--cron", "@daily"),
            2,
            "--every: cron and every exclude each other",
        ),
        (("put", "n", "--type", "a", "--cron", "0 0 30 2 *"), 2, "--cron: '0 0 30 2 *' names no date that ever comes"),
        (
            ("put", "n", "--type", "a", "--every", "1h", "--catch-up", "two"),
            2,
            "--catch-up: expected one of: none, one, all",
        ),
        (("put", "n", "--type", "a", "--every", "1h", "--data", "{"), 2, "--data: not JSON"),
        (
            ("put", "n", "--type", "a", "--every", "1h", "--data", "@none.json"),
            2,
            "cannot read none.json: No such file",
        ),
        (("put", "a b", "--type", "a", "--every", "1h"), 2, "NAME: expected up to 63 letters"),
    ],
)
def test_what_is_wrong_is_said_with_its_cure(
    deployment: Deployment, arguments: tuple[str, ...], code: int, complaint: str
) -> None:
    with started(deployment):
        pass
    assert complaint in deployment.cli("schedules", *arguments, code=code)[1].replace("'--data'", "--data")


def test_cron_needs_no_file(tmp_path: Path) -> None:
    nowhere = Deployment(tmp_path, "")
    told = ("cron", "next", "30 2 * * *", "--tz", "Europe/Paris", "--from", "2026-03-28T12:00:00Z", "-n", "2")
    lines = [json.loads(line) for line in nowhere.cli(*told, "--json")[0].splitlines()]
    assert lines == [
        {"tick": "2026-03-29T01:00:00Z", "local": "2026-03-29T03:00:00+02:00"},
        {"tick": "2026-03-30T00:30:00Z", "local": "2026-03-30T02:30:00+02:00"},
    ]
    assert nowhere.cli(*told)[0].splitlines()[1] == "2026-03-29T01:00:00Z  Sun 2026-03-29 03:00:00 +0200"
    assert "names no date that ever comes" in nowhere.cli("cron", "next", "0 0 30 2 *", code=2)[1]
    assert "did you mean 'Europe/Paris'?" in nowhere.cli("cron", "next", "@daily", "--tz", "Europe/Pris", code=2)[1]
    assert len(nowhere.cli("cron", "next", "@hourly")[0].splitlines()) == 11
