"""The seams of the store that the machine uses, split by who calls them, and the values that cross."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain, repeat
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from msgspec import Struct

from ..delivery import DeliveryState
from ..errors import EventError
from ..event import Event
from ..policies.breaker import Trip
from ..policies.rate import Rate
from ..subscription import Subscription

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

__all__ = [
    "AT_ONCE",
    "CLAIM",
    "LARGEST",
    "UNREADABLE",
    "Archive",
    "AttemptRecord",
    "Claim",
    "ClaimedDelivery",
    "Death",
    "DeliveryClaim",
    "DeliveryRecord",
    "Demand",
    "EventStore",
    "Health",
    "Instance",
    "Pruned",
    "Publication",
    "Receipt",
    "Registered",
    "Registry",
    "Retention",
    "Run",
    "Settled",
    "StrategyHealth",
    "Stray",
    "Turn",
    "Unanswered",
    "UnreadableDelivery",
    "UnreadableWork",
    "Work",
    "WorkQueue",
    "due_at_once",
]

_NO_AGE = timedelta(0)

CLAIM = 8 * 1024 * 1024
"""The most that the events of one claim may weigh: bytes of their data, and sixteen for each of their extensions'."""

AT_ONCE = 1024 * 1024
"""The weight of events whose data comes with the claim. That of others is asked for later: a claim that was answered
stands, so that what kills its process while it is fetched has cost it an attempt."""

LARGEST = 16 * 1024 * 1024
"""The most that an event may weigh to be read at all: one that weighs more was not written by the bus."""


class Publication(NamedTuple):
    """An event on its way in, and when it is due: at once, `delay` from now, or at `deliver_at`."""

    event: Event
    delay: timedelta | None = None
    deliver_at: datetime | None = None


def due_at_once(publications: Sequence[Publication]) -> bool:
    """Return whether none of them is to be delivered later."""
    for _, delay, deliver_at in publications:  # noqa: SIM110  # a generator costs more than all the rest of it
        if delay is not None or deliver_at is not None:
            return False
    return True


class Receipt(NamedTuple):
    """The answer to a publisher: `seq` orders events within the store; `duplicate` if it was there before."""

    source: str
    id: str
    seq: int
    duplicate: bool


class EventStore(Protocol):
    """
    What the bus needs: events go in, each with its one row of work, in one transaction.

    Attributes:
        appends_at_once: how many transactions of one process side by side are faster than one after the other.
    """

    appends_at_once: int

    async def append(self, publications: Sequence[Publication]) -> Sequence[Receipt]:
        """
        Record the events, all or none, and return a receipt for each in the same order.

        An event whose (source, id) is recorded already changes nothing and has `duplicate` set; its
        acknowledgement is as durable as the first one's.

        Raises:
            EventConflict: the same (source, id) is recorded with other content.
            StorageUnavailable: whether they were recorded is unknown; the same call again is safe.
        """

    async def append_leased(
        self, publications: Sequence[Publication], lease: timedelta
    ) -> tuple[Sequence[Receipt], Claim | None]:
        """
        Do the same for events that are all due at once, and lease the new ones to the caller in the same breath.

        Whoever publishes and works, too, need not claim what it has in its hands. No claim comes back where some
        had been recorded before: a store may then leave the new ones to whoever claims them.
        """

    async def append_in(self, session: AsyncSession, publications: Sequence[Publication]) -> Sequence[Receipt]:
        """Do the same inside the caller's own transaction: recorded if and when that commits."""


class Work(Struct):
    """One claimed event. `attempt` counts its claims, this one included; `size` is not zero while data is missing."""

    position: int
    attempt: int
    seq: int
    event: Event
    size: int = 0

    age: ClassVar[timedelta] = _NO_AGE  # since the first attempt: what is dispatched has none behind it


UNREADABLE = (EventError, ValueError, TypeError, OverflowError)
"""Errors of a row that is no event, raised by the drivers or here."""


@dataclass(frozen=True, slots=True)
class UnreadableWork:
    """One claimed event that cannot be read, and why; `type` if at least that can."""

    position: int
    attempt: int
    seq: int
    type: object
    reason: str


class Claim(Struct, frozen=True):
    """
    What one claim brought.

    Attributes:
        token: fences every write about `works`.
        works: events in the order in which they were published.
        unreadable: what else was leased.
        version: of the subscription set, read in the same round trip.
        scheduled_in: until the first scheduled event is due (zero or less: now); None without one.
        again_in: until the queue is worth another look though no signal came (a lease that ends); None if never.
        waiting: whether any delivery is pending or leased.
        weight: what the events weigh together.
        more: whether some that are due were left for a later claim.
    """

    token: int
    works: Sequence[Work]
    version: int
    scheduled_in: timedelta | None = None
    again_in: timedelta | None = None
    waiting: bool = False
    unreadable: Sequence[UnreadableWork] = ()
    weight: int = 0
    more: bool = False


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """
    One delivery as it is to be written.

    `token` is the lease it is held under from now on when `state` is leased, and otherwise the lease
    that must still hold for the write to take effect. `due_in` counts from the database's now.
    `dead_letter` is the subscription to which the same event becomes pending by the same write, with
    fresh attempts whatever became of it before. A `deferred` one is leased to nobody, and may be claimed
    if no acknowledgement has come by then.
    """

    seq: int
    subscription_id: int
    state: DeliveryState
    attempts: int
    token: int
    due_in: timedelta = timedelta(0)
    error: str | None = None
    dead_letter: int | None = None
    deferred: bool = False


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt that failed, or that ended a delivery after failures."""

    seq: int
    subscription_id: int
    number: int
    duration: timedelta
    error: str | None = None
    status: int | None = None
    excerpt: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """The place of a delivery in the line of its key: `position` is that of its event in the queue."""

    seq: int
    subscription_id: int
    key: str
    position: int


class Run(Struct, frozen=True):
    """Works that stand next to each other, `length` of them, and the subscriptions whose first attempt succeeded."""

    subscription_ids: tuple[int, ...]
    length: int


class Settled(Struct, frozen=True):
    """
    The end of one claim: its rows of work go, every delivery they led to is recorded.

    Attributes:
        token: the claim's.
        works: the claimed events this is about.
        runs: where they were delivered; their lengths add up to the number of `works`.
        records: every other delivery, row by row.
        attempts: their failed attempts.
        turns: of those `records` that wait in a line.
    """

    token: int
    works: Sequence[Work | UnreadableWork]
    runs: Sequence[Run]
    records: Sequence[DeliveryRecord] = ()
    attempts: Sequence[AttemptRecord] = ()
    turns: Sequence[Turn] = ()

    def each(self) -> Iterator[tuple[Work | UnreadableWork, tuple[int, ...]]]:
        """Yield every work with the ids of the subscriptions it was delivered to."""
        return zip(
            self.works, chain.from_iterable(repeat(run.subscription_ids, run.length) for run in self.runs), strict=True
        )


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A deferral that came to nothing: how long was waited, and the reason if somebody said that it has failed."""

    waited: timedelta
    refusal: str | None


@dataclass(slots=True)
class ClaimedDelivery:
    """
    One claimed delivery. `attempt` counts its claims, this one included.

    `suspect`: the lease it had ended without an answer, so whoever held it may have died of it. `age`: how
    long before the claim the first recorded attempt began. `unanswered`: it was deferred, and is claimed only
    for what follows. `size`: above zero while the data of the event is missing.
    """

    seq: int
    subscription_id: int
    attempt: int
    suspect: bool
    event: Event
    age: timedelta = _NO_AGE
    unanswered: Unanswered | None = None
    size: int = 0


@dataclass(frozen=True, slots=True)
class UnreadableDelivery:
    """One claimed delivery whose event cannot be read, and why."""

    seq: int
    subscription_id: int
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Demand:
    """
    What a caller could deliver of one subscription that has an order or a rate.

    `after` is where the last claim left off in its lines, so that each key has its turn. `since` is from where on,
    round to `after`, claims have taken all that may go.
    """

    subscription_id: int
    quota: int
    ordered: bool
    rate: Rate | None
    after: str = ""
    since: str = ""


@dataclass(frozen=True, slots=True)
class DeliveryClaim:
    """
    What one claim of waiting deliveries brought.

    `next_due` is until the next one this caller could take, of what it has seen; zero says that it is worth
    another claim. `paced`: only its rate keeps the subscription from more until then. `after` and `since` are for
    the next `Demand`; `more`: there are lines that claims since then have not seen. `held_up`: a line waits for an
    earlier event to be dispatched, of which nobody tells. `unreadable` is what else was leased.
    """

    token: int
    deliveries: Sequence[ClaimedDelivery]
    next_due: timedelta | None = None
    unreadable: Sequence[UnreadableDelivery] = ()
    paced: bool = False
    after: str = ""
    since: str = ""
    more: bool = False
    held_up: bool = False


@dataclass(frozen=True, slots=True)
class Death:
    """How a delivery died: why, after how many attempts, when."""

    reason: str
    attempts: int
    at: datetime


class WorkQueue(Protocol):
    """
    What the worker needs. Every method is one transaction; every time is the database's.

    All raise `StorageUnavailable` when the store cannot be reached; all may be repeated then.
    """

    async def claim(self, limit: int, lease: timedelta, weight: int = CLAIM) -> Claim:
        """
        Lease at most `limit` events that are due, oldest first. Never waits for another claimer.

        Args:
            weight: no more than weigh so much, but always the first.
        """

    async def contents(self, seqs: Sequence[int]) -> Mapping[int, bytes | None]:
        """Return the data of events whose claim left it out."""

    async def settle(self, settled: Settled) -> int:
        """
        Remove the rows of work still held under the token and record their deliveries, atomically.

        A delivery that is on record already, acknowledged before this, stays as it is.

        Returns:
            how many were still held; what was not is not recorded.
        """

    async def promote(self, limit: int) -> int:
        """Move at most `limit` scheduled events that have fallen due into the queue; return how many."""

    async def claim_deliveries(self, quotas: Mapping[int, int], lease: timedelta, weight: int = CLAIM) -> DeliveryClaim:
        """
        Lease deliveries that are due.

        Args:
            quotas: for each subscription this caller can serve, how many it can take now; zero says
                that it serves it but has no room. No other subscription is touched or counted.
            weight: as for `claim()`.
        """

    async def claim_regulated(self, demand: Demand, lease: timedelta, weight: int = CLAIM) -> DeliveryClaim:
        """
        Lease deliveries of one subscription that are due, and whose turn it is; no more than `weight`, but always one.

        In order: only the first of each line, and only once no event before it waits to be dispatched, by
        anybody. One claim visits so many lines at most; who goes on until there are no `more` has seen each, and
        when the next first one is due. By rate: at most as many as there are permits, each of which is charged.
        """

    async def line_up(self, subscription_id: int, order_by: str) -> int:
        """
        Give a turn to each unfinished delivery that has none, before all others; end the turns of finished ones.

        That mends what a change of `order_by`, or a process that did not know of it yet, left behind.

        Returns:
            how many turns were given or ended.
        """

    async def settle_deliveries(
        self,
        records: Sequence[DeliveryRecord],
        attempts: Sequence[AttemptRecord] = (),
        ordered: Set[int] = frozenset(),
    ) -> Sequence[tuple[int, int]]:
        """
        Write each record whose delivery is still leased under its token, and the attempts of those.

        Args:
            ordered: ids of the subscriptions whose finished deliveries are to leave their line.

        Returns:
            (seq, subscription id) of what was written.
        """

    async def renew(self, leases: Sequence[tuple[int, int, int]], lease: timedelta) -> Sequence[tuple[int, int]]:
        """
        Extend the leases of running deliveries, given as (seq, subscription id, token).

        Returns:
            (seq, subscription id) of those still held.
        """

    async def deaths(self, keys: Sequence[tuple[int, int]]) -> Mapping[tuple[int, int], Death]:
        """Return how these deliveries, given as (seq, subscription id), died; those that are dead."""


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


@dataclass(frozen=True, slots=True)
class Instance:
    """One running process of the deployment."""

    id: str
    host: str
    pid: int
    version: str


class StrategyHealth(NamedTuple):
    """How one strategy of an instance is. `hears` is None where that is no question (polling)."""

    name: str
    hears: bool | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """
    What an instance says of itself with a beat.

    Attributes:
        stalled: for how long a loop that claims has neither gone round nor been asleep as it should.
        lag: the longest its event loop was held up since the last beat.
        running: deliveries that run now.
        sinks: their names.
        strategies: how each is; None until they are started.
    """

    stalled: timedelta = timedelta(0)
    lag: timedelta = timedelta(0)
    running: int = 0
    sinks: Sequence[str] = ()
    strategies: Sequence[StrategyHealth] | None = None


@dataclass(frozen=True, slots=True)
class Stray:
    """A subscription whose deliveries nobody can make: it was deleted, or no instance has its sink."""

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
        """Tell SQL publishers which NOTIFY channel somebody listens on; None for none."""

    async def put_subscriptions(self, subscriptions: Sequence[Subscription], origin: str) -> None:
        """
        Make the active subscriptions of `origin` be exactly these.

        A name keeps its id, its history and its pause over any change; its breaker closes. One that is no longer given
        matches no more events and is no longer served; its deliveries stay. What has a `dead_letter` comes
        and goes with the subscription for that. Nothing is written, and the version stays, when nothing changed.
        """

    async def subscriptions(self) -> tuple[int, Sequence[Registered]]:
        """Return the version of the set, and the active subscriptions in the order of their ids."""

    async def set_paused(self, name: str, paused: bool, by: str | None = None) -> bool:
        """
        Pause or resume; return whether that changed anything. Raise `NotFound` for an unknown name.

        To resume also closes the breaker.
        """

    async def remove(self, name: str) -> None:
        """
        Forget a subscription, and the one for its dead letters. Raise `NotFound` for an unknown name.

        Its deliveries stay on record without a name; one that is still open is a stray.
        """

    async def set_breaker(self, subscription_id: int, trip: Trip | None, *, known: int) -> bool:
        """
        Tell all instances that a breaker opened, or (None) closed; return whether that changed anything.

        One that opens must still have had `known` trips in a row: of several instances that see the same
        failures, or of a failure and a success, the first counts. A success always does.
        """

    async def strays(self) -> Sequence[Stray]:
        """
        Return the subscriptions with deliveries that nobody can make as things are.

        One that is paused, inactive or of a function is none: its deliveries wait. Nor is any for its sink, while
        an instance lives that does not say which it has.
        """

    async def beat(self, instance: Instance, health: Health) -> timedelta:
        """
        Record that the instance is alive, and how it is.

        Returns:
            by how much the store's clock has been set back since the last beat of any instance; zero if it has not.
            What it had said before is moved back with it, as far as that is known: leases, retries, deadlines.
        """

    async def leave(self, instance_id: str) -> None:
        """Record that the instance has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """
    How long events are kept once nothing is left to do for them; None is for ever.

    Attributes:
        delivered: after the last of their deliveries succeeded, or after they were recorded if nobody wanted them.
        dead: after a delivery died or was cancelled.
    """

    delivered: timedelta | None = None
    dead: timedelta | None = None

    @property
    def shortest(self) -> timedelta | None:
        """The age before which no event goes; None if none ever does."""
        return min((limit for limit in (self.delivered, self.dead) if limit is not None), default=None)


@dataclass(frozen=True, slots=True)
class Pruned:
    """
    What became of one page of events.

    Attributes:
        events: how many went.
        after: the last one that was old enough to be looked at.
        ended: whether no older one is left behind it.
    """

    events: int
    after: int
    ended: bool


class Archive(Protocol):
    """The seam of the pruner."""

    async def prune(self, retention: Retention, after: int, limit: int, *, dry_run: bool = False) -> Pruned:
        """
        Remove, of the next `limit` events after the seq `after`, those that are over.

        An event is over when each of its deliveries has ended and is older than the retention of its state; it
        goes with all of them and their attempts. One that waits to be dispatched, or has a delivery that is
        pending or leased, stays, and so does one on which somebody else works at this moment.
        """
