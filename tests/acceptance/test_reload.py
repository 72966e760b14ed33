"""Reloads of a running process: under load, by faulty files, by storms of signals, at bad moments."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner import Event, sync
from tests.support.eventually import PATIENCE
from tests.support.http import ask
from tests.support.process import RunnerProcess

DELIVERIES = int(os.environ.get("RUNNER_RELOAD_DELIVERIES", "4000"))
"""How many are under way while the file changes; 20,000 is the full size."""

HANDLERS = """\
import os
seen = os.open("seen", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

async def note(event):
    os.write(seen, f"{event.id}\\n".encode())
"""

FILE = """\
deployment_id: shop
storage: {{dsn: "{dsn}"}}
sinks: {{note: {{python: {{target: "handlers:note", permanent: [{permanent}]}}}}, other: stdout}}
subscriptions:
  - {{name: all, types: ["*"], sink: note, concurrency: {concurrency}, retry: {{max_attempts: {attempts}}}}}
  - {{name: extra-{number}, types: ["none.{number}"], sink: other}}
api: {{listen: "127.0.0.1:0"}}
log: {{format: console}}
"""


class Place:
    """A directory with a file that changes."""

    def __init__(self, directory: Path, dsn: str) -> None:
        self.directory = directory
        self.dsn = dsn
        self.path = directory / "runner.yaml"
        (directory / "handlers.py").write_text(HANDLERS)
        self.number = 0
        self.path.write_text(self.another())

    def another(self) -> str:
        """Return a good file, with another sink, subscription, concurrency and retry than the last one."""
        self.number += 1
        odd = self.number % 2
        return FILE.format(
            dsn=self.dsn,
            permanent="ValueError" if odd else "",
            concurrency=8 + odd,
            attempts=5 + odd,
            number=self.number,
        )

    def replace(self, text: str) -> None:
        """Write the file as editors do: beside it, and then renamed over it."""
        beside = self.path.with_suffix(".new")
        beside.write_text(text)
        beside.replace(self.path)

    def seen(self) -> Counter[str]:
        """Return how often each event was delivered."""
        file = self.directory / "seen"
        return Counter(file.read_text().split()) if file.exists() else Counter()


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    dsn = "sqlite:///runner.db" if request.param == "sqlite" else request.getfixturevalue("postgres_dsn")
    return Place(tmp_path, dsn)


@pytest.fixture
def local(tmp_path: Path) -> Place:
    return Place(tmp_path, "sqlite:///runner.db")


def started(place: Place, *options: str) -> RunnerProcess:
    process = RunnerProcess("start", "-c", place.path, *options, cwd=place.directory)
    process.wait_for_line("publish one")
    return process


def address(process: RunnerProcess) -> str:
    return process.wait_for_line(r"listening").partition("'")[2].partition("'")[0]


def count(process: RunnerProcess, text: str) -> int:
    return sum(text in line for line in list(process.stderr))


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def faulty(good: str) -> Iterator[str]:
    """Yield ten files that cannot be used, each with something in it that could be."""
    better = good.replace("max_attempts: ", "max_attempts: 1")
    yield ""
    yield better + "subscriptions: []\n"
    yield better.replace("sink: note", "sink: nowhere")
    yield better.replace("handlers:note", "handlers:missing")
    yield better.replace("types: [", "typs: [")
    yield better.replace("concurrency: ", "concurrency: -")
    yield better.replace("deployment_id: shop", "deployment_id: ${NOT_SET_AT_ALL}")
    yield better.replace("deployment_id: shop", "deployment_id: warehouse")
    yield better.replace("127.0.0.1:0", "127.0.0.1:1")
    yield better[: len(better) // 2] + "{"


def test_reloads_under_load_lose_and_repeat_nothing_and_faulty_files_change_nothing(place: Place) -> None:
    batch = 50
    with started(place) as process, sync.load(place.path) as bus:
        published: list[str] = []

        def publish() -> None:
            while len(published) < DELIVERIES:
                events = [Event.new("a.b", {"n": n}, source="/test") for n in range(batch)]
                bus.publish_many(events)
                published.extend(event.id for event in events)

        publisher = threading.Thread(target=publish)
        publisher.start()
        reloads, dice, url = 0, random.Random(7), address(process)
        while publisher.is_alive() or len(place.seen()) < len(published) or reloads < 3:
            place.replace(place.another())
            answer = ask(url, "/reload", method="POST")
            assert answer.status == 200, answer.body
            assert answer.json["changes"]
            reloads += 1
            time.sleep(dice.random() / 10)  # at another moment of a dispatch each time
        publisher.join()
        until(lambda: count(process, "configuration reloaded") >= reloads, "each reload is logged")
        good, used = place.path.read_text(), count(process, "configuration reloaded")
        for number, text in enumerate(faulty(good), 1):
            place.replace(text)
            assert ask(url, "/reload", method="POST").status in (409, 422), number
        assert place.seen() == Counter(published)
        assert used == reloads
        assert count(process, "configuration reloaded") == used
        metrics = ask(url, "/metrics").body.decode()
        assert f'runner_config_reloads_total{{outcome="reloaded"}} {float(used)}' in metrics
        assert 'runner_config_reloads_total{outcome="refused"} 2.0' in metrics
        assert 'runner_config_reloads_total{outcome="failed"} 8.0' in metrics
        assert "runner_config_last_reload_successful 0.0" in metrics
        everything = ask(url, "/subscriptions").json["items"]
        assert {each["name"] for each in everything if each["active"]} == {"all", f"extra-{place.number}"}
        [retry] = [each["retry"] for each in everything if each["name"] == "all"]
        assert f"max_attempts: {retry['max_attempts']}" in good
        assert process.stop() == 0


def test_storms_writes_renames_and_a_file_that_vanishes(local: Place) -> None:
    with started(local, "--watch") as process:
        for _ in range(50):
            process.signal(signal.SIGHUP)
        until(lambda: count(process, "cause=signal") >= 1, "a storm is a reload")
        for _ in range(20):  # a burst of writes
            local.path.write_text(local.another())
        # The last of the signals may be acted upon after the writes; then there is nothing left for the watch to tell.
        process.wait_for_line(rf"configuration reloaded +cause=(watch|signal) .*extra-{local.number}\] added")
        local.replace(local.another())
        process.wait_for_line(rf"configuration reloaded +cause=watch .*extra-{local.number}\] added")
        hidden = local.path.rename(local.path.with_suffix(".hidden"))
        process.wait_for_line("configuration not reloaded.*no such file")
        hidden.write_text(local.another())
        hidden.rename(local.path)
        process.wait_for_line(rf"configuration reloaded +cause=watch .*extra-{local.number}\] added")
        assert count(process, "cause=signal") <= 5
        assert count(process, "cause=watch") <= 8
        assert process.stop() == 0


def test_a_link_that_is_replaced_is_noticed(local: Place) -> None:
    """As Kubernetes replaces a ConfigMap: the directory behind a link is another one."""
    for number in (1, 2):
        (local.directory / f"v{number}").mkdir()
        (local.directory / f"v{number}" / "runner.yaml").write_text(local.another())
    local.path.unlink()
    (local.directory / "data").symlink_to("v1")
    local.path.symlink_to("data/runner.yaml")
    with started(local, "--watch") as process:
        (local.directory / "data.new").symlink_to("v2")
        (local.directory / "data.new").replace(local.directory / "data")
        process.wait_for_line(rf"configuration reloaded +cause=watch .*extra-{local.number}\] added")
        assert process.stop() == 0


def test_included_files_are_watched(local: Place) -> None:
    parts = local.directory / "parts"
    parts.mkdir()
    local.path.write_text(local.another() + "include: parts/*.yaml\n")
    with started(local, "--watch") as process:
        one = parts / "one.yaml"
        one.write_text("subscriptions: [{name: one, sink: nowhere}]\n")
        process.wait_for_line(r"configuration not reloaded.*parts/one\.yaml:1:.*nowhere")
        one.write_text("subscriptions: [{name: one, sink: other}]\n")
        process.wait_for_line(r"configuration reloaded +cause=watch .*subscriptions\[one\] added")
        one.unlink()
        process.wait_for_line(r"configuration reloaded +cause=watch .*subscriptions\[one\] removed")
        assert process.stop() == 0


def test_what_http_answers(local: Place) -> None:
    with started(local) as process:
        url, good = address(process), local.another()
        local.replace(good)
        tried = ask(url, "/reload?dry_run=true", method="POST")
        assert tried.status == 200
        assert {each["path"] for each in tried.json["changes"]} >= {
            "sinks.note.python.permanent",
            "subscriptions[extra-1]",
        }
        assert count(process, "configuration reloaded") == 0
        done = ask(url, "/reload", method="POST")
        assert (done.status, done.json["changes"]) == (200, tried.json["changes"])
        assert ask(url, "/reload", method="POST").json["changes"] == []
        local.replace(good.replace("sink: note", "sink: nowhere"))
        wrong = ask(url, "/reload", method="POST")
        assert (wrong.status, wrong.json["type"]) == (422, "urn:runner:problem:invalid-configuration")
        assert "runner.yaml:5:" in wrong.json["faults"][0]
        local.replace(good.replace("127.0.0.1:0", "127.0.0.1:1"))
        refused = ask(url, "/reload", method="POST")
        assert (refused.status, refused.json["type"]) == (409, "urn:runner:problem:needs-restart")
        assert [each["path"] for each in refused.json["changes"] if each["applies"] == "restart"] == ["api.listen"]
        logged = ask(url, "/audit?action=config.reload").json["items"]
        outcomes = [(each["outcome"], each["touched"]) for each in logged]
        assert outcomes == [("refused", 0), ("refused", 0), ("done", 0), ("done", len(done.json["changes"]))]
        assert logged[1]["detail"].startswith("faulty; ")
        assert process.stop() == 0
