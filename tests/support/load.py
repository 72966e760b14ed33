"""How busy the machine is, as the kernel accounts for it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

__all__ = ["slowness"]


def slowness(pids: Iterable[int]) -> float:
    """
    Return how many times as long as on an idle machine these processes have taken for what they computed.

    That is what they ran and what they waited for a processor, over what they ran. 1.0 where the kernel does not
    say, and for processes that are gone.
    """
    ran = waited = 0
    for pid in pids:
        for schedstat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                running, waiting, _ = schedstat.read_text().split()
            except OSError:  # the thread has ended
                continue
            ran, waited = ran + int(running), waited + int(waiting)
    return 1.0 + waited / ran if ran else 1.0
