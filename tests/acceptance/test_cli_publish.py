"""What `publish` says beside the receipt: who gets the event, and who hears of it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.support.server import free_port

from .deployment import Deployment

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
    assert "publish the file again to go on; what is there already is left as it is" in said
    again, _ = deployment.cli("publish", "--file", "events.jsonl")
    assert again == f"{20_000 - new} new, {new} already there\n"
