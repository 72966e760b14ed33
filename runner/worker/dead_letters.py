"""Dead letters: their companion subscriptions, and the attributes that explain a death."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..delivery import DeliveryState
from ..errors import EventError
from ..event import Event, ExtensionValue, allowed_text
from ..storage.contract.claims import ClaimedDelivery
from ..storage.contract.queue import DeliveryQueue
from ..storage.contract.registry import Registered
from ..storage.contract.settlements import Death, DeliveryRecord

__all__ = ["DeadLetters", "dead_letter"]

_MAX_REASON = 500  # characters; it may travel as a header, of which many servers take 8 KiB in all


class DeadLetters:
    """Address dead deliveries to the companions of their subscriptions; without any, return at once."""

    def __init__(self, queue: DeliveryQueue) -> None:
        self._queue = queue
        self._to: dict[int, int] = {}  # id of a subscription -> id of the one for its dead letters
        self._of: dict[int, tuple[int, str]] = {}  # the other way round, with its name

    def learn(self, registered: Sequence[Registered]) -> None:
        """Learn the subscriptions."""
        ids = {each.subscription.name: each.id for each in registered}
        self._of = {
            each.id: (ids[name], name)
            for each in registered
            if (name := each.subscription.dead_letter_of) is not None and name in ids
        }
        self._to = {source: id for id, (source, _) in self._of.items()}

    def addressed(self, records: Sequence[DeliveryRecord]) -> Sequence[DeliveryRecord]:
        """Return the records, each dead one addressed to the companion of its subscription."""
        if not self._to:
            return records
        dead = DeliveryState.DEAD
        return [
            replace(each, dead_letter=self._to.get(each.subscription_id)) if each.state is dead else each
            for each in records
        ]

    async def add_reasons(self, claimed: Sequence[ClaimedDelivery]) -> None:
        """Add the reasons of death to the events of dead letters, by one query if there are any."""
        letters = [(each, *self._of[each.subscription_id]) for each in claimed if each.subscription_id in self._of]
        if not letters:
            return
        deaths = await self._queue.deaths([(each.seq, source) for each, source, _ in letters])
        for each, source, name in letters:
            each.event = dead_letter(each.event, name, deaths.get((each.seq, source)))


def dead_letter(event: Event, subscription: str, death: Death | None) -> Event:
    """
    Return `event` as the dead letter of its delivery to `subscription`.

    An event at the limits of attributes gets only those there is room for: it is delivered before it is explained.

    Args:
        death: how it died; None if it is not dead any more, because it was retried since.
    """
    reasons: dict[str, ExtensionValue] = {"deadlettersub": subscription}
    if death is not None:
        reasons["deadletterreason"] = allowed_text(death.reason)[:_MAX_REASON]
        reasons["deadletterattempts"] = death.attempts
        reasons["deadletterat"] = death.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    letter = _with(event, reasons)
    if _valid(letter) or not _valid(event):  # an event that was recorded under other limits gets all attributes
        return letter
    for name, value in reasons.items():
        more = _with(event, {name: value})
        event = more if _valid(more) else event
    return event


def _with(event: Event, more: Mapping[str, ExtensionValue]) -> Event:
    return event.replace(extensions={**event.extensions, **more})


def _valid(event: Event) -> bool:
    try:
        event.validate()
    except EventError:
        return False
    return True
