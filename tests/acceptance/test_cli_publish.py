"""What `publish` says beside the receipt: who gets the event, and who hears of it."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.server import free_port

from .deployment import Deployment, started

UNWANTED = "matches no subscription, so nobody gets it"


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    made = Deployment(tmp_path, "sqlite:///runner.db")
    made.write()
    narrow = made.path.read_text().replace('types: ["*"]', 'types: ["order.*"]')
    made.path.write_text(narrow)
    return made


class TestWhoGetsIt:
    def test_nobody(self, deployment: Deployment) -> None:
        output, said = deployment.cli("publish", "hello.world")
        assert output.endswith("  seq 1\n")
        assert said == f"warning: hello.world {UNWANTED}; `runner subscriptions list` has them\n"

    def test_somebody_of_a_file_that_no_runner_has_read_yet(self, deployment: Deployment) -> None:
        assert deployment.cli("publish", "order.created")[1] == ""

    def test_of_a_file_they_are_counted(self, deployment: Deployment) -> None:
        lines = [
            json.dumps({"specversion": "1.0", "type": type, "source": "/t", "id": str(number)})
            for number, type in enumerate(("order.a", "hello.a", "hello.b"))
        ]
        output, said = deployment.cli("publish", "--file", "-", input="\n".join(lines))
        assert output == "3 new, 0 already there\n"
        assert said == "warning: 2 of them match no subscription, so nobody gets them\n"


class TestDryRun:
    def test_it_says_for_each_subscription_why_or_why_not(self, deployment: Deployment) -> None:
        output, said = deployment.cli("publish", "hello.world", "--id", "1", "--dry-run")
        event, *verdicts = output.splitlines()
        assert json.loads(event)["id"] == "1"
        assert verdicts == [
            "broken: no: types: expected 'broken.*', the event has 'hello.world'",
            "everything: no: types: expected 'order.*', the event has 'hello.world'",
            "stuck: no: types: expected 'stuck.*', the event has 'hello.world'",
        ]
        assert said == ""
        assert "everything: yes\n" in deployment.cli("publish", "order.created", "--dry-run")[0]

    def test_the_expiry_is_part_of_the_event(self, deployment: Deployment) -> None:
        output, said = deployment.cli("publish", "order.a", "--expires-in", "1m", "--delay", "1h", "--dry-run")
        assert json.loads(output.splitlines()[0])["expirytime"] > datetime.now(UTC).isoformat()
        assert "it expires before it is due" in said

    def test_what_the_store_knows_counts_too(self, deployment: Deployment) -> None:
        with started(deployment):
            deployment.cli("subscriptions", "pause", "everything")
        wider = deployment.path.read_text().replace("name: everything", "name: other")
        deployment.path.write_text(wider)
        [outcome] = deployment.json("publish", "order.created", "--delay", "1h", "--dry-run")
        assert outcome["dry_run"] is True
        assert outcome["event"]["type"] == outcome["type"] == "order.created"
        assert outcome["due_at"] > datetime.now(UTC).isoformat()
        assert [each for each in outcome["subscriptions"] if each["matched"]] == [
            {"name": "everything", "matched": True, "failing": None, "held": "the subscription is paused"},
            {"name": "other", "matched": True, "failing": None, "held": None},
        ]
        assert deployment.json("events", "list") == []

    def test_what_a_publish_would_refuse_is_refused(self, deployment: Deployment) -> None:
        assert (
            "delay: expected 0 to 366 days"
            in deployment.cli("publish", "a.b", "--delay", "400d", "--dry-run", code=1)[1]
        )


class TestSchemas:
    @pytest.fixture(autouse=True)
    def with_schema(self, deployment: Deployment) -> None:
        (deployment.directory / "order.json").write_text('{"required": ["id"]}')
        types = 'types: {"order.*": {schema: order.json}}\n'
        deployment.path.write_text(deployment.path.read_text() + types)

    @pytest.mark.parametrize("more", [(), ("--dry-run",)])
    def test_one_event(self, deployment: Deployment, more: tuple[str, ...]) -> None:
        assert deployment.cli("publish", "order.created", "--data", '{"id": 1}', *more)[0]
        _, said = deployment.cli("publish", "order.created", "--data", "{}", *more, code=1)
        assert said.startswith("Error: data does not fit the schema of type 'order.created', at ''")

    @pytest.mark.parametrize("more", [(), ("--dry-run",)])
    def test_a_file(self, deployment: Deployment, more: tuple[str, ...]) -> None:
        event = {"specversion": "1.0", "type": "order.a", "source": "/t"}
        lines = [json.dumps(event | {"id": str(number), "data": {"id": 1} if number else {}}) for number in range(2)]
        (deployment.directory / "events.jsonl").write_text("\n".join(lines))
        refused = deployment.cli("publish", "--file", "events.jsonl", *more, code=1)[1]
        assert "events.jsonl:1: data does not fit" in refused
        refused = deployment.cli("publish", "--file", "-", code=1, input="\n".join(lines))[1]
        assert "-:1: data does not fit" in refused
        deployment.cli("migrate")
        assert deployment.json("events", "list") == []

    def test_a_schema_that_is_none_is_a_fault_of_the_file(self, deployment: Deployment) -> None:
        (deployment.directory / "order.json").write_text('{"type": 5}')
        assert "types.'order.*'.schema: no JSON Schema" in deployment.cli("check", code=78)[1]
        (deployment.directory / "order.json").unlink()
        assert "types.'order.*'.schema: cannot read" in deployment.cli("check", code=78)[1]


class TestWhoHearsOfIt:
    @pytest.fixture(autouse=True)
    def nobody_there(self, deployment: Deployment) -> None:
        nats = f'strategies: [polling: 30s, nats: "nats://127.0.0.1:{free_port()}"]\n'
        deployment.path.write_text(deployment.path.read_text() + nats)

    def test_that_nobody_could_be_signalled_is_said(self, deployment: Deployment) -> None:
        for verb in (("publish", "order.a"), ("events", "cancel", "1")):
            _, said = deployment.cli(*verb)
            assert "recorded, but not signalled (nats: not connected: 127.0.0.1:" in said
            assert "connection refused); delivered at the next poll" in said
        assert "signalled" not in deployment.cli("deliveries", "retry", "--state", "dead")[1]  # nothing to tell of


def test_after_an_interrupt_the_count_is_true_and_the_way_on_is_said(deployment: Deployment) -> None:
    lines = (
        json.dumps({"specversion": "1.0", "type": "order.a", "source": "/t", "id": str(number)}) + "\n"
        for number in range(20_000)
    )
    (deployment.directory / "events.jsonl").write_text("".join(lines))
    deployment.cli("migrate")
    with deployment.process("publish", "--file", "events.jsonl", "--json") as process:
        process.wait_for_line('"seq"')
        process.signal(signal.SIGINT)
        assert process.wait() == 130
        said = "\n".join(process.stderr)
    new = int(said.split(" new, ")[0].split()[-1])
    assert 0 < new < 20_000
    assert "publish the file again to go on; events that are recorded already stay unchanged" in said
    again, _ = deployment.cli("publish", "--file", "events.jsonl")
    assert again == f"{20_000 - new} new, {new} already there\n"
