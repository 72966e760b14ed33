"""Lifecycle events: notices for operators, published as events, so that an alert is a subscription."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import NotFound
from ..event import Event
from ..policies.schedule import tick_text
from ..service.background import Background
from ..service.clock import utcnow
from ..subscription import Matcher, Subscription

if TYPE_CHECKING:
    from ..service.tally import Tally
    from ..storage.contract.records import EventView
    from .scheduler import Missed

__all__ = ["SOURCES", "Lifecycle"]

SOURCES = "/runner/"
"""The beginning of the sources of lifecycle events; the id of the deployment follows."""

_MOST = 1000  # waiting events; beyond it the oldest are dropped


class Lifecycle:
    """
    Publish lifecycle events of source `/runner/DEPLOYMENT`, without delaying the part that noticed something.

    None is about itself: a delivery of a lifecycle event that dies makes none, nor does a breaker or a pause of a
    subscription that would get it. While the store is away they wait.
    """

    def __init__(
        self,
        deployment_id: str,
        publish: Callable[[Event], Awaitable[object]],
        look_up: Callable[[str], Awaitable[EventView]],
        tally: Tally,
        *,
        enabled: bool,
    ) -> None:
        """
        Prepare to publish.

        Args:
            look_up: returns an event by its seq.
            tally: counts the ticks that were missed.
            enabled: whether anything is published at all.
        """
        self._source = f"{SOURCES}{deployment_id}"
        self._publish = publish
        self._look_up = look_up
        self._tally = tally
        self._enabled = enabled
        self._waiting: deque[tuple[Event, int | None]] = deque(maxlen=_MOST)
        self._added = asyncio.Event()
        self.loop = Background("lifecycle", self._step, nudge=self._added.set)

    def start(self) -> None:
        """Begin to publish."""
        if self._enabled:
            self.loop.start()

    def enable(self, enabled: bool) -> None:
        """Accept notices from now on, or ignore them; those accepted before are still published."""
        self._enabled = enabled
        self.start()

    async def stop(self) -> None:
        """Publish no more. Idempotent."""
        await self.loop.stop()

    def notice(
        self,
        type: str,
        subject: str,
        data: Mapping[str, Any],
        *,
        about: Subscription | None = None,
        seq: int | None = None,
    ) -> None:
        """
        Queue an event of type `runner.TYPE` to be published.

        Args:
            subject: name of the subscription or the schedule.
            about: the subscription that it is about.
            seq: of the event that it is about, which may be a lifecycle event itself.
        """
        if not self._enabled:
            return
        event = Event.new(f"runner.{type}", dict(data), source=self._source, subject=subject or None, time=utcnow())
        if about is None or not Matcher([(about, about.name)]).match(event):
            self._waiting.append((event, seq))
            self._added.set()

    def on_missed(self, missed: Missed) -> None:
        """Count ticks that were missed, and publish that."""
        self._tally.add_missed(missed.schedule, missed.count)
        data = {"count": missed.count, "first": tick_text(missed.first), "last": tick_text(missed.last)}
        self.notice("schedule.missed", missed.schedule, data)

    async def _step(self) -> None:
        if not self._waiting:
            self._added.clear()
            await self.loop.rest(self._added.wait())
            return
        event, seq = self._waiting[0]
        if seq is None or not await self._is_ours(seq):
            await self._publish(event)
        if self._waiting and self._waiting[0][0] is event:  # else it has been dropped meanwhile
            self._waiting.popleft()

    async def _is_ours(self, seq: int) -> bool:
        """Return whether an event is a lifecycle event; also if it is gone."""
        try:
            return (await self._look_up(str(seq))).event.source == self._source
        except NotFound:
            return True
