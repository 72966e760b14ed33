"""The state of the process as systemd is told it: ready, alive, stopping (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping

from .background import Background

__all__ = ["Supervisor"]

_LONGEST = 200  # characters of a status


class Supervisor:
    """
    Tell systemd the state of a unit with `Type=notify`; without `$NOTIFY_SOCKET` nothing is said.

    With `WatchdogSec` it is told three times in that span that the event loop goes round. Where the loop is blocked for
    longer, systemd ends the process and starts it again.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        span = environ.get("WATCHDOG_USEC", "") if ours else ""
        every = int(span) / 3_000_000 if self._address and span.isdecimal() and int(span) else None
        self._watchdog = None if every is None else Background("systemd watchdog", self._alive, every=every)
        self._ready = False
        self._reloading = False

    async def start(self) -> None:
        """Say that the process is ready; from now on, that it lives."""
        self._ready = True
        self._tell("READY=1")
        if self._watchdog is not None:
            self._watchdog.start()

    def reloading(self) -> None:
        """Say that the file is being read again, so that `systemctl reload` of a `Type=notify-reload` unit waits."""
        if self._ready:
            self._reloading = True
            self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def reloaded(self, status: str) -> None:
        """Say that a reload has ended, and how; `systemctl status` shows that."""
        if self._ready:
            ready = "READY=1\n" if self._reloading else ""
            self._reloading = False
            self._tell(f"{ready}STATUS={' '.join(status.split())[:_LONGEST]}")

    def stopping(self) -> None:
        """Say that the process stops; until it has, it goes on to say that it lives."""
        self._ready = False
        self._tell("STOPPING=1")

    async def stop(self) -> None:
        """Say nothing more."""
        if self._watchdog is not None:
            await self._watchdog.stop()

    async def _alive(self) -> None:
        self._tell("WATCHDOG=1")

    def _tell(self, state: str) -> None:
        """Send the datagram; one that is lost is no reason to stop."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.setblocking(False)
            told.sendto(state.encode(), address)
