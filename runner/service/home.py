"""The event loop of a thing that lives in one."""

from __future__ import annotations

import asyncio

from ..errors import RunnerError

__all__ = ["Home"]


class Home:
    """The event loop of a thing whose locks, tasks and connections stay bound to the one it was first used in."""

    def __init__(self, what: str) -> None:
        """Args: what the thing is, for the error."""
        self._what = what
        self._loop: asyncio.AbstractEventLoop | None = None

    def enter(self) -> None:
        """Make the running loop its home. Raise `RunnerError` if it has another one."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise RunnerError(
                    f"this {self._what} belongs to another event loop, the first one it was used in, and nothing was "
                    "done; make a new one in each asyncio.run(), or do all of it in one"
                )
            self._loop = loop
