"""Destinations that subscriptions bring with them: checked and sealed when they are put, opened to be served."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import orjson
import structlog

from ..errors import ConfigError, RunnerError, described
from ..log.redaction import MASK, forget, gathered
from ..policies.sealing import CannotOpen, Keyring
from ..service.background import spawn
from ..sinks.base import Sink, SinkContext
from ..sinks.http.address import Address
from ..sinks.http.guard import PUBLIC, Guard
from ..subscription import Destination

if TYPE_CHECKING:
    from ..config.destinations import Destinations as Limits
    from ..config.plugin import Plugin
    from ..config.written import Defaults
    from ..sinks.webhook import WebhookOptions
    from ..subscription import Subscription

__all__ = ["Destinations", "Keeper", "guard_within"]

log = structlog.get_logger(__name__)

Handshake = Literal["required", "warn"]

_LARGEST = 64 * 1024  # bytes of a definition
_REMEMBERED = 60.0  # seconds for which secrets that were put are still hidden in what this process writes
_ENDING = 5.0  # seconds more than its deliveries may take, after which what was replaced is stopped


def guard_within(limits: Limits) -> Guard:
    """Return the policy for destinations that others may set, within the limits of the file."""
    allow, ports = limits.allow, limits.ports
    return replace(
        PUBLIC,
        http=allow.http,
        hosts=allow.hosts,
        cidrs=allow.cidrs,
        ports=frozenset() if ports is None else frozenset(ports),
    )


class Keeper:
    """
    Check destinations, and convert them for the store: sealed if any option is secret.

    Attributes:
        keyring: seals and opens.
        guard: where destinations may lead.
        handshake: what is asked of their receivers at least.
        origin: the name of this system in it; None for that of the deployment.
        defaults: those of the file, for subscriptions that are put; None: those of no file.
    """

    def __init__(
        self,
        keyring: Keyring | None = None,
        guard: Guard = PUBLIC,
        *,
        handshake: Handshake | None = None,
        origin: str | None = None,
        defaults: Defaults | None = None,
    ) -> None:
        self.keyring = keyring or Keyring()
        self.guard = guard
        self.handshake = handshake
        self.origin = origin
        self.defaults = defaults

    @staticmethod
    def check_size(definition: Mapping[str, Any]) -> None:
        """
        Raise `ConfigError` for a definition that is too large to be matched with every event, and shown.

        Called before it is parsed, because parsing registers everything in it that may be secret.
        """
        try:
            size = len(orjson.dumps(dict(definition)))
        except TypeError:
            raise ConfigError("expected texts, numbers, lists and mappings only") from None
        if size > _LARGEST:
            raise ConfigError(f"{size} bytes as JSON, at most {_LARGEST} are taken")

    def keep(self, name: str, plugin: Plugin, given: Any) -> Destination:
        """
        Return the destination of the subscription `name` as it is kept.

        Args:
            given: the options of `plugin` as they came.

        Raises:
            ConfigError: it leads where it may not, names what is the operator's, or has a secret and there is no key.
        """
        options: WebhookOptions = plugin.options  # type: ignore[assignment]  # the only kind there is
        faults = [f"destination.{plugin.kind}.{place}: {fault}" for place, fault in self._faults(options)]
        if faults:
            raise ConfigError(*faults)
        raw = dict(given) if isinstance(given, Mapping) else {options.main or "": given}
        content = orjson.dumps(raw)
        shown = options.model_dump(mode="json", by_alias=True, exclude_unset=True)
        if MASK not in orjson.dumps(shown).decode():
            return Destination(kind=plugin.kind, shown=shown, options=raw)
        if not self.keyring:
            raise ConfigError(
                f"destination.{plugin.kind}: it has a secret, and there is no key to keep it with; add to the runner's "
                'file: sealing: {keys: ["${file:/run/secrets/seal}"]}, with the output of openssl rand -base64 32'
            )
        return Destination(kind=plugin.kind, shown=shown, sealed=self.keyring.seal(content, name))

    def reseal(self, name: str, destination: Destination) -> Destination:
        """Return the same destination, sealed with the first key. Raise `ConfigError` if it does not open."""
        assert destination.sealed is not None
        try:
            content = self.keyring.open(destination.sealed, name)
        except CannotOpen as error:
            raise ConfigError(str(error)) from None
        return replace(destination, sealed=self.keyring.seal(content, name))

    def options(self, name: str, destination: Destination) -> WebhookOptions:
        """
        Return the options of a destination.

        Raises:
            CannotOpen: they do not open with the keys there are.
            ValueError: they are none, by the rules of this version.
        """
        from ..sinks.webhook import WebhookOptions

        if destination.kind != "webhook":
            raise ValueError(f"a destination of kind {destination.kind!r} is not known to this version")
        raw: Any = destination.options
        if destination.sealed is not None:
            raw = orjson.loads(self.keyring.open(destination.sealed, name))
        options = WebhookOptions.model_validate(raw)
        for place, fault in self._faults(options):
            raise ValueError(f"{place}: {fault}")
        asked = self.handshake if options.handshake != "required" else "required"
        return options.model_copy(update={"handshake": asked or options.handshake, "origin": self.origin})

    @contextlib.contextmanager
    def secrecy(self) -> Iterator[None]:
        """Redact the secrets read in this block in everything this process writes, until a minute after it."""
        with gathered() as learnt:
            try:
                yield
            finally:
                asyncio.get_running_loop().call_later(_REMEMBERED, lambda: forget(*learnt))

    def _faults(self, options: WebhookOptions) -> Iterator[tuple[str, str]]:
        """Yield the faults of a destination: the option, and the reason."""
        files = "it names files of the machine that the runner is on; leave it out"
        if options.tls is not None:
            yield "tls", files
        if options.allow is not None:
            yield (
                "allow",
                "where destinations may lead is set in the runner's file, by destinations.allow; leave it out",
            )
        if options.origin is not None:
            yield "origin", "it is the name of the runner's system, which destinations.origin sets; leave it out"
        if (fault := self.guard.url_fault(Address.parse(options.url))) is not None:
            yield "url", fault
        oauth2 = None if options.auth is None else options.auth.oauth2
        if oauth2 is not None:
            if oauth2.tls is not None:
                yield "auth.oauth2.tls", files
            if (fault := self.guard.url_fault(Address.parse(oauth2.token_url))) is not None:
                yield "auth.oauth2.token_url", fault


@dataclass(slots=True)
class _Live:
    """A destination that is served here; its sink is None where it cannot be opened."""

    destination: Destination
    timeout: timedelta
    rules: int
    sink: Sink | None = None
    secrets: Sequence[str] = ()


class Destinations:
    """
    The sinks of one process for destinations that subscriptions brought.

    They follow the subscriptions as they are loaded: made and started when a subscription brings one, replaced when it
    brings another or the rules change, stopped once the deliveries that it had then are over.

    Attributes:
        keeper: opens them.
        on_change: called when there are others than before.
    """

    def __init__(
        self, keeper: Keeper, context: SinkContext, *, wrap: Callable[[Sink], Sink] = lambda sink: sink
    ) -> None:
        """
        Open destinations with `keeper`.

        Args:
            context: of the sinks; its hosts are those of no other sinks.
            wrap: returns the sink to be used in place of each.
        """
        self.keeper = keeper
        self.on_change: Callable[[], object] = lambda: None
        self._context = context
        self._wrap = wrap
        self._rules = 0  # how often the keys or the limits have changed
        self._live: dict[str, _Live] = {}
        self._ending: dict[int, tuple[_Live, asyncio.TimerHandle]] = {}

    @property
    def names(self) -> Sequence[str]:
        """The names of the sinks."""
        return [name for name, live in self._live.items() if live.sink is not None]

    def follow(self, keeper: Keeper) -> None:
        """Take the keys and the limits of `keeper`: at once for what is put, at the next load for what is served."""
        self.keeper.keyring, self.keeper.guard = keeper.keyring, keeper.guard
        self.keeper.handshake, self.keeper.origin = keeper.handshake, keeper.origin
        self._rules += 1

    async def adopt(self, subscriptions: Sequence[Subscription]) -> Mapping[str, Sink]:
        """Return the sinks of the destinations of these subscriptions, by name, once they are started."""
        before = self.names
        wanted = {each.sink: each for each in subscriptions if each.destination is not None}
        for name in [each for each in self._live if each not in wanted]:
            self._retire(self._live.pop(name))
        for name, each in wanted.items():
            known = self._live.get(name)
            if known is None or (known.destination, known.rules) != (each.destination, self._rules):
                self._live[name] = await self._open(each)
                if known is not None:
                    self._retire(known)
        if self.names != before:
            self.on_change()
        return {name: live.sink for name, live in self._live.items() if live.sink is not None}

    async def stop(self) -> None:
        """Stop every sink. Idempotent."""
        ending, self._ending = self._ending, {}
        for _, timer in ending.values():
            timer.cancel()
        live, self._live = list(self._live.values()), {}
        for each in (*(retired for retired, _ in ending.values()), *live):
            await self._end(each)

    async def _open(self, subscription: Subscription) -> _Live:
        destination = subscription.destination
        assert destination is not None
        live = _Live(destination, subscription.timeout, self._rules)
        with gathered() as live.secrets:
            try:
                options = self.keeper.options(subscription.name, destination)
                sink = self._wrap(options.build_within(self._context, self.keeper.guard))
                await sink.start()
            except (CannotOpen, RunnerError) as error:
                log.error("destination not opened", subscription=subscription.name, detail=str(error))
            except Exception as error:  # another version may have stored anything
                log.error("destination not opened", subscription=subscription.name, detail=described(error))
            else:
                live.sink = sink
        return live

    def _retire(self, live: _Live) -> None:
        """Stop a sink once its running deliveries have ended."""
        after = live.timeout.total_seconds() + _ENDING
        timer = asyncio.get_running_loop().call_later(after, self._retired, live)
        self._ending[id(live)] = live, timer

    def _retired(self, live: _Live) -> None:
        if self._ending.pop(id(live), None) is not None:
            spawn(self._end(live), "destination")

    async def _end(self, live: _Live) -> None:
        if live.sink is not None:
            await live.sink.stop()
            live.sink = None
        forget(*live.secrets)
        self._context.hosts.sweep()
