"""The contract of strategies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import asyncpg

    from ..config.dsn import Dsn
    from ..nats.connection import Broker
    from ..nats.options import NatsConnection

__all__ = ["Connect", "NotifyStrategy", "PushStrategy", "StrategyContext", "Wake"]

Wake = Callable[[], None]
Connect = Callable[[], Awaitable["asyncpg.Connection"]]


class NotifyStrategy(Protocol):
    """
    Tell workers that there may be work.

    A signal carries no data, and may be lost, late or repeated: the worker asks the database. Only
    latency depends on a strategy, never delivery.
    """

    async def start(self, wake: Wake) -> None:
        """
        Begin listening; call `wake` on every signal, from the event loop.

        Returns at once: a peer that is down is retried in the background. `wake` is also called once after every
        (re)connect, because signals may have been missed before it.
        """

    async def notify(self, event_id: str) -> None:
        """
        Signal every process of the deployment; fire and forget.

        Never blocks a publisher and never raises: a failure is counted. Signals that pile up while
        one is being sent become one.
        """

    async def stop(self) -> None:
        """Return once silent, in bounded time. Idempotent, and safe without `start()`."""


@runtime_checkable
class PushStrategy(NotifyStrategy, Protocol):
    """A strategy whose signals come from a peer, and which knows whether they arrive."""

    @property
    def hears(self) -> bool:
        """Whether a probe sent to ourselves came back lately; False from the moment the peer is lost."""


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class StrategyContext:
    """
    The surroundings of a strategy, beside its options.

    Attributes:
        subject: of the deployment, with its places filled in.
        dsn: of the store.
        broker: returns the connection to NATS for these options, the same one to all that ask. It is stopped by
            the part that made it, after the strategies and sinks that use it.
        connector: returns what makes connections to a PostgreSQL.
        deaf: whether there are push strategies and none hears.
    """

    subject: str
    dsn: Dsn
    broker: Callable[[NatsConnection], Broker]
    connector: Callable[[Dsn], Connect]
    deaf: Callable[[], bool] = _never
