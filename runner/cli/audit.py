"""`runner audit`: print who changed what by hand."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import SINCE, config_option, json_option, limit_option, load

if TYPE_CHECKING:
    from ..config import Config
    from ..storage.contract.audit import ActionQuery, ActionView

__all__ = ["audit"]


@click.command()
@config_option
@click.option("--who", metavar="PATTERN", help="Only of these actors, such as 'cli:*'; * is any characters.")
@click.option("--action", metavar="PATTERN", help="Only these actions, such as 'deliveries.*'.")
@click.option("--since", type=SINCE, metavar="TIME", help="Begun at or after TIME, such as 1h (ago).")
@click.option("--until", type=SINCE, metavar="TIME", help="Begun before TIME.")
@limit_option
@json_option
def audit(
    path: Path,
    who: str | None,
    action: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    as_json: bool,
) -> None:
    """Print who changed what by hand, the latest first: by command line, HTTP, dashboard or program.

    \b
    begun        it runs, or its process died in the middle: what it had done by then stays done
    done         with how many deliveries, events, subscriptions or schedules it touched
    refused      nothing was changed, for the reason that is given
    failed       the store failed; what it had done by then stays done
    interrupted  it was stopped by hand; what it had done by then stays done

    Dry runs leave no entry. `retention.audit` of the file says how long entries are kept.

    \b
    Examples:
      runner audit --since 1d
      runner audit --who 'cli:*' --action 'deliveries.*'
      runner audit --json --limit 1000
    """
    from ..storage.contract.audit import ActionQuery

    query = ActionQuery(actor=who, name=action, since=since, until=until, limit=limit)
    asyncio.run(_list(load(path), query, as_json))


async def _list(config: Config, query: ActionQuery, as_json: bool) -> None:
    from ..builder import open_storage
    from ..operations.shapes import action_json
    from .output import print_json, print_table

    async with open_storage(config, writes=False) as storage:
        views = await storage.audit.actions(query)
    if as_json:
        for view in views:
            print_json(action_json(view))
        return
    columns = ("at", "who", "action", "target", "touched", "outcome", "parameters", "detail")
    print_table(columns, [_row(view) for view in views], spare=("parameters", "detail"))


def _row(view: ActionView) -> tuple[object, ...]:
    given = " ".join(f"{name}={value}" for name, value in (view.action.parameters or {}).items())
    return (
        view.at,
        view.action.actor,
        view.action.name,
        view.action.target,
        view.touched,
        view.outcome.value,
        given,
        view.detail,
    )
