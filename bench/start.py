"""`python -m bench.start`: what one `runner publish` costs of the processor, beside what its drivers cost to import."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from tests.support.postgres import PostgresServer

ROOT = Path(__file__).parents[1]
FLOOR = [sys.executable, "-c", "import sqlalchemy.ext.asyncio, asyncpg"]
MOST = 1.3  # times the floor


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True, help="Runs of each, in turns.")
def main(rounds: int) -> None:
    """Print the processor time (user and system) of a child, as the median of its runs, and its ratio to the floor."""
    server = PostgresServer(18)
    with tempfile.TemporaryDirectory(prefix="runner-start-") as directory:
        server.start()
        try:
            stores = {"SQLite": f"sqlite:///{directory}/bus.db", "PostgreSQL": server.create_database()}
            commands = {"import sqlalchemy.ext.asyncio, asyncpg": FLOOR}
            for name, dsn in stores.items():
                path = Path(directory) / f"{name}.yaml"
                path.write_text(f"deployment_id: start\nstorage: {{dsn: '{dsn}'}}\n")
                commands[f"runner publish, {name}"] = [
                    *(sys.executable, "-m", "runner", "publish", "-c", str(path), "a.b", "--data", "{}")
                ]
                _cpu(commands[f"runner publish, {name}"])  # makes the tables
            times = _measure(commands, rounds)
        finally:
            server.discard()
    floor = times.pop("import sqlalchemy.ext.asyncio, asyncpg")
    click.echo(f"{'import sqlalchemy.ext.asyncio, asyncpg':40} {floor:6.3f} s")
    for name, seconds in times.items():
        click.echo(f"{name:40} {seconds:6.3f} s  {seconds / floor:5.2f} times (at most {MOST})")


def _measure(commands: dict[str, list[str]], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            seconds[name].append(_cpu(command))
    return {name: statistics.median(each) for name, each in seconds.items()}


def _cpu(command: Sequence[str]) -> float:
    before = os.times()
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


if __name__ == "__main__":
    main()
