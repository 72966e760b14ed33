"""`runner events trace`: the causes and effects of an event, as a tree."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import config_option, json_option, load

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from ..config import Config
    from ..storage.contract.records import DeliveryView, EventView, TraceView

__all__ = ["trace_event"]


@click.command("trace")
@config_option
@click.argument("event")
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=500,
    show_default=True,
    help="The most events, and the most deliveries.",
)
@json_option
def trace_event(path: Path, event: str, limit: int, as_json: bool) -> None:
    """Print what led to EVENT and what it led to, with all deliveries; EVENT is a seq or an id.

    Events belong together that carry the same correlationid. An event that a handler publishes is given that of the
    event it handles, and its id as causationid. Times are counted from the first event; that of a delivery is its last
    change.

    \b
    Examples:
      runner events trace 12
      runner events trace order-17 --json
    """
    asyncio.run(_trace(load(path), event, limit, as_json))


async def _trace(config: Config, reference: str, limit: int, as_json: bool) -> None:
    from ..builder import open_storage
    from ..operations.trace import trace_json
    from .output import print_json, tell

    async with open_storage(config, writes=False) as storage:
        trace = await storage.records.trace(reference, limit)
    if as_json:
        print_json(trace_json(trace))
        return
    _print(trace)
    if not trace.complete:
        tell(f"there is more than {limit} events or deliveries; --limit shows up to 10000")


def _print(trace: TraceView) -> None:
    from .output import moment, print_tree

    begin = min(view.created_at for view in trace.events)
    print_tree(f"correlation {trace.correlation}, from {moment(begin)}", _lines(trace, begin))


def _lines(trace: TraceView, begin: datetime) -> Iterator[tuple[int, str]]:
    from ..operations.trace import branches, walk

    for branch, _, depth in walk(branches(trace)):
        yield depth, _event(branch.view, begin)
        for each in branch.deliveries:
            yield depth + 1, _delivery(each, begin)


def _event(view: EventView, begin: datetime) -> str:
    from .output import moment

    due = f", due {moment(view.due_at)}" if view.due_at else ""
    return f"{view.event.type}  seq {view.seq}  {_after(view.created_at, begin)}  {view.event.id}  ({view.state}{due})"


def _delivery(view: DeliveryView, begin: datetime) -> str:
    attempts = f", attempt {view.attempts}" if view.attempts > 1 else ""
    error = f": {view.last_error}" if view.last_error else ""
    return f"-> {view.subscription}  {view.state.value}{attempts}  {_after(view.updated_at, begin)}{error}"


def _after(time: datetime, begin: datetime) -> str:
    return f"{(time - begin).total_seconds():+.3f}s"
