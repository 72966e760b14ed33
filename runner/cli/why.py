"""`runner why`: explain why one event is not delivered to one subscription."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .completion import names_of
from .options import config_option, json_option, load

if TYPE_CHECKING:
    from ..config import Config
    from ..diagnosis.why import Answer
    from ..storage.contract.records import EventView

__all__ = ["why"]


@click.command()
@config_option
@click.argument("event")
@click.argument("subscription", shell_complete=names_of("subscriptions"))
@json_option
def why(path: Path, event: str, subscription: str, as_json: bool) -> None:
    """Say why EVENT, a seq or an id, is not delivered to SUBSCRIPTION yet.

    Whether it matches, or which clause fails on which value; what holds the delivery now, until when, and what lets it
    go earlier.

    \b
    Examples:
      runner why 12 crm
      runner why 12 crm --json
    """
    asyncio.run(_why(load(path), event, subscription, as_json))


async def _why(config: Config, reference: str, subscription: str, as_json: bool) -> None:
    from ..builder import open_storage
    from ..diagnosis.shapes import answer_json
    from ..diagnosis.why import why as explained
    from .output import print_json

    async with open_storage(config, writes=False) as storage:
        event = await storage.records.event(reference)
        hold = await storage.overview.hold(event.seq, subscription)
        instances = await storage.records.instances()
    answer = explained(event, hold, instances)
    if as_json:
        print_json(answer_json(event, subscription, answer))
    else:
        _print(event, subscription, answer)


def _print(event: EventView, subscription: str, answer: Answer) -> None:
    from .output import moment, print_line

    tried = f" after {answer.attempts} attempts" if answer.attempts > 1 else ""
    print_line(f"event {event.seq} ({event.event.type}) for {subscription}: {answer.state}{tried}")
    matched = "it matches" if answer.failing is None else f"it does not match: {answer.failing}"
    print_line(f"{matched}; the subscription was written at {moment(answer.written_at)}, version {answer.version}")
    for each in answer.reasons:
        if each.kind == "not_matched":
            continue
        print_line(f"{each.kind}: {each.cause}{f', until {moment(each.until)}' if each.until else ''}")
        if each.cure:
            print_line(f"  cure: {each.cure}")
