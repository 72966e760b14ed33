"""Batches of publications: duplicates within a batch are recorded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..errors import EventConflict
from ..event import Event, lasting
from .contract.events import Publication, Receipt

__all__ = ["Batch", "distinct"]


class Batch(NamedTuple):
    """Publications without duplicates, and the receipts for all of them."""

    publications: Sequence[Publication]
    unique: Sequence[Publication]

    def receipts(self, unique: Sequence[Receipt]) -> Sequence[Receipt]:
        """Return a receipt for each publication, from those of the unique ones in their order."""
        if len(unique) == len(self.publications):
            return unique
        found = {(receipt.source, receipt.id): receipt for receipt in unique}
        receipts, seen = [], set()
        for each in self.publications:
            key = (each.event.source, each.event.id)
            receipts.append(found[key]._replace(duplicate=True) if key in seen else found[key])
            seen.add(key)
        return receipts

    def conflict(self, event: Event, seq: int | None = None) -> EventConflict:
        """
        Return the error of an event whose source and id are recorded with other content.

        Args:
            seq: of what is recorded, if it is known.
        """
        recorded = "" if seq is None else f" (seq {seq})"
        error = EventConflict(
            f"event {event.id!r} of source {event.source!r} is already recorded{recorded} with other content; "
            "give a changed event a new id"
        )
        keys = [(each.event.source, each.event.id) for each in self.publications]
        return error.among(keys.index((event.source, event.id)), len(keys))


def distinct(publications: Sequence[Publication]) -> Batch:
    """Return the batch of `publications`. Raise `EventConflict` when two share source and id but not their content."""
    if len(publications) == 1:
        return Batch(publications, publications)
    first: dict[tuple[str, str], Publication] = {}
    for index, each in enumerate(publications):
        known = first.setdefault((each.event.source, each.event.id), each)
        if known is not each and _content(known.event) != _content(each.event):
            raise EventConflict(
                f"event {each.event.id!r} of source {each.event.source!r} comes twice, with different content"
            ).among(index, len(publications))
    return Batch(publications, list(first.values()))


def _content(event: Event) -> Event:
    """Return the event without its circumstances."""
    return event.replace(extensions=lasting(event.extensions))
