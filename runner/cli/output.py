"""Output of the verbs: tables for people, JSON for programs, messages beside them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import click

from ..log.redaction import redacted
from ..log.terminal import printable

__all__ = [
    "OutputClosed",
    "accounted",
    "brief",
    "drop_output",
    "duration",
    "echo",
    "echo_raw",
    "moment",
    "print_fields",
    "print_json",
    "print_line",
    "print_table",
    "print_tree",
    "progress",
    "tell",
    "tell_unheard",
]


class OutputClosed(OSError):
    """The reader of standard output has gone, as with `| head`."""


def echo(text: str | bytes, *, nl: bool = True) -> None:
    """
    Print on standard output, as it is.

    Raises:
        OutputClosed: which is no failure of a verb that only prints.
    """
    try:
        click.echo(text, nl=nl)
    except BrokenPipeError as error:
        raise OutputClosed from error


def echo_raw(line: bytes) -> None:
    """
    Write one line on standard output, byte for byte and buffered: it is flushed when the verb has ended.

    Raises:
        OutputClosed: as `echo()` does.
    """
    try:
        sys.stdout.buffer.write(line + b"\n")
    except BrokenPipeError as error:
        raise OutputClosed from error


def tell(text: str, *, wait: bool = True) -> None:
    """Print a message for people on standard error; see `log.tell()`, which is imported on demand."""
    from ..log import setup as log

    log.tell(text, wait=wait)


def tell_unheard(reason: str) -> None:
    """Print that events were recorded, but no signal could be sent."""
    from ..errors import readable

    tell(f"warning: recorded, but not signalled ({readable(reason)}); delivered at the next poll")


def drop_output() -> None:
    """Discard unwritten output, so that the interpreter does not report it again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_line(text: str) -> None:
    """Print one line of text on standard output, without secrets and with control characters escaped."""
    echo(printable(redacted(text)))


def print_json(value: Mapping[str, Any] | bytes) -> None:
    """Print one object, or the JSON of one, on one line; times are RFC 3339 in UTC."""
    import orjson

    line = value if isinstance(value, bytes) else orjson.dumps(value, option=orjson.OPT_UTC_Z)
    echo(_escaped(line.decode()) if sys.stdout.isatty() else line)


def moment(time: datetime | None) -> str:
    """Return a time for a person to read, to the millisecond."""
    return "" if time is None else time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def duration(length: timedelta) -> str:
    """Return a length of time for a person to read, to the millisecond, such as `25s`."""
    from ..config.duration import format_duration

    return format_duration(timedelta(milliseconds=round(length / timedelta(milliseconds=1))))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, spare: Sequence[str] = ()) -> None:
    """
    Print aligned columns; without rows, only a header.

    Off a terminal as plain text, always the same columns and times in full; on a terminal with rich, times shortened,
    nothing cut.

    Args:
        spare: the columns that a narrow terminal does not show, the least important one first.
    """
    if sys.stdout.isatty():
        _print_rich(columns, [[_text(cell, brief) for cell in row] for row in rows], spare)
        return
    cells = [[_text(cell, moment) for cell in row] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(columns, *cells, strict=True)]
    for row in ([name.upper() for name in columns], *cells):
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        echo(line.rstrip())


def print_tree(title: str, lines: Iterable[tuple[int, str]]) -> None:
    """
    Print lines as a tree under a title, none of them cut.

    Args:
        lines: each with its depth, which is at most one more than that of the line before; zero is below the title.
    """
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    def shown(text: str) -> Text:
        return Text(printable(redacted(text)), no_wrap=True, overflow="ignore")  # never read as markup

    path = [root := Tree(shown(title))]
    for depth, line in lines:
        del path[depth + 1 :]
        path.append(path[-1].add(shown(line)))
    console = Console(color_system=_color_system(), soft_wrap=True)
    with console.capture() as printed:
        console.print(root)
    echo("\n".join(line.rstrip() for line in printed.get().splitlines()))


def print_fields(fields: Mapping[str, object]) -> None:
    """Print one thing, a field on each line; fields that are None are left out."""
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        if value is not None:
            echo(f"{name.ljust(width)}  {_text(value, moment)}".rstrip())


def brief(time: datetime) -> str:
    """Return a time in UTC in few characters: the time of day if it is today's, else the date."""
    return time.strftime("%H:%M:%SZ" if time.date() == datetime.now(UTC).date() else "%Y-%m-%d")


def _escaped(text: str) -> str:
    """Return the same JSON with control characters escaped; JSON itself allows U+009B, for example."""
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def _text(cell: object, time: Callable[[datetime], str]) -> str:
    match cell:
        case None:
            return ""
        case bool():
            return "yes" if cell else "no"
        case datetime():
            return time(cell)
        case timedelta():
            return duration(cell)
        case _:
            return printable(str(cell))


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show the progress of long work if standard error is a terminal; call the result with each advance."""
    if not sys.stderr.isatty():
        yield lambda _number: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, color_system=_color_system()), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda number: bar.advance(task, number)


@contextmanager
def accounted(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show progress as `progress()` does; print the count after an interrupt."""
    from asyncio import CancelledError

    done = 0

    def advance(number: int) -> None:
        nonlocal done
        done += number
        show(number)

    try:
        with progress(label, total) as show:
            yield advance
    except CancelledError:
        tell(f"interrupted while {label}: at least {done} done, which stays")
        raise


def _color_system() -> Literal["auto"] | None:
    """Return the color system for rich: none under NO_COLOR, where rich itself would keep bold and dim."""
    return None if os.environ.get("NO_COLOR") else "auto"


def _print_rich(columns: Sequence[str], rows: Sequence[Sequence[str]], spare: Sequence[str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(color_system=_color_system())
    widths = {name: max(map(cell_len, column)) for name, *column in zip(columns, columns, *rows, strict=True)}
    for name in spare:
        if sum(widths.values()) + 3 * len(widths) > console.width:
            del widths[name]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in widths:
        table.add_column(name, overflow="fold")
    for row in rows:
        # Text: a cell is never read as markup
        table.add_row(*(Text(cell) for name, cell in zip(columns, row, strict=True) if name in widths))
    console.print(table)
