"""Pausing and resuming, which subscriptions and schedules have in common."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .options import load

if TYPE_CHECKING:
    from ..config import Config
    from ..operations.holds import Pausing

__all__ = ["set_paused"]

Kind = Literal["schedules", "subscriptions"]


def set_paused(path: Path, kind: Kind, name: str, paused: bool, as_json: bool) -> None:
    """Pause or resume the schedule or subscription of this name; print its state."""
    asyncio.run(_set_paused(load(path), kind, name, paused, as_json))


async def _set_paused(config: Config, kind: Kind, name: str, paused: bool, as_json: bool) -> None:
    from ..builder import open_operations
    from ..operations.audit import who
    from .output import print_json, print_line, tell_unheard

    async with open_operations(config, unheard=tell_unheard) as operations:
        those: Pausing = operations.schedules if kind == "schedules" else operations.subscriptions
        changed = await those.set_paused(name, paused, who())
    if as_json:
        print_json({"name": name, "paused": paused, "changed": changed})
    else:
        print_line(f"{name} {'is' if changed else 'was already'} {'paused' if paused else 'active'}")
