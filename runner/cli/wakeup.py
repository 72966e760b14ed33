"""What verbs that change work do last: tell the running workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config import Config

__all__ = ["wake_workers"]


async def wake_workers(config: Config) -> None:
    """Signal every process of the deployment; a signal that is lost costs latency only."""
    from ..builder import open_bus

    async with open_bus(config) as bus:
        bus.announce()
