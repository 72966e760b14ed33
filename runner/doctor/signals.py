"""Signals: whether each strategy hears what it sends itself, on the deployment's own subject and channel."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..builder import open_strategies
from .verdict import Finding, fault, fine, warning

if TYPE_CHECKING:
    from ..config import Config
    from ..strategies.stack import StrategyState

__all__ = ["signals"]

_PAUSE = 0.01  # seconds between two looks whether all hear
_CURES = {
    "nats": (
        'let the user publish and subscribe there: permissions: {{publish: ["{subject}"], subscribe: ["{subject}"]}} in'
        " the configuration of the server; until then events wait for a poll"
    ),
    "postgres": (
        "see that the database is reached, and no pooler in transaction mode is in between: give the strategy a direct"
        " DSN, postgres: {{dsn: postgresql://…}}; until then events wait for a poll"
    ),
}
_UNCONNECTED = (
    "see that the server runs and can be reached, and that login and TLS are what it wants: runner check -c FILE"
    " --online; until then events wait for a poll"
)


async def signals(config: Config, budget: float, *, pooled: bool = False) -> Sequence[Finding]:
    """
    Have each strategy send a probe, which wakes no worker, and return which do not hear it.

    Args:
        budget: seconds for all of them.
        pooled: whether a pooler is known to be between here and the database.
    """
    began, heard = time.monotonic(), dict[str, float]()
    async with open_strategies(config) as stack:
        try:
            async with asyncio.timeout(budget * 0.7):
                while any(each.hears is False for each in stack.states()):
                    await asyncio.sleep(_PAUSE)
                    for each in stack.states():
                        if each.hears:
                            heard.setdefault(each.name, time.monotonic() - began)
        except TimeoutError:
            pass
        states = stack.states()
    deaf = [each for each in states if each.hears is False]
    found = [_deaf(config, each, pooled) for each in deaf]
    for each in states:
        if each.hears is None or each in deaf:
            continue
        if "mute" in each.detail:
            found.append(_deaf(config, each, pooled))
        else:
            took = heard.get(each.name, time.monotonic() - began)
            found.append(fine("signals", f"{each.name} hears its own probe, {1000 * took:.0f} ms after the start"))
    return found or [fine("signals", "polling only")]


def _deaf(config: Config, state: StrategyState, pooled: bool) -> Finding:
    subject = config.signal_subject
    cure = _CURES.get(state.name, "see the documentation of the strategy; until then events wait for a poll")
    detail = state.detail or "a probe did not come back"
    if state.name == "nats" and detail.startswith("not connected"):
        cure = _UNCONNECTED
    if state.name == "postgres" and (pooled or "pooler" in detail):
        why = "a pooler runs each transaction on another connection, and LISTEN is of one"
        return fault("signals", "pooled_listen", f"postgres: {detail}: {why}", cure.format(subject=subject), state.name)
    return warning("signals", "deaf", f"{state.name}: {detail}", cure.format(subject=subject), state.name)
