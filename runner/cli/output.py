"""What verbs print on standard output: tables for people, JSON for programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import click
import orjson

from ..log import printable

__all__ = ["moment", "print_fields", "print_json", "print_table", "progress"]


def print_json(value: Mapping[str, Any]) -> None:
    """Print one object on one line; times are RFC 3339 in UTC."""
    click.echo(orjson.dumps(value, option=orjson.OPT_UTC_Z))


def moment(time: datetime | None) -> str:
    """Return a time for a person to read, to the millisecond."""
    return "" if time is None else time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print aligned columns: with rich on a terminal, as plain text otherwise; nothing but a header without rows."""
    cells = [[printable("" if cell is None else str(cell)) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_rich(columns, cells)
        return
    widths = [max(len(text) for text in column) for column in zip(columns, *cells, strict=True)]
    for row in ([name.upper() for name in columns], *cells):
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def print_fields(fields: Mapping[str, object]) -> None:
    """Print one thing, a field on each line; fields that are None are left out."""
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        if value is not None:
            click.echo(f"{name.ljust(width)}  {printable(str(value))}".rstrip())


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show how far a long piece of work is, if standard error is a terminal; call what is given with each advance."""
    if not sys.stderr.isatty():
        yield lambda _number: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, no_color=_no_color()), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda number: bar.advance(task, number)


def _no_color() -> bool:
    return bool(os.environ.get("NO_COLOR"))


def _print_rich(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: a cell is never read as markup
    Console(no_color=_no_color()).print(table)
