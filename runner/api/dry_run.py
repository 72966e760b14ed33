"""Dry runs: what would become of a publish, which is checked and not recorded."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..diagnosis.prospects import prospects, prospects_json
from ..service.clock import utcnow
from ..storage.contract.events import Publication

if TYPE_CHECKING:
    from .surface import Surface

__all__ = ["dry_run"]


async def dry_run(surface: Surface, publications: Sequence[Publication]) -> list[dict[str, Any]]:
    """
    Return for each event which subscriptions would get it, and why others would not.

    Raises:
        EventError: a publish would be refused.
    """
    surface.bus.check(publications)
    known = [(each, active) for each, active, _ in await surface.storage.records.registered()]
    return [prospects_json(each.event, prospects(each.event, known), _due_at(each)) for each in publications]


def _due_at(publication: Publication) -> datetime | None:
    return publication.deliver_at if publication.delay is None else utcnow() + publication.delay
