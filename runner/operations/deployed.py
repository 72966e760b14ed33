"""The difference between a file and what the deployment runs: its subscriptions and schedules on record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..config import Config
from ..config.difference import Change
from ..storage import Storage

__all__ = ["deployed_difference"]

Specs = Mapping[str, Mapping[str, Any]]


async def deployed_difference(config: Config, storage: Storage) -> list[Change]:
    """
    Return what a reload or a start with `config` would change of the subscriptions and schedules on record.

    Those made by functions or by the HTTP interface are not in a file, and are left out.
    """
    wanted = config.to_subscriptions()
    companions = [each for subscription in wanted if (each := subscription.for_dead_letters()) is not None]
    registered = [each.registered for each in await storage.records.registered() if each.active]
    known = [each for each in registered if each.origin == "file"]
    views = [each for each in await storage.schedules.all() if each.active and each.origin == "file"]
    return [
        *_changes(
            "subscriptions",
            {each.subscription.name: each.subscription.to_json() for each in known},
            {each.name: each.to_json() for each in (*wanted, *companions)},
        ),
        *_changes(
            "schedules",
            {each.schedule.name: each.schedule.to_json() for each in views},
            {each.name: each.to_json() for each in config.to_schedules()},
        ),
    ]


def _changes(what: str, running: Specs, wanted: Specs) -> Iterator[Change]:
    for name in sorted(running.keys() | wanted.keys()):
        was, now, path = running.get(name), wanted.get(name), f"{what}[{name}]"
        if was is None:
            yield Change(path, "added", None, now, True)
        elif now is None:
            yield Change(path, "removed", was, None, True)
        else:
            for key in sorted(was.keys() | now.keys()):
                if was.get(key) != now.get(key):
                    yield Change(f"{path}.{key}", "changed", was.get(key), now.get(key), True)
