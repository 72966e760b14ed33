"""`runner completion`: what a shell needs to complete verbs, options and names of the file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from .output import echo

__all__ = ["completion", "names_of"]

_SHELLS = ("bash", "zsh", "fish")


def names_of(section: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Return what completes the names in a section of the file, such as `subscriptions`; none where it has faults."""

    def complete(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        path = ctx.params.get("path") or os.environ.get("RUNNER_CONFIG") or "runner.yaml"
        with contextlib.suppress(Exception):  # completion must not print errors
            return [CompletionItem(name) for name in _names(Path(path), section) if name.startswith(incomplete)]
        return []

    return complete


def _names(path: Path, section: str) -> list[str]:
    """Return the names as the files spell them, without validation, so that it takes no longer than reading them."""
    from ..config.inclusion import read_source

    found: Any = read_source(str(path), os.environ).value.get(section, [])
    return [str(each if isinstance(found, dict) else each["name"]) for each in found]


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Print the script that lets SHELL complete verbs, options, and names of subscriptions and schedules.

    \b
    Examples:
      runner completion bash > ~/.local/share/bash-completion/completions/runner
      runner completion zsh > ~/.zfunc/_runner
      runner completion fish > ~/.config/fish/completions/runner.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # those of `_SHELLS` come with click
    with contextlib.suppress(AttributeError):
        kind._check_version = staticmethod(lambda: None)  # type: ignore[attr-defined]  # bash may not be here
    program = click.get_current_context().find_root().command
    echo(kind(program, {}, "runner", "_RUNNER_COMPLETE").source(), nl=False)
