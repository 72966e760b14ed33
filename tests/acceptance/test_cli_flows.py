"""`runner events trace` and `reschedule` as a person and a program read them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from .deployment import Deployment


def line(id: str, type: str, cause: str | None = None) -> str:
    links = {} if cause is None else {"causationid": cause, "correlationid": "a"}
    return json.dumps({"specversion": "1.0", "id": id, "source": "/t", "type": type, **links})


@pytest.fixture(params=["sqlite", "postgres"])
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Deployment:
    dsn = "sqlite:///runner.db" if request.param == "sqlite" else request.getfixturevalue("postgres_dsn")
    made = Deployment(tmp_path, dsn)
    made.write()
    made.cli("migrate")
    lines = [line("a", "order"), line("b", "invoice", "a"), line("c", "[red]mail", "b"), line("d", "parcel", "a")]
    (made.directory / "events.jsonl").write_text("\n".join(lines))
    made.cli("publish", "--file", "events.jsonl")
    return made


def test_a_tree_for_people(deployment: Deployment) -> None:
    output, told = deployment.cli("events", "trace", "c")
    lines = output.splitlines()
    assert lines[0].startswith("correlation a, from 20")
    shown = [re.fullmatch(r"([│├└─\s]+)(\S+) .*", line) for line in lines[1:]]
    assert [(len(each[1]), each[2]) for each in shown if each] == [
        (4, "order"),
        (8, "invoice"),
        (12, "[red]mail"),
        (8, "parcel"),
    ]
    assert "seq 3  +0." in lines[3]
    assert lines[3].endswith("c  (queued)")
    assert told == ""
    assert "there is more than 2 events" in deployment.cli("events", "trace", "c", "--limit", "2")[1]


def test_one_object_for_programs(deployment: Deployment) -> None:
    [found] = deployment.json("events", "trace", "2")
    assert (found["correlationid"], found["complete"]) == ("a", True)
    assert [(each["id"], each["parent"], each["depth"]) for each in found["events"]] == [
        ("a", None, 0),
        ("b", 1, 1),
        ("c", 2, 2),
        ("d", 1, 1),
    ]
    assert found["events"][1]["deliveries"] == []


def test_of_an_event_that_is_not_there(deployment: Deployment) -> None:
    assert deployment.cli("events", "trace", "nope", code=1)[1] == "Error: no event has the seq or the id 'nope'\n"


def test_an_event_is_due_at_another_time(deployment: Deployment) -> None:
    deployment.cli("publish", "later", "--id", "z", "--source", "/t", "--delay", "1h")
    output, _ = deployment.cli("events", "reschedule", "z", "--deliver-at", "2027-01-31T12:00:00Z")
    assert output == "event 5 due 2027-01-31T12:00:00.000Z\n"
    [shown] = deployment.json("events", "show", "z")
    assert (shown["state"], shown["due_at"]) == ("scheduled", "2027-01-31T12:00:00Z")
    [moved] = deployment.json("events", "reschedule", "5", "--delay", "0s")
    assert {**moved, "due_at": None} == {"seq": 5, "due_at": None, "event": True, "deliveries": 0, "running": 0}
    assert "give either --delay or --deliver-at" in deployment.cli("events", "reschedule", "5", code=2)[1]
    assert "no event has the seq" in deployment.cli("events", "reschedule", "no", "--delay", "1s", code=1)[1]
