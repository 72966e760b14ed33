"""`runner init`: write a first configuration."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from .output import tell

__all__ = ["STARTER", "init"]

STARTER = """\
# A bus on this machine: SQLite file, no server. `runner config schema` describes every key.

# Names this bus. Two deployments never see each other's events, nor may they share tables.
deployment_id: ${DEPLOYMENT_ID:-dev}

# Where the events are. For PostgreSQL: postgresql://user:${DB_PASSWORD}@host/database
storage:
  dsn: ${DATABASE_URL:-sqlite:///runner.db}

# What wakes the workers. Without this the choice follows the storage; polling is the safety net.
# strategies:
#   - polling: 30s
#   - nats: {servers: ["nats://127.0.0.1:4222"]}

# Where deliveries go.
sinks:
  terminal: stdout
  # crm: {webhook: {url: "https://crm.example/events"}}
  # audit: {python: "my_package.audit:handle"}

# Who wants which events, in which sink.
subscriptions:
  - name: everything
    types: ["*"]
    sink: terminal
"""


@click.command()
@click.argument("path", default="runner.yaml", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def init(path: Path, force: bool) -> None:
    """Write a commented configuration to PATH, runner.yaml unless given.

    \b
    Examples:
      runner init
      runner init configs/orders.yaml
      runner init --force
    """
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(STARTER)
    except FileExistsError as error:
        raise click.ClickException(f"{path} is there already; --force replaces it") from error
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror}") from error
    option = f"-c {shlex.quote(str(path))}"
    tell(f"wrote {path}")
    tell(f"  check it:     runner check {option}")
    tell(f"  start it:     runner start {option}")
    tell(f"  publish one:  runner publish {option} hello.world --data '{{\"n\": 1}}'")
