"""`docs/commands.md`: every verb and option of the command line, from what click knows of them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

from runner.cli.program import PROGRAM

__all__ = ["commands", "page"]

_COMMON = ("-c", "--set", "--json", "--help")
"""Options that most verbs have, and that are told once."""

_HEAD = """\
<!-- Written by `make reference` from the command line itself. Change the verbs in runner/cli/. -->

# Every verb

`runner VERB --help` prints the same. Durations and rates are written as in the
[configuration](configuration.md#durations-and-rates), times by RFC 3339 or as an age, such as `1h`. Exit codes are in
[operations.md](operations.md#exit-codes).

Options that most verbs have:

"""


def page() -> str:
    """Return the page."""
    parts = [_HEAD]
    shared = {each.opts[0]: each for _, command in commands(PROGRAM) for each in _options(command)}
    parts += [_option(shared[name]) for name in _COMMON if name in shared]
    parts.append("- `-h`, `--help`: Show the help of the verb and exit.\n")
    for path, command in commands(PROGRAM):
        parts += ["\n", *_section(path, command)]
    return re.sub(r"\n{3,}", "\n\n", "".join(parts)).rstrip() + "\n"


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command of a group and of those below it, each with the words that name it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def _section(path: tuple[str, ...], command: click.Command) -> Iterator[str]:
    yield f"{'#' * (len(path) + 1)} runner {' '.join(path)}\n\n"
    if not isinstance(command, click.Group):
        yield f"    {_usage(path, command)}\n\n"
    yield from _help(command.help or "")
    own = [each for each in _options(command) if each.opts[0] not in _COMMON]
    if own:
        yield from (*map(_option, own), "\n")
    also = [name for name in _COMMON if any(name in each.opts for each in _options(command))]
    if also:
        yield f"Also {', '.join(f'`{name}`' for name in also)}.\n"


def _usage(path: tuple[str, ...], command: click.Command) -> str:
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    pieces = [each.make_metavar(click.Context(command)) for each in arguments]
    return " ".join(["runner", *path, *(["[OPTIONS]"] if _options(command) else []), *pieces])


def _options(command: click.Command) -> list[click.Option]:
    return [each for each in command.params if isinstance(each, click.Option) and not each.hidden]


def _option(option: click.Option) -> str:
    """Return an item of a list: the spellings of an option, what it takes, what it does, and its default."""
    names = ", ".join(f"`{name}`" for name in option.opts)
    takes = "" if option.is_flag else f" `{option.make_metavar(click.Context(click.Command('verb')))}`"
    told = [option.help or ""]
    if option.required:
        told.append("Required.")
    elif option.show_default and option.default is not None:
        told.append(f"Default: `{option.default}`.")
    return f"- {names}{takes}: {' '.join(told)}\n"


def _help(text: str) -> Iterator[str]:
    """Yield the paragraphs of a help text: sentences as they are, and what is laid out by hand as code."""
    for paragraph in re.split(r"\n{2,}", inspect.cleandoc(text)):
        if not paragraph.startswith("\b"):
            yield f"{_escaped(' '.join(paragraph.split()))}\n\n"
            continue
        title, *lines = paragraph.removeprefix("\b\n").splitlines()
        if title.endswith(":") and lines:
            yield f"{title}\n\n"
        else:
            lines = [title, *lines]
        shown = inspect.cleandoc("\n" + "\n".join(lines))
        yield "".join(f"    {line}\n" for line in shown.splitlines()) + "\n"


def _escaped(text: str) -> str:
    """Return a sentence that Markdown shows as it is."""
    return re.sub(r"([*<])", r"\\\1", text)
