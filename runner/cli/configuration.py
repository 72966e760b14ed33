"""`runner config`: show the configuration and the schema of its keys."""

from __future__ import annotations

from pathlib import Path

import click

from .options import config_option, json_option, load
from .output import echo

__all__ = ["config"]


@click.group()
def config() -> None:
    """Show the configuration, or the schema of its keys.

    \b
    Examples:
      runner config show -c runner.yaml
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


@config.command("schema")
def schema() -> None:
    """Print the JSON Schema of the configuration, for editors.

    \b
    Examples:
      runner config schema > runner.schema.json
    """
    import json

    from ..config.json_schema import json_schema

    echo(json.dumps(json_schema(), indent=2))
