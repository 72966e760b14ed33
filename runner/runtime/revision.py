"""A revision: another state of the configuration file, read and built while the one before is in use."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..config import Config
from ..config.difference import Difference
from ..errors import ConfigError
from ..operations.reloading import Reloading
from ..service.ending import end
from ..service.vitals import Phase, Vitals
from ..sinks.base import Sink, start_sink
from ..subscription import Subscription, check_dead_letters
from .plan import Plan

if TYPE_CHECKING:
    from ..operations.destinations import Destinations
    from ..service.background import Service

__all__ = ["ConfigurationFile", "Revision", "reloading_of"]

STOP_TIMEOUT = 5.0  # seconds a sink gets, which may be a third party's


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """
    The file as it is now.

    Attributes:
        sinks: all of them; those that have not changed are the ones in use.
        added: those among them that are to be started.
        retired: those in use that are not among them.
        brokers: connections that `added` needs and that are not started.
        idle_brokers: connections that only `retired` needs.
    """

    config: Config
    plan: Plan
    difference: Difference
    warnings: Sequence[str] = ()
    sinks: Mapping[str, Sink] = field(default_factory=dict)
    added: Mapping[str, Sink] = field(default_factory=dict)
    retired: Mapping[str, Sink] = field(default_factory=dict)
    brokers: Sequence[Service] = ()
    idle_brokers: Sequence[Service] = ()

    @property
    def digest(self) -> str:
        """The digest of the file, and of those that it names."""
        return self.config.digest

    @property
    def files(self) -> Sequence[Path]:
        """The files that were read."""
        return self.config.watched

    def refusals(self) -> Sequence[str]:
        """Return a line for each change that needs a restart."""
        return [
            self.config.locate(
                each.place,
                f"{each}, which takes a restart; the process goes on with the file it had, all of it",
            )
            for each in self.difference.refused
        ]

    def check(self, functions: Iterable[Subscription], sinks: Mapping[str, Sink]) -> None:
        """
        Check it against the functions that this process serves.

        Args:
            sinks: those of the functions.

        Raises:
            ConfigError: it takes the name of one, or the sink for the dead letters of one.
        """
        functions = list(functions)
        taken = sorted({each.name for each in functions} & {each.name for each in self.plan.subscriptions})
        if taken:
            raise ConfigError(f"subscription {taken[0]!r} is that of a function in this process")
        check_dead_letters(functions, {**sinks, **self.sinks})

    @contextlib.asynccontextmanager
    async def logged_in(self, file: ConfigurationFile) -> AsyncIterator[None]:
        """Renew the logins first, because the store may refuse the old password; restore them on failure."""
        file.renew_logins(self)
        try:
            yield
        except BaseException:
            file.renew_logins()
            raise

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator[None]:
        """Start what is new in it; stop that again if the block fails."""
        begun: list[tuple[str, Service | Sink]] = []
        try:
            for broker in self.brokers:
                begun.append(("broker", broker))
                await broker.start()
            for name, sink in self.added.items():
                begun.append((f"sink {name}", sink))
                await start_sink(name, sink)
            yield
        except BaseException:
            for part, each in reversed(begun):
                await end(part, each.stop, STOP_TIMEOUT)
            raise


class ConfigurationFile(Protocol):
    """The file that a runner was built from."""

    @property
    def path(self) -> str:
        """Its path, as it was given; empty for a configuration that was made in a program."""

    @property
    def files(self) -> Sequence[Path]:
        """The files that were read for what is in use."""

    @property
    def digest(self) -> str:
        """Their digest."""

    @property
    def destinations(self) -> Destinations:
        """Those that subscriptions bring with them: their keeper, and their sinks."""

    def read(self) -> Revision:
        """
        Read and check the file, and build what is new in it; nothing connects. Blocks.

        Raises:
            ConfigError: every fault of it.
        """

    def renew_logins(self, revision: Revision | None = None) -> None:
        """Use the passwords of `revision`, or again those in use, for the next connections."""

    def use(self, revision: Revision) -> None:
        """Note that `revision` is in use."""


def reloading_of(
    file: ConfigurationFile | None,
    apply: Callable[[Revision], Awaitable[None]],
    vitals: Vitals,
    on_reload: Callable[[], object],
) -> Reloading[Revision]:
    """Return what reloads a process with these vitals; see `Reloading`."""

    def read() -> Revision:
        if file is None:
            raise ConfigError("the configuration was made in a program; there is no file to read")
        return file.read()

    return Reloading(
        read,
        apply,
        file="" if file is None else file.path,
        files=() if file is None else file.files,
        digest="" if file is None else file.digest,
        ready=lambda: vitals.phase is Phase.RUNNING,
        on_reload=on_reload,
    )
