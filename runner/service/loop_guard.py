"""Keep an object to one event loop."""

from __future__ import annotations

import asyncio

from ..errors import RunnerError

__all__ = ["LoopGuard"]


class LoopGuard:
    """Keep an object to the event loop of its first use, which its locks, tasks and connections belong to."""

    def __init__(self, what: str) -> None:
        """Args: what the thing is, for the error."""
        self._what = what
        self._loop: asyncio.AbstractEventLoop | None = None

    def enter(self) -> None:
        """Bind to the running loop. Raise `RunnerError` if it is bound to another one."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise RunnerError(
                    f"this {self._what} belongs to another event loop, the first one it was used in, and nothing was "
                    "done; make a new one in each asyncio.run(), or do all of it in one"
                )
            self._loop = loop
