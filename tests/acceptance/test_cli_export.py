from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from runner.cloudevents import decode_json

from .deployment import Deployment

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def made(directory: Path, dsn: str) -> Deployment:
    deployment = Deployment(directory, dsn)
    deployment.write()
    deployment.cli("migrate")
    return deployment


@pytest.fixture(params=["sqlite", "postgres"])
def origin(request: pytest.FixtureRequest, tmp_path: Path) -> Deployment:
    (tmp_path / "origin").mkdir()
    dsn = "sqlite:///runner.db" if request.param == "sqlite" else request.getfixturevalue("postgres_dsn")
    return made(tmp_path / "origin", dsn)


@pytest.fixture
def other(tmp_path: Path) -> Deployment:
    (tmp_path / "other").mkdir()
    return made(tmp_path / "other", "sqlite:///other.db")


def exported(deployment: Deployment, *options: str) -> list[bytes]:
    return deployment.cli("events", "export", *options)[0].encode().splitlines()


DATA = [
    b'{"big": 12345678901234567890123,  "float": 1.10, "exponent": 1E400}',
    b'{\n "lines": 1\n}\n',
    b' {"blanks": true} ',
    b"null",
    b"",
    b"\xff\xfe\x00",
    "text \u2028 \u202e".encode(),
]


def test_all_events_go_over_in_order_with_every_byte(origin: Deployment, other: Deployment) -> None:
    file = origin.directory / "in.jsonl"
    with file.open("wb") as lines:
        for number in range(151):
            event = {"specversion": "1.0", "id": f"n{number}", "source": "/s", "type": "a.b", "k": number}
            lines.write(json.dumps(event).encode()[:-1] + b', "data": {"n": 12345678901234567890123}}\n')
    origin.cli("publish", "--file", file)
    for number, data in enumerate(DATA):
        path = origin.directory / f"data{number}"
        path.write_bytes(data)
        mime = "application/json" if number < 4 else "text/plain" if number == 6 else "application/octet-stream"
        origin.cli("publish", "c.d", "--data", f"@{path}", "--content-type", mime, "--id", f"d{number}")
    lines_out = exported(origin)
    events = [decode_json(line) for line in lines_out]
    assert [event.extensions.get("k") for event in events[:151]] == list(range(151))
    assert [event.data for event in events[151:]] == DATA
    assert {event.data for event in events[:151]} == {b'{"n": 12345678901234567890123}'}
    (other.directory / "events.jsonl").write_bytes(b"\n".join(lines_out) + b"\n")
    old = b'{"specversion":"1.0","id":"old","source":"my shop","type":"a.b"}'  # of a version that checked no URIs
    (other.directory / "old.jsonl").write_bytes(old + b"\n")
    assert "old.jsonl:1: source: expected a URI" in other.cli("publish", "--file", "old.jsonl", code=1)[1]
    assert other.cli("events", "import", "events.jsonl")[0] == "158 new, 0 already there\n"
    assert exported(other) == lines_out
    assert other.cli("events", "import", "old.jsonl")[0] == "1 new, 0 already there\n"
    assert other.cli("events", "import", "events.jsonl")[0] == "0 new, 158 already there\n"


def test_what_is_exported_may_go_back_where_it_came_from(origin: Deployment) -> None:
    """Although its time was not the publisher's."""
    for id in ("a", "b"):
        origin.cli("publish", "x.y", "--id", id)
    (origin.directory / "events.jsonl").write_bytes(b"\n".join(exported(origin)))
    assert origin.cli("events", "import", "events.jsonl")[0] == "0 new, 2 already there\n"
    changed = b"\n".join(exported(origin)).replace(b'"type":"x.y"', b'"type":"x.z"')
    (origin.directory / "events.jsonl").write_bytes(changed)
    output, complaint = origin.cli("events", "import", "events.jsonl", code=1)
    assert output == "0 new, 0 already there, 2 in conflict\n"
    assert "events.jsonl:1: " in complaint


def test_only_what_the_options_say_and_from_a_pipe(origin: Deployment, other: Deployment) -> None:
    for number in range(4):
        origin.cli("publish", "x.y" if number % 2 else "x.z", "--id", str(number), "--source", f"/{number}")
    assert [json.loads(line)["id"] for line in exported(origin, "--type", "*.y")] == ["1", "3"]
    assert [json.loads(line)["id"] for line in exported(origin, "--limit", "3", "--since", "1h")] == ["0", "1", "2"]
    assert exported(origin, "--until", "1h") == []
    piped = "\n".join(line.decode() for line in exported(origin))
    assert other.cli("events", "import", "-", input=piped)[0] == "4 new, 0 already there\n"
    assert [each["duplicate"] for each in other.json("events", "import", "-", input=piped)] == [True] * 4


def test_the_recipe_in_the_documents_works(origin: Deployment, other: Deployment) -> None:
    found = re.search(r"```sh\n(runner events export -c old\.yaml.*?)```", OPERATIONS.read_text(), re.DOTALL)
    assert found is not None
    for number in range(3):
        origin.cli("publish", "x.y", "--id", str(number))
    script = found[1].replace("old.yaml", str(origin.path)).replace("new.yaml", str(other.path))
    path = f"{Path('.venv/bin').absolute()}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path}
    done = subprocess.run(
        ["sh", "-ec", script], cwd=other.directory, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "3 new, 0 already there\n0 new, 3 already there\n"), done.stderr


@pytest.mark.parametrize("how", ["@big", "-", "@-"])
def test_data_beyond_the_limit_is_refused_unread(tmp_path: Path, how: str) -> None:
    deployment = made(tmp_path, "sqlite:///runner.db")
    with (tmp_path / "big").open("wb") as file:
        file.truncate(300 << 20)
    arguments = ("publish", "a.b", "--content-type", "a/b", "--data", how)
    _, complaint = deployment.cli(*arguments, code=2, **({"input": "x" * (2 << 20)} if how != "@big" else {}))
    assert "more than 1048576 bytes" in complaint
