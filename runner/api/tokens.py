"""Tokens: the caller of a request by its bearer token, and what the file allows that caller."""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from typing_extensions import override

from ..event import Event
from ..periodic import lifecycle
from ..policies import schedule
from ..service.clock import utcnow
from ..subscription import matches_pattern
from .access import Access, Anybody, Caller, Need
from .problems import Problem

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

    from ..config.api import Api, TokenEntry

__all__ = ["FailureLimit", "TokenCaller", "Tokens", "access_of"]

_FAILURES = 20  # that one address may have in a minute
_WINDOW = 60.0  # seconds
_ADDRESSES = 4096  # whose failures are remembered
_CHALLENGE = 'Bearer realm="runner"'
_OWN = (schedule.SOURCES, lifecycle.SOURCES)  # sources of the events that the bus itself publishes
_CORE = ("subject", "source", "type", "id", "dataschema", "datacontenttype")


class FailureLimit:
    """Count failures by address; one with too many in a minute must wait for its end."""

    def __init__(self, most: int = _FAILURES, window: float = _WINDOW, now: Callable[[], float] = monotonic) -> None:
        """Args: window is in seconds, `now` the clock it is measured by."""
        self._most = most
        self._window = window
        self._now = now
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()  # when the window began, and failures in it

    def failed(self, address: str) -> float | None:
        """Count a failure; return how many seconds are left to wait, or None while there are not too many."""
        now = self._now()
        began, count = self._counts.pop(address, (now, 0))
        if now - began >= self._window:
            began, count = now, 0
        self._counts[address] = (began, count + 1)
        if len(self._counts) > _ADDRESSES:
            self._counts.popitem(last=False)
        return None if count < self._most else began + self._window - now


@dataclass(frozen=True, slots=True)
class TokenCaller(Caller):
    """The caller that a token of the file stands for."""

    entry: TokenEntry

    @property
    @override
    def name(self) -> str:
        return self.entry.name

    @property
    @override
    def bound(self) -> bool:
        return self.entry.types is not None or bool(self.entry.attributes)

    @property
    @override
    def reads_all(self) -> bool:
        return _allows(self.entry, "read")

    @override
    def admitted(self, event: Event) -> Event:
        types = self.entry.types
        if types is not None and not any(matches_pattern(pattern, event.type) for pattern in types):
            raise _forbidden(f"the token {self.name!r} may publish {' or '.join(types)}, not this type", "type")
        if event.source.startswith(_OWN) and not self._speaks_for_the_bus(event):
            own = " and ".join(_OWN)
            raise _forbidden(
                f"sources below {own} are the bus's own; a token publishes them with the scope admin, or if its "
                "attributes name the source",
                "source",
            )
        missing = {}
        for name, value in self.entry.attributes.items():
            has = event.attribute(name)
            if has is None:
                missing[name] = value
            elif has != value:
                raise _forbidden(f"the token {self.name!r} publishes only events of its own {name}", name)
        return _filled(event, missing) if missing else event

    def _speaks_for_the_bus(self, event: Event) -> bool:
        """
        Return whether the file lets this token publish as a schedule, or as the bus itself.

        The ids of ticks are predictable, so an event published under one ahead of its time would take the place of the
        tick.
        """
        return "admin" in self.entry.scopes or self.entry.attributes.get("source") == event.source

    @override
    def sees(self, event: Event) -> bool:
        types = self.entry.types
        return (types is None or any(matches_pattern(pattern, event.type) for pattern in types)) and all(
            event.attribute(name) == value for name, value in self.entry.attributes.items()
        )


class Tokens(Access):
    """
    Admits the callers whose bearer token is one of the file's and has not expired.

    Every token is compared, each in constant time, so that how long an answer takes says nothing.
    """

    def __init__(self, entries: Sequence[TokenEntry], *, failures: FailureLimit | None = None) -> None:
        """Take the tokens of the file."""
        self._entries = [(_digest_of(each), each) for each in entries]
        self._failures = FailureLimit() if failures is None else failures

    def replace(self, entries: Sequence[TokenEntry]) -> None:
        """Admit the callers of these tokens from now on, and no others."""
        self._entries = [(_digest_of(each), each) for each in entries]

    @override
    def admit(self, request: HTTPConnection, need: Need) -> Caller:
        entry = self.check(_bearer(request.headers.getlist("authorization")), request)
        if not _allows(entry, need):
            scope = "read" if need == "events" else need
            raise Problem(
                403,
                "forbidden",
                f"the token {entry.name!r} does not allow this; it needs the scope {scope!r}"
                + (
                    ", and neither types nor attributes"
                    if need in ("read", "subscribe") and need in entry.scopes
                    else ""
                ),
                headers={"www-authenticate": f'{_CHALLENGE}, error="insufficient_scope", scope="{scope}"'},
            )
        return TokenCaller(entry)

    def check(self, token: bytes, request: HTTPConnection) -> TokenEntry:
        """Return the entry of a token that is known and live. Raise a `Problem`: 401, or 429 after too many of them."""
        entry = self.entry_of(token)
        if entry is None:
            raise self._refusal("" if request.client is None else request.client.host)
        return entry

    def entry_of(self, token: bytes) -> TokenEntry | None:
        """Return the entry of a token; None for one that is unknown or has expired."""
        digest = hashlib.sha256(token).digest()
        found = None
        for known, entry in self.live():
            if hmac.compare_digest(digest, known) and token:
                found = entry
        return found

    def live(self) -> Sequence[tuple[bytes, TokenEntry]]:
        """Return the entries that have not expired, each with the SHA-256 of its token."""
        now = utcnow()
        return [(digest, each) for digest, each in self._entries if each.expires is None or now < each.expires]

    def _refusal(self, address: str) -> Problem:
        wait = self._failures.failed(address)
        if wait is None:
            return Problem(
                401, "unauthorized", "a live bearer token is needed", headers={"www-authenticate": _CHALLENGE}
            )
        return Problem(
            429,
            "too-many-failures",
            "too many requests without a live bearer token",
            headers={"retry-after": str(int(wait) + 1)},
        )


def _allows(entry: TokenEntry, need: Need) -> bool:
    """Return whether a token allows what a route needs; one that is bound to some events reads nothing else."""
    match need:
        case "events":
            return "read" in entry.scopes
        case "read":
            return "read" in entry.scopes and not TokenCaller(entry).bound
        case "subscribe":
            return "admin" in entry.scopes or (need in entry.scopes and not TokenCaller(entry).bound)
        case _:
            return need in entry.scopes


def _bearer(values: Sequence[str]) -> bytes:
    """Return the token of the Authorization header (RFC 6750 §2.1); nothing where there is none, or more than one."""
    if len(values) != 1:
        return b""
    scheme, _, token = values[0].strip().partition(" ")
    return token.strip().encode("latin-1") if scheme.lower() == "bearer" else b""


def _digest_of(entry: TokenEntry) -> bytes:
    if entry.sha256 is not None:
        return bytes.fromhex(entry.sha256)
    assert entry.secret is not None  # the file was checked
    return hashlib.sha256(entry.secret.reveal().encode()).digest()


def _forbidden(detail: str, attribute: str) -> Problem:
    return Problem(403, "forbidden", detail, attribute=attribute)


def _filled(event: Event, missing: dict[str, str]) -> Event:
    """Return the event with its missing attributes filled in."""
    core = {name: value for name, value in missing.items() if name in _CORE}
    extensions = {name: value for name, value in missing.items() if name not in _CORE}
    if extensions:
        core["extensions"] = {**event.extensions, **extensions}  # type: ignore[assignment]
    return event.replace(**core)


def access_of(options: Api) -> Access:
    """Return the access that the file asks for."""
    return Tokens(options.tokens) if options.tokens else Anybody()
