from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nats
import pytest

from tests.support.nats import NatsServer
from tests.support.postgres import PostgresServer
from tests.support.process import run_cli

from .deployment import Deployment


@pytest.fixture(params=["sqlite", "postgres"])
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Deployment:
    dsn = "sqlite:///runner.db" if request.param == "sqlite" else request.getfixturevalue("postgres_dsn")
    made = Deployment(tmp_path, dsn)
    made.write()
    return made


def test_what_init_writes_passes_check(tmp_path: Path) -> None:
    written = run_cli("init", cwd=tmp_path)
    assert written.returncode == 0
    assert "runner start -c runner.yaml" in written.stderr
    checked = run_cli("check", "-c", "runner.yaml", cwd=tmp_path)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "sqlite" in checked.stdout
    assert not (tmp_path / "runner.db").exists()


def test_init_replaces_a_file_only_when_forced(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("mine")
    refused = run_cli("init", path)
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    assert path.read_text() == "mine"
    assert run_cli("init", path, "--force").returncode == 0
    assert path.read_text() != "mine"
    nowhere = run_cli("init", tmp_path / "nowhere" / "runner.yaml")
    assert nowhere.returncode == 1
    assert "No such file or directory" in nowhere.stderr


def test_check_prints_the_plan_and_connects_only_when_told(deployment: Deployment) -> None:
    text = deployment.path.read_text()
    deployment.path.write_text(text.replace("sink: stuck}", "sink: stuck, batch: 7, order_by: subject, rate: 5/s}"))
    plan, _ = deployment.cli("check")
    policy = "in order of subject, at most 5/s, batches of 7, 20 attempts"
    for word in (policy, "shop", "everything", "terminal", "polling"):
        assert word in plan
    online, _ = deployment.cli("check", "--online")
    assert online.startswith(plan)
    assert "not migrated" in online
    deployment.cli("migrate")
    assert "up to date" in deployment.cli("check", "--online")[0]


def test_check_names_every_fault(deployment: Deployment) -> None:
    deployment.path.write_text(deployment.path.read_text().replace("types:", "typs:"))
    output, complaint = deployment.cli("check", code=78)
    assert output == ""
    assert len(complaint.splitlines()) == 3
    output, complained = deployment.cli("check", "--json", code=78)
    assert json.loads(output) == {"valid": False, "faults": complaint.splitlines()}
    assert complained == complaint


def test_what_check_finds_is_json_too(deployment: Deployment) -> None:
    [plan] = deployment.json("check")
    parts = {"storage", "strategies", "sinks", "subscriptions", "schedules"}
    assert plan.keys() == {"valid", "deployment", "warnings"} | parts
    assert (plan["valid"], plan["deployment"], plan["sinks"]["terminal"]) == (True, "shop", "stdout")
    assert [each["name"] for each in plan["subscriptions"]] == ["everything", "broken", "stuck"]
    deployment.cli("migrate")
    [found] = deployment.json("check", "--online")
    assert found["online"]["nats"] == []
    assert (found["online"]["tables"]["pending"], found["online"]["tables"]["owner"]) == ([], "shop")


def test_check_builds_the_parts_and_names_every_fault_of_that(tmp_path: Path) -> None:
    (tmp_path / "parts.yaml").write_text(
        "deployment_id: shop\n"
        "storage: {dsn: sqlite:///nowhere/shop.db}\n"
        "strategies:\n"
        "  - polling: 30s\n"
        "  - os:getpid: {password: topsecret}\n"
        "sinks:\n"
        "  j: {os:getcwd: {}}\n"
        "  k: {parts:fail: {password: topsecret}}\n"
        "  l: parts:Single\n"
        "subscriptions: [{name: a, sink: l, batch: 5}]\n"
    )
    (tmp_path / "parts.py").write_text(
        "def fail(password): raise RuntimeError(password)\n"
        "class Single:\n"
        "    async def start(self): ...\n"
        "    async def deliver(self, delivery): ...\n"
        "    async def stop(self): ...\n"
    )
    faults = [
        f"parts.yaml:2:11: storage.dsn: the directory {tmp_path}/nowhere does not exist; make it first",
        "parts.yaml:5:5: strategies[1]: os:getpid: got an unexpected keyword argument 'subject'",
        "parts.yaml:7:3: sinks.j: os:getcwd: expected a sink with start, deliver and stop, got 'str'",
        "parts.yaml:8:3: sinks.k: parts:fail: cannot be built, it raised RuntimeError",
        "parts.yaml:10:36: subscriptions[0].batch: sink 'l' has no deliver_batch(); leave batch out, or add it "
        "(docs/writing-a-sink.md)",
    ]
    for verb in ("check", "start"):
        done = run_cli(verb, "-c", "parts.yaml", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr.splitlines()) == (78, "", faults)


@pytest.mark.parametrize(
    ("dsn", "fault"),
    [
        ("sqlite:///nowhere/shop.db", "nowhere does not exist"),
        ("sqlite:///there", "there is a directory"),
        ("postgresql://db/shop?sslmode=verify-full&sslrootcert=ca.pem", "sslrootcert: .*/ca.pem cannot be read"),
        ("postgresql://db/shop?sslmode=verify-full", "sslmode=verify-full needs a root certificate"),
    ],
)
def test_a_file_the_dsn_names_is_missed_at_once(tmp_path: Path, dsn: str, fault: str) -> None:
    (tmp_path / "there").mkdir()
    deployment = Deployment(tmp_path, dsn)
    deployment.write()
    for command in (["check"], ["publish", "a.b"], ["events", "list"]):
        _, complaint = deployment.cli(*command, code=78)
        assert re.search(rf"^runner\.yaml:2:11: storage\.dsn: .*{fault}", complaint)


def test_check_online_tells_of_every_server(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, "postgresql://me@127.0.0.1:1/none")
    deployment.write(more="strategies: [{nats: 'nats://127.0.0.1:1'}]\n")
    output, complaint = deployment.cli("check", "--online", code=69)
    assert re.search(r"^tables +not usable", output, re.MULTILINE)
    assert re.search(r"^nats +127\.0\.0\.1:1: connection refused$", output, re.MULTILINE)
    assert "PostgreSQL cannot be reached: 127.0.0.1:1: connection refused" in complaint
    assert "Errno" not in output + complaint
    output, _ = deployment.cli("check", "--online", "--json", code=69)
    refused: dict[str, object] = {"server": None, "error": "127.0.0.1:1: connection refused", "subjects": {}}
    refused["streams"] = {}
    assert json.loads(output)["online"] == {"tables": None, "nats": [refused]}


def test_check_online_tells_which_events_no_stream_would_store(
    tmp_path: Path, make_nats_server: Callable[..., NatsServer]
) -> None:
    server = make_nats_server(jetstream=True)

    async def prepare() -> None:
        client = await nats.connect(server.url)
        await client.jetstream().add_stream(name="ORDERS", subjects=["orders.order.*"], max_msgs=5)
        await client.close()

    asyncio.run(prepare())
    deployment = Deployment(tmp_path, "sqlite:///shop.db")
    text = f"""
deployment_id: shop
storage: {{dsn: "sqlite:///shop.db"}}
strategies: [polling: 30s, nats: "{server.url}"]
sinks:
  kept: {{nats: {{subject: "orders.{{type}}", jetstream: true, stream: {{name: ORDERS, max_messages: 9}}}}}}
  free: {{nats: {{subject: "orders.{{type}}", jetstream: true}}}}
  made: {{nats: {{subject: "bills.{{type}}", jetstream: true, stream: {{name: BILLS}}}}}}
  other: {{nats: {{subject: "orders.{{type}}", jetstream: true, stream: {{name: OTHER}}}}}}
subscriptions:
  - {{name: one, types: [order.created], sink: kept}}
  - {{name: two, types: [order.created, user.created], sink: free}}
  - {{name: three, types: [order.created], sink: made}}
  - {{name: four, types: [order.created], sink: other}}
"""
    deployment.path.write_text(text)
    output, complaint = deployment.cli("check", "--online", code=1)
    assert "no stream would store what is to be sent there as the file says; see above" in complaint
    assert re.findall(r"^nats +(sink .*)$", output, re.MULTILINE) == [
        "sink kept: stream 'ORDERS': it takes orders.order.*, and not orders.>",
        "sink kept: stream 'ORDERS': its max_msgs is 5, the file says 9",
        "sink free: no stream takes 'orders.user.created'",
        "sink other: stream 'ORDERS' takes 'orders.order.created', the file says 'OTHER'",
    ]
    found = json.loads(deployment.cli("check", "--online", "--json", code=1)[0])["online"]["nats"][0]["streams"]
    assert found["made"] == []
    assert len(found["kept"]) == 2


def test_check_online_tries_the_right_to_publish_and_sends_nothing(
    tmp_path: Path, make_nats_server: Callable[..., NatsServer]
) -> None:
    server = make_nats_server(
        "authorization { users: [ { user: me, password: pw, permissions:"
        ' { publish: ["mesh.>", "bus.order.created", "dead.>"], subscribe: ">" } }, { user: all, password: pw } ] }'
    )
    deployment = Deployment(tmp_path, "sqlite:///shop.db")
    deployment.path.write_text(f"""
deployment_id: shop
storage: {{dsn: "sqlite:///shop.db"}}
strategies: [polling: 30s, nats: {{servers: ["{server.url}"], user: me, password: pw}}]
sinks:
  allowed: {{nats: "bus.{{type}}"}}
  unheard: {{nats: "audit.{{type}}.{{id}}"}}
  dead: {{nats: "dead.{{source}}"}}
subscriptions:
  - {{name: one, types: [order.created], sink: allowed, dead_letter: dead}}
  - {{name: two, types: [order.created, "user.*"], sink: unheard}}
""")
    with heard(server, user="all", password="pw") as messages:
        output, complaint = deployment.cli("check", "--online", code=1)
    assert complaint == "Error: NATS would refuse what is to be sent there; see above\n"
    told = [line.removeprefix("nats           ") for line in output.splitlines() if line.startswith("nats ")]
    address = server.url.removeprefix("nats://")
    assert told == [
        f"connected to {address}",
        f'{address}: no permission to publish to "audit.order.created.runner-check"',
        f'{address}: no permission to publish to "audit.user.runner-check.runner-check"',
    ]
    assert messages == []


@contextlib.contextmanager
def heard(server: NatsServer, **login: str) -> Iterator[list[bytes]]:
    """Listen to everything that goes over a server, and say what that was at the end."""
    messages: list[bytes] = []
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        said = json.dumps({"verbose": False, "user": login["user"], "pass": login["password"]})
        connection.sendall(f"CONNECT {said}\r\nSUB > 1\r\nPING\r\n".encode())
        lines = connection.makefile("rb")
        while not lines.readline().startswith(b"PONG"):
            pass
        yield messages
        connection.sendall(b"PING\r\n")
        while not (line := lines.readline()).startswith(b"PONG"):
            messages.append(line)


def test_config_show_hides_secrets(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, "postgresql://me:topsecret@db.example/shop")
    deployment.write()
    plain, _ = deployment.cli("config", "show")
    [shown] = deployment.json("config", "show")
    assert shown["deployment_id"] == "shop"
    assert "db.example" in plain
    assert "topsecret" not in plain + json.dumps(shown)
    assert "topsecret" not in "".join(deployment.cli("check"))


def test_config_schema_is_a_json_schema(tmp_path: Path) -> None:
    schema = json.loads(run_cli("config", "schema", cwd=tmp_path).stdout)
    assert schema["properties"].keys() >= {"deployment_id", "storage", "sinks", "subscriptions"}


def test_migrate_brings_the_tables_up_to_date_once(deployment: Deployment) -> None:
    [before] = deployment.json("migrate", "--status")
    assert before["current"] is None
    assert before["pending"][-1] == before["head"]
    assert before["head"] in deployment.cli("migrate")[0]
    after = {**before, "current": before["head"], "pending": [], "owner": "shop"}
    assert deployment.json("migrate", "--status") == [after]
    assert deployment.cli("migrate")[0] == "the tables are up to date\n"
    assert "CREATE TABLE" in deployment.cli("migrate", "--sql")[0]


def test_tables_that_are_not_there_are_said_to_be_missing(deployment: Deployment) -> None:
    for command in (["events", "list"], ["deliveries", "retry", "--state", "dead"], ["instances"]):
        _, complaint = deployment.cli(*command, code=1)
        assert "run `runner migrate -c runner.yaml` (or start a runner) first" in complaint
    assert deployment.json("migrate", "--status")[0]["current"] is None


def test_the_first_publish_makes_the_tables_unless_told_not_to(deployment: Deployment) -> None:
    deployment.path.write_text(deployment.path.read_text().replace("start_timeout: 1s", "migrate: false"))
    assert "runner migrate" in deployment.cli("publish", "a.b", code=1)[1]
    deployment.write()
    assert deployment.cli("publish", "a.b")[0].endswith("seq 1\n")


def test_foreign_tables_are_refused_before_a_start_finds_them(deployment: Deployment, postgres: PostgresServer) -> None:
    """A table of somebody else's that has the name of one of ours: `check --online` says what `start` would."""
    if deployment.dsn.startswith("sqlite"):
        with sqlite3.connect(deployment.directory / "runner.db") as connection:
            connection.execute("CREATE TABLE events (title text)")
        connection.close()
    else:
        postgres.psql("CREATE TABLE events (title text)", deployment.dsn)
    for command in (["check", "--online"], ["migrate", "--status"], ["migrate"], ["publish", "a.b"], ["start"]):
        assert "tables named events are there already" in deployment.cli(*command, code=1)[1]


def test_the_tables_of_another_deployment_are_not_migrated(deployment: Deployment) -> None:
    deployment.cli("migrate")
    deployment.write("warehouse")
    for command in (["migrate"], ["migrate", "--status"]):
        assert "'shop'" in deployment.cli(*command, code=78)[1]


def test_other_verbs_log_json_where_the_file_says_so(deployment: Deployment) -> None:
    deployment.path.write_text(deployment.path.read_text().replace("format: console", "format: json"))
    deployment.cli("migrate")
    deployment.path.write_text(deployment.path.read_text() + "strategies: [{nats: 'nats://127.0.0.1:1'}]\n")
    _, complaint = deployment.cli("publish", "a.b")
    *logged, told = complaint.splitlines()
    assert [json.loads(line)["event"] for line in logged] == ["nats unreachable"]
    assert told.startswith("warning: recorded, but not signalled (nats: ")


@pytest.mark.parametrize("module", ["json", "asyncio", "yaml", "click"])
def test_a_file_of_the_working_directory_is_nobody_elses_module(tmp_path: Path, module: str) -> None:
    (tmp_path / f"{module}.py").write_text("raise SystemExit('taken for another')")
    (tmp_path / "handlers.py").write_text("import json\njson.dumps\ndef handle(event): ...\n")
    (tmp_path / "bus.yaml").write_text(
        "deployment_id: shop\nstorage: {dsn: sqlite:///shop.db}\nsinks: {own: {python: 'handlers:handle'}}\n"
        "subscriptions: [{name: a, sink: own}]\n"
    )
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    for command in ([sys.executable, "-m", "runner"], [str(Path(sys.executable).with_name("runner"))]):
        done = subprocess.run(
            [*command, "check", "-c", "bus.yaml"],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "sink           own: python" in done.stdout
