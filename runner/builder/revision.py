"""Read the configuration file again, and build the parts of it that are not in use already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from ..config import Config, advice, load_config
from ..config.difference import difference
from ..runtime.revision import ConfigurationFile, Revision
from ..sinks.base import Sink, SinkContext
from .brokers import Brokers
from .faults import Faults
from .files import check_listener
from .logins import Logins
from .plan import keeper_of, plan_of
from .sinks import sinks_of

if TYPE_CHECKING:
    from ..operations.destinations import Destinations
    from ..tracing.base import Tracing

__all__ = ["RereadableFile"]


@dataclass(frozen=True, slots=True)
class _Used:
    config: Config
    sinks: Mapping[str, Sink]
    brokers: Brokers


class RereadableFile(ConfigurationFile):
    """The file of a configuration, and what was built from it."""

    def __init__(
        self,
        config: Config,
        sinks: Mapping[str, Sink],
        brokers: Brokers,
        *,
        context: SinkContext,
        logins: Logins,
        tracing: Tracing | None,
        environ: Mapping[str, str] | None,
        destinations: Destinations,
    ) -> None:
        """
        Begin with what is in use.

        Args:
            context: of sinks that will be built.
            logins: those of the store and of strategies.
            tracing: makes spans of their calls.
            environ: what `${VAR}` in the file stands for; the process's environment by default.
            destinations: keeps and serves those that subscriptions bring with them.
        """
        self._destinations = destinations
        self._first = config
        self._used = self._read = _Used(config, sinks, brokers)
        self._context = context
        self._logins = logins
        self._tracing = tracing
        self._environ = environ

    @property
    @override
    def path(self) -> str:
        return self._first.file

    @property
    @override
    def files(self) -> tuple[Path, ...]:
        return self._used.config.watched

    @property
    @override
    def destinations(self) -> Destinations:
        return self._destinations

    @property
    @override
    def digest(self) -> str:
        return self._used.config.digest

    @override
    def read(self) -> Revision:
        used, config = self._used, load_config(self.path, self._environ, settings=self._first.settings)
        changes = difference(used.config, config)
        if changes.refused:
            return Revision(config=config, plan=plan_of(config), difference=changes)
        brokers = used.brokers.following(config)
        kept = {name: sink for name, sink in used.sinks.items() if used.config.sinks[name] == config.sinks.get(name)}
        with Faults(config) as faults:
            check_listener(config, faults)
            sinks = sinks_of(config, replace(self._context, broker=brokers), self._tracing, faults, kept)
        known, idle = set(used.brokers.made.values()), [brokers.made[each] for each in brokers.unwanted()]
        fresh = [each for each in brokers.made.values() if each not in known]
        brokers = Brokers(config, {options: each for options, each in brokers.made.items() if each not in idle})
        self._read = _Used(config, sinks, brokers)
        return Revision(
            config=config,
            plan=plan_of(config),
            difference=changes,
            warnings=advice(config),
            sinks=sinks,
            added={name: sink for name, sink in sinks.items() if name not in kept},
            retired={name: sink for name, sink in used.sinks.items() if name not in kept},
            brokers=fresh,
            idle_brokers=idle,
        )

    @override
    def renew_logins(self, revision: Revision | None = None) -> None:
        one = self._used if revision is None else self._read
        self._logins.renew(self._first, one.config)
        one.brokers.renew_logins()

    @override
    def use(self, revision: Revision) -> None:
        assert revision.config is self._read.config  # revisions are read one at a time
        used, config = self._used.config, revision.config
        if used.log != config.log:
            config.log.change()
        if (used.sealing, used.destinations) != (config.sealing, config.destinations):
            self._destinations.follow(keeper_of(config))
        self._destinations.keeper.defaults = revision.plan.defaults
        self._used = self._read
