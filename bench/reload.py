"""
`python -m bench.reload`: what reloads cost the deliveries that are under way.

A process delivers events that are published at a steady rate to a handler that notes when it was called. After a while
without reloads the file changes again and again. Prints the latencies, from the publish to the call, of both times.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from runner import Event, sync

HANDLERS = """\
import os, time
seen = os.open("seen", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

async def note(event):
    os.write(seen, f"{event.id} {event.data.decode()} {time.time()}\\n".encode())
"""

FILE = """\
deployment_id: bench
storage: {{dsn: "{dsn}"}}
sinks: {{note: {{python: {{target: "handlers:note", permanent: [{permanent}]}}}}, other: stdout}}
subscriptions:
  - {{name: all, types: ["*"], sink: note, concurrency: {concurrency}, retry: {{max_attempts: {attempts}}}}}
{others}log: {{format: console}}
"""


@click.command()
@click.option("--dsn", default="sqlite:///runner.db", help="Where the events are; an empty database.")
@click.option("--events", default=20_000, help="How many are published, half of them before the first reload.")
@click.option("--rate", default=1000, help="How many in a second.")
@click.option("--subscriptions", default=20, help="How many the file has beside the one that is measured.")
@click.option("--every", default=1.0, help="Seconds between two reloads.")
def main(dsn: str, events: int, rate: int, subscriptions: int, every: float) -> None:
    """Measure the latency of deliveries before and during reloads."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        directory = Path(name)
        (directory / "handlers.py").write_text(HANDLERS)
        _write(directory, dsn, subscriptions, 0)
        with _runner(directory) as process, sync.load("runner.yaml") as bus:
            began = _publish(bus, events // 2, rate, lambda: None)
            meanwhile = time.time()
            number = 0
            due = 0.0

            def reload() -> None:
                nonlocal number, due
                if time.monotonic() >= due:
                    due = time.monotonic() + every
                    number += 1
                    _write(directory, dsn, subscriptions, number)
                    process.send_signal(signal.SIGHUP)

            _publish(bus, events - events // 2, rate, reload)
            rows = _delivered(directory / "seen", events)
        log = (directory / "log").read_text()
    done = log.count("configuration reloaded")
    seen = Counter(row[0] for row in rows)
    before = [1000 * (at - published) for _, published, at in rows if began + 1 < published < meanwhile]
    during = [1000 * (at - published) for _, published, at in rows if published >= meanwhile]
    print(f"{events} events at {rate}/s, {subscriptions + 1} subscriptions, {done} reloads of {number} asked for")
    print(f"lost {events - len(seen)}, twice {sum(count - 1 for count in seen.values())}")
    _print("before", before)
    _print("during", during)
    print(f"p99 during / before: {_percentile(during, 99) / _percentile(before, 99):.2f}")


def _write(directory: Path, dsn: str, subscriptions: int, number: int) -> None:
    others = "".join(
        f'  - {{name: other-{each}, types: ["none.{each}.{number}"], sink: other}}\n' for each in range(subscriptions)
    )
    odd = number % 2
    text = FILE.format(
        dsn=dsn, permanent="ValueError" if odd else "", concurrency=8 + odd, attempts=5 + odd, others=others
    )
    beside = directory / "runner.new"
    beside.write_text(text)
    beside.replace(directory / "runner.yaml")


@contextlib.contextmanager
def _runner(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `runner start`, and end it at the end of the block."""
    log = directory / "log"
    with log.open("wb") as output:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-m", "runner", "start", "-c", "runner.yaml"]
        process = subprocess.Popen(command, cwd=directory, stderr=output, stdout=output, env=environment)
        try:
            while "publish one" not in log.read_text():
                if process.poll() is not None:
                    raise click.ClickException(log.read_text())
                time.sleep(0.05)
            yield process
        finally:
            process.terminate()
            process.wait()


def _publish(bus: sync.Bus, events: int, rate: int, between: object) -> float:
    """Publish at a steady rate, in batches of a hundredth of a second; return when it began."""
    assert callable(between)
    began, batch = time.time(), max(1, rate // 100)
    for first in range(0, events, batch):
        left = began + first / rate - time.time()
        if left > 0:
            time.sleep(left)
        between()
        now = time.time()
        bus.publish_many(
            [Event.new("a.b", str(now).encode(), source="/bench") for _ in range(min(batch, events - first))]
        )
    return began


def _delivered(file: Path, events: int) -> list[tuple[str, float, float]]:
    """Return id, time of the publish and time of the call of every delivery, once none comes any more."""
    deadline, lines = time.monotonic() + 60, list[str]()
    while time.monotonic() < deadline:
        lines = file.read_text().splitlines()
        if len({line.split()[0] for line in lines}) >= events:
            break
        time.sleep(0.2)
    return [(id, float(published), float(at)) for id, published, at in map(str.split, lines)]


def _print(name: str, latencies: Sequence[float]) -> None:
    spread = "  ".join(f"p{each} {_percentile(latencies, each):.1f}" for each in (50, 95, 99))
    print(f"{name}: {spread}  max {max(latencies):.1f} ms  ({len(latencies)} deliveries)")


def _percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


if __name__ == "__main__":
    main()
