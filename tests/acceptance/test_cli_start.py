from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from .deployment import Deployment, started


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    made = Deployment(tmp_path, "sqlite:///runner.db")
    made.write()
    return made


@pytest.fixture(params=["sqlite", "postgres"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Deployment:
    dsn = "sqlite:///runner.db" if request.param == "sqlite" else request.getfixturevalue("postgres_dsn")
    made = Deployment(tmp_path, dsn)
    made.write()
    return made


def test_start_says_what_it_built_delivers_and_drains(either: Deployment) -> None:
    with started(either) as runner:
        assert "shop" in runner.stderr[0]
        either.cli("publish", "greeting.sent", "--data", '{"n": 1}')
        runner.wait_for_line("greeting.sent")
        assert runner.stop() == 0
        assert either.json("events", "list")[0]["state"] == "settled"
        assert either.json("instances") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_second_signal_ends_it_at_once(deployment: Deployment, number: signal.Signals) -> None:
    with started(deployment) as runner:
        deployment.cli("publish", "stuck.one")
        runner.wait_for_line("stuck now")
        runner.signal(number)
        runner.wait_for_line("drain|stopping")
        runner.signal(number)
        assert runner.wait() == 130


def test_a_reload_takes_a_good_file_and_leaves_a_bad_one(deployment: Deployment) -> None:
    with started(deployment) as runner:
        good = deployment.path.read_text()
        deployment.path.write_text(good.replace("sink: terminal", "sink: terminl"))
        runner.signal(signal.SIGHUP)
        runner.wait_for_line(r"runner\.yaml:8:.*terminl")
        assert runner.returncode is None
        renamed = good.replace("name: everything", "name: whatever")
        deployment.path.write_text(renamed.replace("sinks:\n", "sinks:\n  idle: stdout\n"))
        runner.signal(signal.SIGHUP)
        runner.wait_for_line("odd configuration.*sinks.idle: no subscription uses this sink")
        runner.wait_for_line("configuration reloaded")
        deployment.cli("publish", "hello.again")
        runner.wait_for_line("hello.again")
        states = {each["name"]: each["active"] for each in deployment.json("subscriptions", "list")}
        assert states == {"everything": False, "whatever": True, "broken": True, "stuck": True}
        assert runner.stop() == 0


SINKS = """\
class Broken:
    def __init__(self, **options): pass
    async def start(self): raise LookupError("topsecret")
    async def deliver(self, delivery): pass
    async def stop(self): pass

class Unbuildable:
    def __init__(self, **options): raise LookupError("topsecret")
"""


def test_a_reload_that_would_change_the_deployment_is_refused(deployment: Deployment) -> None:
    with started(deployment) as runner:
        deployment.write("warehouse")
        runner.signal(signal.SIGHUP)
        runner.wait_for_line(r"runner\.yaml:1:\d+: deployment_id: .*'shop'.*'warehouse'")
        deployment.write()
        deployment.cli("publish", "hello.again")
        runner.wait_for_line("hello.again")
        assert runner.stop() == 0
        assert sum("stopping" in line for line in runner.stderr) == 1  # the last one


@pytest.mark.parametrize("name", ["Broken", "Unbuildable"])
def test_whatever_a_new_plug_in_raises_the_old_configuration_runs(deployment: Deployment, name: str) -> None:
    with started(deployment) as runner:
        (deployment.directory / "acme.py").write_text(SINKS)
        good = deployment.path.read_text()
        deployment.path.write_text(good.replace("terminal: stdout", f'terminal: "acme:{name}"'))
        runner.signal(signal.SIGHUP)
        runner.wait_for_line("configuration not reloaded.*it raised LookupError")
        deployment.path.write_text(good)
        deployment.cli("publish", "hello.again")
        runner.wait_for_line("hello.again")
        assert runner.stop() == 0
        assert sum("stopping" in line for line in runner.stderr) == 1  # the last one
        assert "LookupError" in "".join(runner.stderr)
        assert "topsecret" not in "".join(runner.stderr)
        assert "configuration reloaded" not in "".join(runner.stderr)


def test_a_reload_that_needs_a_restart_names_the_keys_and_changes_nothing(either: Deployment) -> None:
    with started(either) as runner:
        good = either.path.read_text()
        changed = good.replace(either.dsn, "postgresql://nobody@127.0.0.1:1/none").replace(
            "name: everything", "name: x"
        )
        either.path.write_text(changed + "strategies: [{polling: 7s}]\n")
        runner.signal(signal.SIGHUP)
        runner.wait_for_line(r"runner\.yaml:2:\d+: storage\.dsn: changed from .*, which takes a restart")
        runner.wait_for_line(r"runner\.yaml:\d+:\d+: strategies: changed, which takes a restart")
        either.path.write_text(good)
        assert {each["name"] for each in either.json("subscriptions", "list")} == {"broken", "everything", "stuck"}
        either.cli("publish", "hello.again")
        runner.wait_for_line("hello.again")
        assert runner.stop() == 0


def test_a_file_is_compared_with_what_runs(deployment: Deployment) -> None:
    with started(deployment) as runner:
        assert "are those of the file" in deployment.cli("config", "diff")[0]
        good = deployment.path.read_text()
        changed = good.replace("max_attempts: 2", "max_attempts: 3").replace("name: everything", "name: whatever")
        deployment.path.write_text(changed + "schedules: [{name: daily, cron: '@daily', event: {type: day}}]\n")
        output, _ = deployment.cli("config", "diff", code=1)
        assert [line.partition(":")[0] for line in output.splitlines()] == [
            "subscriptions[broken].retry",
            "subscriptions[everything]",
            "subscriptions[whatever]",
            "schedules[daily]",
        ]
        output, _ = deployment.cli("config", "diff", "--json", code=1)
        assert json.loads(output)["equal"] is False
        assert runner.stop() == 0


def test_a_database_that_is_not_there_ends_with_69(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, "postgresql://me:topsecret@127.0.0.1:1/none")
    deployment.write()
    for command in (["start"], ["publish", "a.b"], ["events", "list"]):
        _, complaint = deployment.cli(*command, code=69)
        assert "127.0.0.1" in complaint
        assert complaint.endswith("storage.dsn leads to it: runner doctor\n")
        assert "topsecret" not in complaint


def test_the_tables_of_another_deployment_are_refused(either: Deployment) -> None:
    with started(either) as runner:
        runner.stop()
    either.write("warehouse")
    for command in (["start"], ["publish", "a.b"], ["events", "list"]):
        _, complaint = either.cli(*command, code=78)
        assert "shop" in complaint
        assert "storage.schema" in complaint


def test_faults_of_the_file_end_with_78(deployment: Deployment) -> None:
    deployment.path.write_text(deployment.path.read_text().replace("types:", "typs:"))
    _, complaint = deployment.cli("start", code=78)
    assert complaint.startswith("runner.yaml:8:")
    assert "did you mean 'types'?" in complaint


def test_a_signal_while_it_waits_for_the_database_ends_it_gracefully(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, "postgresql://me@127.0.0.1:1/none")
    deployment.write()
    deployment.path.write_text(deployment.path.read_text().replace("start_timeout: 1s", "start_timeout: 1h"))
    with deployment.process("start") as runner:
        runner.wait_for_line("shop")
        assert runner.stop() == 0
        assert "stopped before it had started" in runner.stderr


def test_a_json_log_is_json_and_nothing_else(deployment: Deployment) -> None:
    text = deployment.path.read_text().replace("format: console", "format: json")
    deployment.path.write_text(text.replace("sinks:\n", "sinks:\n  idle: stdout\n"))
    with deployment.process("start") as runner:
        runner.wait_for_line('"publish one"')
        assert runner.stop() == 0
        events = [json.loads(line) for line in runner.stderr]
    assert [each["event"] for each in events[:2]] == ["built", "odd configuration"]
    assert "bus shop" in events[0]["plan"]
    assert "sinks.idle: no subscription uses this sink" in events[1]["detail"]
    deployment.path.write_text(text.replace(deployment.dsn, "postgresql://me@127.0.0.1:1/none"))
    _, complaint = deployment.cli("start", code=69)
    assert json.loads(complaint.splitlines()[-1])["event"] == "failed"
    assert all(json.loads(line) for line in complaint.splitlines())
    assert "connection refused" in complaint
    assert "Errno" not in complaint


def test_a_handler_that_blocks_the_loop_is_named_in_the_log(deployment: Deployment) -> None:
    (deployment.directory / "stones.py").write_text("""\
import os, time
async def block(_):
    while not os.path.exists("seen"): time.sleep(0.1)
    time.sleep(1)
""")
    more = """\
deployment_id: shop
storage: {{dsn: "{dsn}"}}
sinks: {{stone: {{python: "stones:block"}}}}
subscriptions: [{{name: petrified, sink: stone}}]
log: {{format: json}}
"""
    deployment.path.write_text(more.format(dsn=deployment.dsn))
    with deployment.process("start") as runner:
        runner.wait_for_line('"publish one"')
        deployment.cli("publish", "a.stone")
        blocked = json.loads(runner.wait_for_line('"event loop blocked"'))
        assert blocked["task"] == "deliver petrified"
        assert "stones.py:3 in block < " in blocked["stack"]
        assert blocked["blocked_for"] >= 5
        (deployment.directory / "seen").touch()
        free = json.loads(runner.wait_for_line('"event loop goes on"'))
        assert free["blocked_for"] >= blocked["blocked_for"] + 0.9
        assert runner.stop() == 0


@pytest.mark.parametrize("command", ["start", "events list", "publish a.b"])
@pytest.mark.parametrize(
    ("part", "wrong", "said"),
    [
        (r"/[^/]+$", "/nowhere", 'database "nowhere" does not exist; create it (createdb), or correct storage.dsn'),
        (r"//[^@]+@", "//nobody@", 'role "nobody" does not exist; correct the user in storage.dsn, or let it in'),
    ],
)
def test_a_refused_login_comes_with_its_cure(
    postgres_dsn: str, tmp_path: Path, command: str, part: str, wrong: str, said: str
) -> None:
    deployment = Deployment(tmp_path, re.sub(part, wrong, postgres_dsn))
    deployment.write()
    assert said in deployment.cli(*command.split(), code=1)[1]
