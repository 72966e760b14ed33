"""Dry runs: check a publish and predict its deliveries, without recording it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..diagnosis.prospects import Prospect, prospects, prospects_json
from ..service.clock import utcnow
from ..storage.contract.events import Publication

if TYPE_CHECKING:
    from .surface import Surface

__all__ = ["dry_run"]


async def dry_run(surface: Surface, publications: Sequence[Publication], *, whole: bool) -> list[dict[str, Any]]:
    """
    Return, for each event, how many subscriptions would get it, which ones, and why the others would not.

    Args:
        whole: false for the number alone: names and filters of subscriptions are for callers that may read them.

    Raises:
        EventError: a publish would be refused.
    """
    surface.bus.check(publications)
    known = await surface.storage.records.registered()
    return [_verdict(each, prospects(each.event, known), whole=whole) for each in publications]


def _verdict(publication: Publication, found: Sequence[Prospect], *, whole: bool) -> dict[str, Any]:
    told = prospects_json(publication.event, found, _due_at(publication))
    told["matched"] = sum(each.failing is None for each in found)
    return told if whole else {**told, "subscriptions": None}


def _due_at(publication: Publication) -> datetime | None:
    return publication.deliver_at if publication.delay is None else utcnow() + publication.delay
