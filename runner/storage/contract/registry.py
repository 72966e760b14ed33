"""The seam of the runtime: the owner of the tables, the subscriptions, the instances; and the values that cross."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from ...policies.breaker import Trip
from ...subscription import Subscription
from .throughput import Counted

__all__ = ["Beat", "Configuration", "Health", "Instance", "Orphan", "Put", "Registered", "Registry", "StrategyHealth"]


@dataclass(frozen=True, slots=True)
class Registered:
    """A subscription as the store knows it."""

    id: int
    subscription: Subscription
    paused: bool
    origin: str
    breaker: Trip | None = None  # None: closed
    paused_at: datetime | None = None
    paused_by: str | None = None
    expires_in: timedelta | None = None  # None: never

    @property
    def expired(self) -> bool:
        """Whether it matched no event any more when it was read."""
        return self.expires_in is not None and self.expires_in <= timedelta(0)


class Put(NamedTuple):
    """
    The result of putting one subscription.

    Attributes:
        registered: it, as it is now.
        created: whether there was none of that name.
        changed: whether anything was written.
    """

    registered: Registered
    created: bool
    changed: bool


Check = Callable[[Registered | None], None]
"""Called with the current object, in the transaction of the change; raises if the change does not apply to it."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One running process of the deployment."""

    id: str
    host: str
    pid: int
    version: str


class StrategyHealth(NamedTuple):
    """The state of one strategy of an instance. `hears` is None if it does not apply (polling)."""

    name: str
    hears: bool | None
    detail: str


class Configuration(NamedTuple):
    """
    The file that an instance has in use, and its last reload.

    Attributes:
        digest: of all files that were read for it.
        loaded_at: when, by the clock of the instance.
        outcome: of the last reload: `reloaded`, `refused` or `failed`; None before the first one. Unless it is
            `reloaded` the file in use is the one from before.
        tried_at: when that was.
        faults: why it is not reloaded, the first few of them.
    """

    digest: str
    loaded_at: datetime
    outcome: str | None = None
    tried_at: datetime | None = None
    faults: Sequence[str] = ()

    @property
    def kept(self) -> bool:
        """Whether the last reload left the file that was in use before."""
        return self.outcome not in (None, "reloaded")


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """
    The state of an instance, reported with its heartbeat.

    Attributes:
        stalled: for how long a loop that claims has neither gone round nor been asleep as it should.
        lag: the longest its event loop was held up since the last beat.
        running: deliveries that run now.
        sinks: their names.
        strategies: how each is; None until they are started.
        configuration: its file; None where it has none.
    """

    stalled: timedelta = timedelta(0)
    lag: timedelta = timedelta(0)
    running: int = 0
    sinks: Sequence[str] = ()
    strategies: Sequence[StrategyHealth] | None = None
    configuration: Configuration | None = None


class Beat(NamedTuple):
    """
    The answer of the store to a heartbeat.

    Attributes:
        back: by how much its clock has been set back since the last beat of any instance; zero if it has not.
        now: the time by that clock.
    """

    back: timedelta
    now: datetime


@dataclass(frozen=True, slots=True)
class Orphan:
    """A subscription whose deliveries no instance can make: it was deleted, or its sink is nowhere."""

    subscription_id: int
    deleted: bool
    reason: str


class Registry(Protocol):
    """The seam of the runtime: the owner of the tables, the subscriptions, the instances."""

    async def adopt(self, deployment_id: str) -> None:
        """
        Make `deployment_id` the owner of the tables, unless they have one.

        Raises:
            ForeignDeployment: they belong to another deployment.
            SchemaMismatch: the tables are not there. Of what version they are is the business of `migrate`.
        """

    async def owner(self, deployment_id: str) -> str | None:
        """Return the owner of the tables, None while they have none; raise as `adopt()` does. Only read."""

    async def set_channel(self, channel: str | None) -> None:
        """Tell SQL publishers which NOTIFY channel has a listener; None for none."""

    async def put_subscriptions(self, subscriptions: Sequence[Subscription], origin: str) -> None:
        """
        Make the active subscriptions of `origin` be exactly these.

        A name keeps its id, its history and its pause over any change; its breaker closes. One that is no longer given
        matches no more events and is no longer served; its deliveries stay. What has a `dead_letter` comes
        and goes with the subscription for that. Nothing is written, and the version stays, when nothing changed.
        """

    async def put(self, subscription: Subscription, origin: str, check: Check) -> Put:
        """
        Make or replace one subscription, and the one for its dead letters, as `put_subscriptions()` does.

        Args:
            check: called before anything is written; no other change comes between the two. An inactive one counts
                as none.

        Raises:
            StateConflict: an active one of that name has another origin.
        """

    async def retire(self, name: str, check: Check) -> None:
        """
        Have a subscription, and the one for its dead letters, match no more events and be no longer served.

        Args:
            check: as for `put()`.

        Raises:
            NotFound: there is none of that name.
        """

    async def reseal(self, name: str, known: Subscription, resealed: Subscription) -> bool:
        """Write a subscription that means the same, where it is as it was `known`; return whether it was."""

    async def subscriptions(self) -> tuple[int, Sequence[Registered]]:
        """
        Return the version of the set, and the active subscriptions in the order of their ids.

        Raises:
            StorageError: one cannot be read or compiled here. Who served the others would dispatch events past it.
        """

    async def set_paused(self, name: str, paused: bool, by: str | None = None) -> bool:
        """
        Pause or resume; return whether that changed anything. Raise `NotFound` for an unknown name.

        To resume also closes the breaker.
        """

    async def remove(self, name: str, *, retired: bool = False) -> None:
        """
        Forget a subscription, and the one for its dead letters. Raise `NotFound` for an unknown name.

        With `retired` only while it was not put again since `retire()`.

        Its deliveries stay on record without a name; one that is still open is an orphan.
        """

    async def set_breaker(self, subscription_id: int, trip: Trip | None, *, known: int) -> bool:
        """
        Tell all instances that a breaker opened, or (None) closed; return whether that changed anything.

        One that opens must still have had `known` trips in a row: of several instances that see the same
        failures, or of a failure and a success, the first counts. A success always does.
        """

    async def orphans(self) -> Sequence[Orphan]:
        """
        Return the subscriptions with deliveries that no process can make now.

        One that is paused, inactive or of a function is none: its deliveries wait. Nor is any for its sink, while
        an instance lives that does not say which it has.
        """

    async def beat(self, instance: Instance, health: Health, counted: Sequence[Counted] = ()) -> Beat:
        """
        Record that the instance is alive, how it is, and what it has counted: all of it or nothing.

        What has been said before is moved back with the store's clock when that is set back, as far as it is known:
        leases, retries, deadlines.

        Args:
            counted: replaces what the same holder has said of the same minute and subscription, unless that is more.
        """

    async def leave(self, instance_id: str) -> None:
        """Record that the instance has ended."""
