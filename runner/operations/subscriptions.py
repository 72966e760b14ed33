"""Operations on subscriptions while the deployment runs: make, pause, remove and reseal them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from ..errors import ChangedMeanwhile, ConfigError, NotFound, StateConflict
from ..log.redaction import MASK, looks_secret
from ..storage.contract.corrections import nobody
from ..storage.contract.records import DeliveryQuery
from ..subscription import DEAD_LETTER_SUFFIX, DESTINATION_PREFIX, Subscription
from .audit import AuditLog
from .preconditions import UNCONDITIONAL, Precondition, subscription_tag

if TYPE_CHECKING:
    from ..storage import Storage
    from ..storage.contract.registry import Put
    from .destinations import Keeper

__all__ = ["MADE", "Resealed", "SubscriptionOperations"]

log = structlog.get_logger(__name__)

_WORD = re.compile(r"[A-Za-z0-9*][A-Za-z0-9*._:/+-]{0,99}", re.ASCII)  # a type with its wildcards, a name, a time
_WORDS = 20  # of a list
_KEPT = timedelta(days=1)  # for which an expired subscription is listed, and delivers what it had
MADE = "api:"
"""The beginning of the origin of a subscription that is in no file and of no program; its name follows."""


class Resealed(NamedTuple):
    """
    The result of resealing.

    Attributes:
        resealed: how many subscriptions were sealed with the first key now.
        current: how many were already.
        failed: of each that does not open, its name and why.
    """

    resealed: int
    current: int
    failed: Mapping[str, str]


def _told(value: object) -> str | list[str] | None:
    """
    Return a part of a definition as the audit log has it, before anybody has checked it.

    A value in the wrong place may be a secret, and any value may be large, so only plain words are kept.
    """
    if isinstance(value, list | tuple):
        few = [str(_told(each) or MASK) for each in value[:_WORDS]]
        return few if len(value) <= _WORDS else [*few, f"and {len(value) - _WORDS} more"]
    if value is None:
        return None
    if isinstance(value, datetime):
        return value.isoformat()
    plain = isinstance(value, str) and _WORD.fullmatch(value) and "//" not in value and not looks_secret(value)
    return str(value) if plain else MASK


class SubscriptionOperations:
    """
    Pause any subscription; make, remove and reseal those that are in no file.

    Workers, here and elsewhere, hear of every change. Every change is in the audit log.
    """

    def __init__(
        self, storage: Storage, announce: Callable[[], object], audit: AuditLog, keeper: Keeper | None
    ) -> None:
        """
        Work on `storage`.

        Args:
            announce: wakes the worker of this process and notifies the others.
            audit: records the actions.
            keeper: checks and keeps destinations; None: one without keys.
        """
        self._storage = storage
        self._announce = announce
        self._audit = audit
        self._given = keeper

    async def put(
        self,
        name: str,
        definition: Mapping[str, Any],
        *,
        sinks: Collection[str] = (),
        precondition: Precondition = UNCONDITIONAL,
    ) -> Put:
        """
        Make or replace a subscription that is in no file.

        Args:
            definition: the keys of the file; in place of `sink` it may have `destination: {webhook: {…}}`, and
                `expires_at`, a time with an offset.
            sinks: names of sinks besides those that live instances have.
            precondition: the state that this is meant for.

        Raises:
            ConfigError: the definition is wrong, a fault a line; or it has a secret, and there is no key to seal it.
            ChangedMeanwhile: the subscription is in another state.
            StateConflict: it is the file's, or a program's.
        """
        said = {key: _told(definition.get(key)) for key in ("types", "sink", "expires_at")}
        with self._keeper.secrecy():
            async with self._audit.action("subscriptions.put", name, said) as entry:
                put = await self._put(name, definition, sinks, precondition)
                entry.touched = int(put.changed)
        if put.changed:
            self._announce()
        return put

    async def _put(
        self, name: str, definition: Mapping[str, Any], sinks: Collection[str], precondition: Precondition
    ) -> Put:
        live = {each for view in await self._storage.records.instances() if view.alive for each in view.sinks or ()}
        there = {each for each in live | set(sinks) if not each.startswith(DESTINATION_PREFIX)}
        subscription = self.read(name, definition, there)
        return await self._storage.registry.put(subscription, f"{MADE}{name}", precondition.check_subscription)

    def read(self, name: str, definition: Mapping[str, Any], sinks: Collection[str]) -> Subscription:
        """
        Return the subscription that a definition describes, with its destination as it is kept.

        Args:
            sinks: names of those there are.

        Raises:
            ConfigError: the definition is wrong, a fault a line; or there is no key to seal a secret.
        """
        from ..config.written import read_subscription  # pydantic, not needed to publish

        self._keeper.check_size(definition)
        written = read_subscription(name, definition, sinks, self._keeper.defaults)
        if written.destination is None:
            return written.subscription
        kept = self._keeper.keep(name, written.destination, written.given)
        return replace(written.subscription, destination=kept)

    async def set_paused(self, name: str, paused: bool, by: str | None = None) -> bool:
        """Pause or resume a subscription; return whether that changed anything. Raise `NotFound`."""
        async with self._audit.action(
            f"subscriptions.{'pause' if paused else 'resume'}", name, self._audit.by(by)
        ) as entry:
            changed = await self._storage.registry.set_paused(name, paused, by)
            entry.touched = int(changed)
            if changed:
                self._announce()
            return changed

    async def remove(
        self,
        name: str,
        *,
        file: Collection[str] = (),
        force: bool = False,
        dry_run: bool = False,
        precondition: Precondition = UNCONDITIONAL,
    ) -> int:
        """
        Remove a subscription; cancel its open deliveries, and return how many.

        What has ended stays on record until its retention is over, without the name.

        Args:
            file: names of the subscriptions in the file at hand.
            force: also remove one that is served, or would come back with the file.
            precondition: the state that this is meant for.

        Raises:
            NotFound: there is none of that name.
            ChangedMeanwhile: it is in another state.
            StateConflict: it is served, would come back, or goes with another one.
        """
        said = {"force": force or None}
        async with self._audit.action("subscriptions.remove", name, said, recorded=not dry_run) as entry:
            await self._refuse_remove(name, file, precondition, force=force)
            if not dry_run:
                # From here on nothing is made for it, so that what is cancelled is all there is.
                await self._storage.registry.retire(name, precondition.check_subscription)
            theirs = [DeliveryQuery(subscription=each, limit=None) for each in (name, name + DEAD_LETTER_SUFFIX)]
            number = sum([await self._storage.corrections.cancel(each, dry_run=dry_run) for each in theirs])
            entry.touched = number + 1
            if not dry_run:
                await self._storage.registry.remove(name, retired=True)
                self._announce()
            return number

    async def remove_expired(self, after: timedelta = _KEPT) -> int:
        """Remove the subscriptions that expired so long ago, with what waits for them; return how many."""
        by_itself = SubscriptionOperations(self._storage, self._announce, AuditLog(self._storage, "runner"), None)
        number = 0
        for view in await self._storage.records.registered():
            name, left = view.registered.subscription.name, view.registered.expires_in
            if left is None or left > -after:
                continue
            # Only in the state that was read: one that was put again has a later end. Another instance may be first.
            seen = Precondition(frozenset({subscription_tag(view.registered)}))
            with contextlib.suppress(NotFound, ChangedMeanwhile):
                await by_itself.remove(name, force=True, precondition=seen)
                log.info("expired subscription removed", subscription=name)
                number += 1
        return number

    async def reseal(self, *, dry_run: bool = False, advance: Callable[[int], object] = nobody) -> Resealed:
        """
        Seal every secret with the first key that is sealed with another one.

        Each subscription is one transaction; what was interrupted goes on where it was when it is done again.

        Args:
            dry_run: only say how many there are.
            advance: called with the number of each step.

        Raises:
            ConfigError: there are no keys.
        """
        if not self._keeper.keyring:
            raise ConfigError("the file has no sealing.keys, so there is nothing to seal with")
        async with self._audit.action("secrets.reseal", recorded=not dry_run) as entry:
            result = await self._reseal(dry_run=dry_run, advance=advance)
            entry.touched = result.resealed
        if result.resealed and not dry_run:
            self._announce()
        return result

    async def _reseal(self, *, dry_run: bool, advance: Callable[[int], object]) -> Resealed:
        resealed, current, failed = 0, 0, dict[str, str]()
        for view in await self._storage.records.registered():
            known = view.registered.subscription
            if known.destination is None or known.destination.sealed is None:
                continue
            if self._keeper.keyring.is_current(known.destination.sealed):
                current += 1
            else:
                try:
                    again = replace(known, destination=self._keeper.reseal(known.name, known.destination))
                except ConfigError as error:
                    failed[known.name] = str(error)
                else:
                    # One that was changed meanwhile was sealed with the first key by that change.
                    if dry_run or await self._storage.registry.reseal(known.name, known, again):
                        resealed += 1
            advance(1)
        return Resealed(resealed, current, failed)

    @property
    def _keeper(self) -> Keeper:
        from .destinations import Keeper

        self._given = self._given or Keeper()
        return self._given

    async def _refuse_remove(
        self, name: str, file: Collection[str], precondition: Precondition, *, force: bool
    ) -> None:
        """Raise the error that forbids the removal of a subscription."""
        view = await self._storage.records.subscription(name)
        precondition.check_subscription(view.registered)
        subscription = view.registered.subscription
        if (whole := subscription.dead_letter_of) is not None:
            raise StateConflict(f"{name} delivers the dead letters of {whole}, and is removed with it: remove {whole}")
        if force or view.registered.origin == f"{MADE}{name}":
            return
        if name in file:
            raise StateConflict(f"{name} is in the file, and would come back with it; take it out there first")
        for each in await self._storage.records.instances() if view.active else ():
            if each.alive and subscription.sink in (each.sinks or ()):
                raise StateConflict(
                    f"{name} is served by process {each.instance.pid} on {each.instance.host}; "
                    "stop that, or take the subscription out of its file or program, first"
                )
