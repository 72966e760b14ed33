"""Reloading: make a running process use the current file, or keep the one it has."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Generic, Literal, Protocol, TypeVar

import structlog

from ..config.difference import Difference
from ..errors import ConfigError, RunnerError, StorageError
from ..log.redaction import redacted
from ..service.background import Background
from ..service.backoff import doubling
from ..service.clock import utcnow, wait_for
from ..storage.contract.registry import Configuration

__all__ = ["Proposal", "Reload", "ReloadState", "Reloading"]

log = structlog.get_logger(__name__)

Cause = Literal["signal", "watch", "http", "program"]
Outcome = Literal["reloaded", "refused", "failed"]

OUTCOMES: Sequence[Outcome] = ("reloaded", "refused", "failed")

NONE = Difference()
_APART = timedelta(seconds=1)  # between two reloads that signals or writes request: any number at once become two
_SHOWN = 20  # changes in a line of the log
_REPORTED = 5  # faults that are written with every heartbeat, of so many characters
_LONGEST = 300
_END = 10.0  # seconds that a stop waits for a reload that is being applied


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload:
    """
    One reload and its result.

    Attributes:
        outcome: `reloaded`; `refused`, because something needs a restart; `failed`, for any other fault. Unless it is
            `reloaded` the process goes on with the file it had, all of it.
        reason: of one that is not: `faulty`, `needs-restart`, `store`, `not-running`, `no-file`.
        cause: who asked for it.
        seconds: how long it took.
        digest: of the file that was read; empty where none could be.
        difference: from the file that was in use to the one that was read.
        files: that were read.
        faults: one line each, beginning with the place in the file where it has one.
        dry_run: whether nothing was to be changed.
    """

    outcome: Outcome
    cause: Cause
    at: datetime
    seconds: float = 0.0
    digest: str = ""
    difference: Difference = NONE
    reason: str = ""
    files: Sequence[Path] = ()
    faults: Sequence[str] = ()
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadState:
    """
    The file in use, and the last attempt to replace it.

    Attributes:
        file: its path, as it was given; empty for a configuration that was made in a program.
        files: that were read: the file itself, those that it names, and the directories it looks for others in. After a
            reload that failed those that were read for it, too.
        digest: of all of them.
        loaded_at: when.
        last: the last reload; None before the first one.
    """

    file: str
    files: Sequence[Path]
    digest: str
    loaded_at: datetime
    last: Reload | None = None

    @property
    def kept(self) -> bool:
        """Whether the last reload left the file that was in use before."""
        return self.last is not None and self.last.outcome != "reloaded"

    def configuration(self) -> Configuration | None:
        """Return the state as instances report it; None for a configuration that was made in a program."""
        if not self.file:
            return None
        if self.last is None:
            return Configuration(self.digest, self.loaded_at)
        faults = [redacted(each)[:_LONGEST] for each in self.last.faults[:_REPORTED]]
        return Configuration(self.digest, self.loaded_at, self.last.outcome, self.last.at, faults)


class Proposal(Protocol):
    """The file as it is now, read, checked and built, but not in use."""

    @property
    def digest(self) -> str:
        """Its digest."""

    @property
    def files(self) -> Sequence[Path]:
        """The files that were read."""

    @property
    def difference(self) -> Difference:
        """The difference from the file in use."""

    @property
    def warnings(self) -> Sequence[str]:
        """Warnings about it."""

    def refusals(self) -> Sequence[str]:
        """Return a line for each change that needs a restart."""


P = TypeVar("P", bound=Proposal)


class Reloading(Generic[P]):
    """
    Apply the current file, one reload at a time.

    Requests that come while one is waiting become one. A store that is away is waited for, unless the request came from
    a caller that is answered.

    Attributes:
        state: what is in use, and how the last reload went.
    """

    def __init__(
        self,
        read: Callable[[], P],
        apply: Callable[[P], Awaitable[None]],
        *,
        file: str,
        files: Sequence[Path],
        digest: str,
        ready: Callable[[], bool],
        on_reload: Callable[[], object],
    ) -> None:
        """
        Begin with a file that was loaded just now.

        Args:
            read: reads the file; called in a thread. Raises `ConfigError` for its faults.
            apply: uses it from now on; raises a `RunnerError` if it cannot, and then has changed nothing.
            ready: whether the process runs, so that it can reload.
            on_reload: called after each reload with something to report.
        """
        self._read = read
        self._apply = apply
        self._ready = ready
        self._on_reload = [on_reload]
        self.state = ReloadState(file=file, files=files, digest=digest, loaded_at=utcnow())
        self._counts: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
        self._cause: Cause | None = None  # of the request that waits for the loop
        self._asked = asyncio.Event()
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[Reload] | None = None  # that has not begun to read
        self._ending = asyncio.Event()
        self._waits = doubling(0.5, 10.0)  # for the store
        self.loop = Background("reload", self._step, nudge=self._nudge)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many reloads had each outcome."""
        return self._counts

    def when_done(self, call: Callable[[], object]) -> None:
        """Call `call` after each reload, too; `state` says what became of it."""
        self._on_reload.append(call)

    def start(self) -> None:
        """Begin to act on `ask()`; what was asked for before counts."""
        self._ending.clear()
        if self.state.file:
            self.loop.start()

    async def stop(self) -> None:
        """Reload no more; let one that is being applied end."""
        await self.loop.stop()
        async with asyncio.timeout(_END):
            async with self._turn:
                pass

    def ask(self, cause: Cause) -> None:
        """Reload soon. Cheap, and safe to call at any time from the event loop."""
        if cause != "watch" or self._cause is None:  # only a watch has no caller that waits for a result
            self._cause = cause
        self._asked.set()

    async def reload(self, cause: Cause, *, dry_run: bool = False) -> Reload:
        """
        Read the file, and use it if that can be done.

        Args:
            dry_run: only say what would be done.
        """
        if dry_run:
            async with self._turn:
                return (await self._attempt(cause, dry_run=True))[0]
        if self._next is None:
            self._next = asyncio.create_task(self._run(cause), name="reload")
        return await asyncio.shield(self._next)

    async def _run(self, cause: Cause) -> Reload:
        async with self._turn:
            self._next = None  # a caller that comes now may have written the file since
            done, used = await self._attempt(cause)
            if cause == "watch" and self._is_known(done):
                return done  # it was written and is the same: nothing to tell
            self._counts[done.outcome] += 1
            if used is not None:
                self.state = replace(self.state, files=used.files, digest=used.digest, loaded_at=done.at)
            also = tuple(each for each in done.files if each not in self.state.files)
            self.state = replace(self.state, files=(*self.state.files, *also), last=done)
            _log(done)
            for call in self._on_reload:
                call()
            return done

    async def _attempt(self, cause: Cause, *, dry_run: bool = False) -> tuple[Reload, P | None]:
        """Return the result of one reload, and the proposal that is in use from now on, if any."""
        begun, at, proposal = monotonic(), utcnow(), None
        files: Sequence[Path] = ()
        try:
            self._check_running()
            proposal = await asyncio.to_thread(self._read)
            reason, faults = _refused(proposal)
            files = proposal.files
            if not reason and not dry_run:
                await self._apply(proposal)
                for warning in proposal.warnings:
                    log.warning("odd configuration", detail=warning)
        except Exception as error:
            reason, faults = _fault(error)
            files = error.files if isinstance(error, ConfigError) and proposal is None else files
        done = Reload(
            outcome="refused" if reason == "needs-restart" else "failed" if reason else "reloaded",
            cause=cause,
            at=at,
            seconds=round(monotonic() - begun, 3),
            digest="" if proposal is None else proposal.digest,
            difference=NONE if proposal is None else proposal.difference,
            reason=reason,
            files=files,
            faults=faults,
            dry_run=dry_run,
        )
        return done, proposal if not reason and not dry_run else None

    def _is_known(self, done: Reload) -> bool:
        """Return whether a reload has the same result as the last one."""
        state = self.state
        if done.outcome == "reloaded":
            return done.digest == state.digest and not done.difference and not state.kept
        return state.last is not None and (done.faults, done.files) == (state.last.faults, state.last.files)

    def _check_running(self) -> None:
        if not self.state.file:
            raise _NotNow("no-file", "the configuration was made in a program; there is no file to read")
        if not self._ready() or self._stopping:
            raise _NotNow("not-running", "the process starts or drains; nothing was read")

    async def _step(self) -> None:
        """Wait for a request and reload; then let further ones gather."""
        await self.loop.rest(self._asked.wait())
        self._asked.clear()
        if self._stopping or self._cause is None:
            return
        cause, self._cause = self._cause, None
        done = await self.reload(cause)
        if done.reason == "store" and not self._stopping:
            await self.loop.rest(wait_for(self._ending, timedelta(seconds=next(self._waits))))
            if self._cause in (None, "watch"):
                self._cause = cause  # no other caller would repeat the request
            self._asked.set()
            return
        self._waits = doubling(0.5, 10.0)
        await self.loop.rest(wait_for(self._ending, _APART))

    @property
    def _stopping(self) -> bool:
        return self._ending.is_set()

    def _nudge(self) -> None:
        self._ending.set()
        self._asked.set()


class _NotNow(RunnerError):
    """The process cannot reload as it is."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def _refused(proposal: Proposal) -> tuple[str, Sequence[str]]:
    refusals = proposal.refusals()
    return ("needs-restart", refusals) if refusals else ("", ())


def _fault(error: Exception) -> tuple[str, Sequence[str]]:
    """Return the reason and the faults of a reload that raised; the text of an error not ours may hold a secret."""
    match error:
        case _NotNow():
            return error.reason, [str(error)]
        case ConfigError():
            return "faulty", error.faults
        case StorageError():
            return "store", str(error).splitlines()
        case RunnerError():
            return "faulty", str(error).splitlines()
    return "faulty", [f"it raised {type(error).__name__}"]


def _log(done: Reload) -> None:
    """Log what became of a reload: a line for each fault, or one with what changed."""
    if done.outcome == "reloaded":
        changes = [f"{each.path} {each.kind}" for each in done.difference.changes]
        more = [f"and {len(changes) - _SHOWN} more"] if len(changes) > _SHOWN else []
        log.info(
            "configuration reloaded",
            cause=done.cause,
            digest=done.digest,
            changes=[*changes[:_SHOWN], *more],
            seconds=done.seconds,
        )
        return
    for fault in done.faults:
        log.error("configuration not reloaded", cause=done.cause, fault=fault)
