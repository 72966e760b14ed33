"""The contract of sinks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from typing_extensions import override

from ..delivery import Delivery, Outcome
from ..errors import RunnerError, SinkError
from ..event import Event

if TYPE_CHECKING:  # nats-py is loaded where it is used
    from ..nats.connection import Broker
    from ..nats.options import NatsConnection
    from ..subscription import Subscription
    from .http.hosts import Hosts

__all__ = ["BatchSink", "DestinationSinks", "EventSink", "NoDestinations", "Sink", "SinkContext", "start_sink"]


class Sink(Protocol):
    """
    A destination of deliveries.

    One instance serves every subscription that names it, many deliveries at once. Nothing here
    retries, limits or times out: the worker does, and cancels `deliver()` at the subscription's timeout.
    """

    async def start(self) -> None:
        """Prepare; do not depend on a peer being up. Raise `SinkError` if it can never work."""

    async def deliver(self, delivery: Delivery) -> Outcome:
        """
        Deliver one event; return its outcome.

        May be called twice with the same delivery. Return `ACCEPTED` for success, `Deferred` when
        the success is acknowledged later. An exception counts as `Failed`; return `Rejected` when no further
        attempt can help.
        """

    async def stop(self) -> None:
        """Release resources, in bounded time. Idempotent, and safe without `start()`."""


class EventSink(Sink, Protocol):
    """
    A sink that can deliver an event without its delivery.

    If `deliver_event` is not None, it is called in place of `deliver()`. That saves two calls and an object
    for each delivery, of which there may be hundreds of thousands a second.
    """

    @property
    def deliver_event(self) -> Callable[[Event], Awaitable[object]] | None:
        """The function that delivers a bare event, and returns None for a success; None if the delivery is needed."""

    def outcome_of(self, answer: object) -> Outcome:
        """Return the outcome that an answer of `deliver_event` stands for: `ACCEPTED` for None."""

    def failure_of(self, error: BaseException) -> Outcome | None:
        """Return the outcome of a call of `deliver_event` that raised; None for a failure like any other."""


class BatchSink(Sink, Protocol):
    """A sink that takes several deliveries at once, from the subscriptions that have a `batch`."""

    async def deliver_batch(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        """
        Deliver events of one subscription; return their outcomes in the same order.

        An exception, a timeout, or any other number of outcomes, counts as `Failed` for all of them. What failed comes
        again in a batch of its own: so reject none of a batch for a failure that another event may have caused.
        """


class DestinationSinks(Protocol):
    """The sinks that subscriptions brought with them, as far as this process serves them."""

    @property
    def names(self) -> Sequence[str]:
        """The names of the sinks."""

    async def adopt(self, subscriptions: Sequence[Subscription]) -> Mapping[str, Sink]:
        """Return the started sinks of these subscriptions, by name; those of others are stopped in due time."""

    async def stop(self) -> None:
        """Stop every sink. Idempotent."""


class NoDestinations(DestinationSinks):
    """Serves none."""

    @property
    @override
    def names(self) -> Sequence[str]:
        return ()

    @override
    async def adopt(self, subscriptions: Sequence[Subscription]) -> Mapping[str, Sink]:
        return {}

    @override
    async def stop(self) -> None:
        pass


def _unpaused(name: str, reason: str) -> None:
    """Do nothing, outside of a runner."""


def _hosts() -> Hosts:
    from .http.hosts import Hosts  # not imported where no webhook is built

    return Hosts()


@dataclass(frozen=True, slots=True)
class SinkContext:
    """
    The surroundings of a sink, beside its options.

    Attributes:
        deployment_id: fills `{deployment_id}` in templates.
        broker: returns the connection to NATS that the options of a sink ask for; equal ones share it.
        concurrency: how many deliveries run at once in this process.
        pause: pauses the subscription of this name, for this reason, soon.
        hosts: what the webhooks of this process share; made by the first of them.
    """

    deployment_id: str
    broker: Callable[[NatsConnection], Broker]
    concurrency: int
    pause: Callable[[str, str], None] = _unpaused
    hosts: Hosts = field(default_factory=_hosts)


async def start_sink(name: str, sink: Sink) -> None:
    """Start a sink, and map errors of a third-party one."""
    try:
        await sink.start()
    except RunnerError:
        raise
    except Exception as error:
        raise SinkError(f"sinks.{name}: cannot be started, it raised {type(error).__name__}") from error
