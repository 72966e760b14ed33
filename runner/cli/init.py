"""`runner init`: write a first configuration, and the schema that editors check it by."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from .output import tell
from .starters import starter

__all__ = ["init"]

_SCHEMA = "runner.schema.json"


class Parts(click.ParamType[tuple[str, ...]]):
    """Names of parts, joined by `+`."""

    name = "parts"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Return the parts that `value` names."""
        parts = tuple(part.strip() for part in str(value).split("+")) if isinstance(value, str) else ()
        try:
            starter(parts)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return parts


@click.command()
@click.argument("path", default="runner.yaml", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--from",
    "parts",
    type=Parts(),
    default="sqlite",
    metavar="PART+PART",
    help="Parts of the configuration; see below.",
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
def init(path: Path, parts: tuple[str, ...], force: bool) -> None:
    """Write a commented configuration to PATH, runner.yaml unless given.

    Beside it goes runner.schema.json, by which editors with yaml-language-server complete and check its keys.

    \b
    Parts:
      sqlite     a file on this machine, no server; the default
      postgres   PostgreSQL, for several instances
      nats       NATS wakes the workers
      jetstream  a sink that publishes to a stream of NATS
      webhook    a sink that posts to a URL, signed
      python     a sink that calls a function
      schedules  events at regular times
      api        HTTP: publish, look and steer, the dashboard, metrics

    \b
    Examples:
      runner init
      runner init --from postgres+nats+api
      runner init configs/orders.yaml --from sqlite+webhook
      runner init --force
    """
    from ..config.json_schema import json_schema

    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(starter(parts, _SCHEMA))
        path.with_name(_SCHEMA).write_text(json.dumps(json_schema(), indent=2) + "\n", encoding="utf-8")
    except FileExistsError as error:
        raise click.ClickException(f"{path} is there already; --force replaces it") from error
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror}; give another PATH") from error
    option = f"-c {shlex.quote(str(path))}"
    tell(f"wrote {path}")
    tell(f"  check it:     runner check {option}")
    tell(f"  start it:     runner start {option}")
    tell(f"  publish one:  runner publish {option} hello.world --data '{{\"n\": 1}}'")
