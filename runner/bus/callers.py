"""Callers of `publish()`: their events, and the futures of their receipts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from ..storage.contract.events import Publication, Receipt

__all__ = ["Answer", "Caller", "fail", "halves", "keys"]

Answer = asyncio.Future[Sequence[Receipt]]

Caller = tuple[Sequence[Publication], Answer]
"""The events of one call, recorded all or none, and the future of their receipts."""


def keys(publications: Sequence[Publication]) -> set[tuple[str, str]]:
    """Return the identities, (source, id), of events."""
    return {(each.event.source, each.event.id) for each in publications}


def halves(callers: list[Caller]) -> list[list[Caller]]:
    """Split callers in two, without empty parts."""
    middle = -(-len(callers) // 2)
    return [half for half in (callers[:middle], callers[middle:]) if half]


def fail(callers: Iterable[Caller], error: Exception) -> None:
    """Answer callers that have no answer yet with an error."""
    for _, answer in callers:
        if not answer.done():
            answer.set_exception(error)
