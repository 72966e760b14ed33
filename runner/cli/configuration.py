"""`runner config`: show the configuration and the schema of its keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import config_option, json_option, load
from .output import echo

if TYPE_CHECKING:
    from ..config.difference import Change

__all__ = ["config"]


@click.group()
def config() -> None:
    """Show the configuration, compare it with what runs, or show the schema of its keys.

    \b
    Examples:
      runner config show -c runner.yaml
      runner config diff -c runner.yaml
      runner config schema
    """


@config.command("show")
@config_option
@json_option
def show(path: Path, as_json: bool) -> None:
    """Print the configuration as it is understood: defaults filled in, secrets as ***.

    \b
    Examples:
      runner config show -c runner.yaml
      runner config show -c runner.yaml --json
    """
    from ..config import dump
    from .output import print_json

    understood = dump(load(path))
    if as_json:
        print_json(understood)
        return
    import yaml

    echo(yaml.safe_dump(understood, sort_keys=False, allow_unicode=True), nl=False)


@config.command("diff")
@config_option
@json_option
def diff(path: Path, as_json: bool) -> None:
    """Print what a reload with this file would change of the subscriptions and schedules of the running deployment.

    Exit code 0 if that is nothing, 1 if it is something. What a process was given besides (sinks, tokens, limits) is
    its own: POST /reload?dry_run=true asks one that runs.

    \b
    Examples:
      runner config diff -c new.yaml
      runner config diff --json
    """
    import asyncio

    from .output import print_json, print_line

    changes = asyncio.run(_compare(path))
    if as_json:
        print_json({"equal": not changes, "changes": [each.to_json() for each in changes]})
    else:
        for each in changes:
            print_line(f"{each.path}: {_worded(each)}")
        if not changes:
            print_line("subscriptions and schedules are those of the file")
    if changes:
        raise click.exceptions.Exit(1)


async def _compare(path: Path) -> list[Change]:
    from ..builder import open_storage
    from ..operations.deployed import deployed_difference

    understood = load(path)
    async with open_storage(understood, writes=False) as storage:
        return await deployed_difference(understood, storage)


def _worded(change: Change) -> str:
    if change.kind != "changed":
        return change.kind
    return f"changed from {json.dumps(change.was)} to {json.dumps(change.now)}"


@config.command("schema")
def schema() -> None:
    """Print the JSON Schema of the configuration, for editors.

    \b
    Examples:
      runner config schema > runner.schema.json
    """
    from ..config.json_schema import json_schema

    echo(json.dumps(json_schema(), indent=2))
