"""The questions of an operator in an incident, each answered by the command that docs/status.md names."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.documents import ROOT
from tests.support.eventually import eventually
from tests.support.nats import NatsServer
from tests.support.process import run_python

from .deployment import Deployment, started

CONFIG = """\
deployment_id: shop
storage: {{dsn: "{dsn}"}}
strategies: [{{polling: 30s}}, {{nats: {{servers: ["{nats}"]}}}}]
sinks:
  crm: {{python: "handlers:fail"}}
  search: {{python: "handlers:wait"}}
  mail: {{python: "handlers:take"}}
subscriptions:
  - {{name: crm, types: ["order.*"], filter: {{prefix: {{subject: eu/}}}}, sink: crm,
     retry: {{schedule: [10ms, 10ms, 1h]}}, breaker: {{failures: 3, pause: 1h, max_pause: 1h}}}}
  - {{name: search, types: ["order.*"], filter: {{exact: {{subject: eu/1}}}}, sink: search, timeout: 1h}}
  - {{name: mail, types: ["order.*"], sink: mail, rate: 3/m}}
  - {{name: audit, types: ["order.*"], sink: mail}}
"""

HANDLERS = """\
import asyncio

def fail(event):
    raise RuntimeError("no such customer")

async def wait(event):
    await asyncio.sleep(3600)

def take(event):
    pass
"""

GREETER = """\
import asyncio
from runner import load

async def main():
    runner = load("runner.yaml")
    runner.subscribe("greeter", print, types=["order.*"])
    async with runner:
        pass

asyncio.run(main())
"""


EVENT = '{"specversion": "1.0", "id": "2", "source": "/shop", "type": "order.created", "subject": "us/1"}'


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What each command of a question has to say.

    Attributes:
        pattern: found in what it prints.
        names: what stands for the capitals in the manual's commands.
        code: the exit code of `status`; the other verbs end with 0.
    """

    pattern: str
    names: Mapping[str, str] = field(default_factory=dict)
    code: int = 1


LENGTH = r"\d+\w+"

# A process runs; crm fails, search holds a lease, mail has a rate, audit is paused, and nobody serves greeter.
MEANWHILE = {
    "How is it, in one word?": Answer(r"\Adegraded: deployment shop\n"),
    "Since when does it fail, and with what error?": Answer(
        rf"(?m)^degraded: crm: its breaker is open, .*; failing for {LENGTH}; .* RuntimeError: no such customer$"
    ),
    "How old is the oldest?": Answer(rf"(?m)^search +active +1 +{LENGTH} "),
    "How much comes in and goes out, and when is it done?": Answer(
        rf"(?ms)^in +\d+\.\d/s$.*^mail +active +\d+ +{LENGTH} +0 +\d+\.\d/s +\d+\.\d/s +{LENGTH} "
    ),
    "What share succeeds, and how long does it take?": Answer(r"(?m)^mail .* 100\.0% +\S+s +\S+s +\S+s "),
    "Is it served by any process?": Answer(r"(?m)^greeter +nobody serves it "),
    "Which process hears NATS?": Answer(r"(?m) nats yes "),
    "Why is this event not delivered?": Answer(
        r"(?m)^retry: it waits to be retried: RuntimeError: no such customer, until 20",
        {"EVENT": "1", "SUBSCRIPTION": "crm"},
    ),
    "Why does it not match?": Answer(
        r"filter\.prefix\.subject: expected to begin with 'eu/', the event has 'us/1'",
        {"EVENT": "2", "SUBSCRIPTION": "crm", "NAME": "crm"},
    ),
    "Who holds the lease?": Answer(r":\d+\) holds its lease", {"EVENT": "1", "SUBSCRIPTION": "search"}),
    "Since when is it paused, and by whom?": Answer(
        rf"(?s)audit: \S+@\S+ paused it {LENGTH} ago|paused_at +20.*paused_by +\S+@\S+", {"NAME": "audit"}
    ),
    "Where is the event of this subject?": Answer(r"(?m)^2 +order\.created ", {"SUBJECT": "us/1"}),
}
# The process is gone, and five more events were published.
AFTERWARDS = {
    "How much waits, also of what is not dispatched yet?": Answer(
        r"(?ms)^queue +5 not dispatched.*^audit +paused +\d+ ", code=2
    ),
}


def questions() -> dict[str, list[str]]:
    """Return the commands of the manual, by the questions that they answer."""
    text = (ROOT / "docs" / "status.md").read_text()
    _, _, section = text.partition("## Which command answers which question\n")
    rows = re.findall(r"^\| ([A-Z][^|]*\?) \| ([^|]*) \|$", section.partition("\n#")[0], re.M)
    return {question: re.findall(r"`(runner [^`]+)`", answer) for question, answer in rows}


def test_there_are_thirteen_and_each_is_asked_here() -> None:
    assert len(questions()) == 13
    assert questions().keys() == {**MEANWHILE, **AFTERWARDS}.keys()
    assert all(questions().values())


@pytest.fixture
def shop(postgres_dsn: str, nats_server: NatsServer, tmp_path: Path) -> Deployment:
    shop = Deployment(tmp_path, postgres_dsn)
    shop.path.write_text(CONFIG.format(dsn=postgres_dsn, nats=nats_server.url))
    (tmp_path / "handlers.py").write_text(HANDLERS)
    return shop


@pytest.mark.timeout(300)
def test_each_is_answered_by_one_command(shop: Deployment) -> None:
    with started(shop) as process:
        done = run_python(GREETER, cwd=shop.directory)
        assert done.returncode == 0, done.stderr
        shop.cli("subscriptions", "pause", "audit")
        for subject in ("eu/1", "us/1", "us/2", "us/2"):
            shop.cli("publish", "order.created", "--subject", subject)
        for question, answer in MEANWHILE.items():
            _ask(shop, question, answer)
        process.kill()
    for _ in range(5):
        shop.cli("publish", "order.created", "--subject", "us/2")
    for question, answer in AFTERWARDS.items():
        _ask(shop, question, answer)


def _ask(shop: Deployment, question: str, answer: Answer) -> None:
    """Expect that each command of a question soon has the answer: what a process reports is up to 10 s old."""

    async def answered(arguments: list[str]) -> bool:
        code = answer.code if arguments == ["status"] else 0
        said, _ = await asyncio.to_thread(shop.cli, *arguments, code=code, input=EVENT)
        assert re.search(answer.pattern, said), f"{question}\n{said}"
        return True

    for command in questions()[question]:
        arguments = [answer.names.get(each, each) for each in shlex.split(command)[1:]]
        asyncio.run(eventually(lambda arguments=arguments: answered(arguments), every=0.5))  # type: ignore[misc]
