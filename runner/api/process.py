"""The process around the HTTP interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ..operations.reloading import Reloading
    from ..service.tally import Tally
    from ..service.vitals import Vitals
    from ..service.watchdog import Watchdog
    from ..storage.contract.archive import Retention
    from ..strategies.stack import StrategyState

__all__ = ["Process"]


class Process(NamedTuple):
    """
    The state of the process that the HTTP interface reports.

    Attributes:
        vitals: its health; `vitals.draining` ends streams.
        tally: its counts.
        strategies: returns the state of each strategy.
        breakers: returns for each subscription served here whether its breaker is open.
        wakes: how often each strategy has woken the worker.
        watchdog: watches its event loop.
        retention: returns how long events are kept.
        reloading: takes the file as it is now; `reloading.state` is what is in use, and how the last reload went.
    """

    vitals: Vitals
    tally: Tally
    strategies: Callable[[], Sequence[StrategyState]]
    breakers: Callable[[], Mapping[str, bool]]
    wakes: Mapping[str, int]
    watchdog: Watchdog
    retention: Callable[[], Retention]
    reloading: Reloading[Any]
