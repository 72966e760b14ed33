"""
The sink that posts CloudEvents over HTTP: one in binary or structured mode, several in batched mode.

What an answer means is decided by its status alone, never by its text:

    2xx                           accepted
    400 410 413 415 422 431       rejected: the receiver will say the same of this event again
    everything else               failed, tried again: 5xx, 408, 425, 429; but also 401, 403, 404, 405 and
                                  redirects, which say that one side is wrongly deployed or configured
                                  now, and nothing about the event

The option `permanent` adds to the statuses that reject, and with `deferred` a 202 says that the receiver is going to
acknowledge the delivery itself.

An answer to a batch may give a status for each event: see `_outcomes()`.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

import orjson
from pydantic import AfterValidator, Field, field_serializer, model_validator
from typing_extensions import override

from ..cloudevents import BATCH_FORMAT, encode_batch, to_http, to_http_structured
from ..config.duration import PositiveDuration
from ..config.errors import got
from ..config.fields import Number, is_near
from ..config.plugin import Options
from ..config.secret import Secret
from ..delivery import ACCEPTED, Accepted, Deferred, Delivery, Failed, Outcome, Rejected
from ..errors import EventError, SinkError
from ..log.redaction import MASK, know, looks_secret, redacted
from ..service.clock import utcnow
from .base import SinkContext
from .http.address import Address
from .http.answer import Answer
from .http.client import Client
from .http.connection import NoAnswer

__all__ = ["WebhookOptions", "WebhookSink"]

_TIMEOUT = timedelta(seconds=10)
_REJECTED = frozenset({400, 410, 413, 415, 422, 431})
_ASKS_TO_WAIT = frozenset({429, 503})
_LARGEST_HEAD = 8 * 1024  # bytes: the least that common servers take of request line and headers
_LONGEST_WAIT = 10**9  # seconds; the retry policy has a limit of its own, this one keeps the arithmetic in range
_READ = 64 * 1024  # bytes of an answer's body; what is longer ends the connection
_READ_OUTCOMES = 1024 * 1024  # the same where an answer may speak of a thousand events
_LONGEST_DATE = 40  # characters; those of RFC 9110 §5.6.7 have 33 at most
_EXCERPT = 512  # characters of an answer that are kept
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)  # RFC 9110 §5.6.2, token
_OWN_HEADERS = frozenset({"connection", "content-length", "content-type", "host", "transfer-encoding"})
_DEFAULTS = {"User-Agent": "eventbus-runner", "Accept": "*/*", "Accept-Encoding": "identity"}
_OWN_PREFIXES = ("ce-", "runner-", "webhook-")
_PROOF = re.compile(r"auth|cookie|key|pass|secret|sign|token", re.IGNORECASE)  # headers that prove who calls


def _web_address(url: str) -> str:
    for part in re.split("[/?&=]", Address.parse(url).target):
        if looks_secret(unquote(part)):
            know(part)
            know(unquote(part))
    return url


def _password_of(credentials: str) -> str:
    """Return the password in the credentials of HTTP's scheme Basic; empty if there is none."""
    try:
        return b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


class WebhookOptions(Options):
    """Send every event by HTTP POST."""

    main = "url"
    batches = True

    url: Annotated[str, AfterValidator(_web_address)] = Field(repr=False, description="`https://…` or `http://…`.")
    secret: Secret | None = Field(
        default=None,
        description="Signs each request.",
        json_schema_extra={
            "inactive": "requests would go out unsigned; remove it, and let the receiver check"
            " headers: {Authorization: …}"
        },
    )
    timeout: PositiveDuration = Field(default=_TIMEOUT, description="Longest wait for the answer.")
    headers: Mapping[str, Secret] = Field(default_factory=dict, description="Further headers, such as Authorization.")
    mode: Literal["binary", "structured"] = Field(
        default="binary",
        description="`binary`: attributes as headers, data as the body; `structured`: one JSON document, also used "
        "where the headers would pass 8 KiB.",
    )
    permanent: tuple[Annotated[Number, Field(ge=300, le=599)], ...] = Field(
        default=(), description="Statuses that no retry can help, besides 400, 410, 413, 415, 422 and 431."
    )
    deferred: PositiveDuration | None = Field(
        default=None,
        description="A receiver that answers 202 acknowledges later, within this time; null: 202 is success.",
    )

    @model_validator(mode="after")
    def _check_headers(self) -> WebhookOptions:
        for name, value in self.headers.items():
            scheme, _, credentials = value.reveal().partition(" ")
            if credentials:
                know(credentials)
            if scheme.lower() == "basic":
                know(_password_of(credentials))
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError(f"headers: {got(name)} is no header name (RFC 9110)")
            if name.lower().startswith(_OWN_PREFIXES) or name.lower() in _OWN_HEADERS:
                raise ValueError(f"headers: {got(name)} is set by the sink itself; leave it out")
        return self

    @field_serializer("url", when_used="json")
    def _shown(self, url: str) -> str:
        """Show only the host of the URL, because receivers put keys in the query or the path."""
        parts = urlsplit(redacted(url))
        return parts._replace(query=MASK if parts.query else "").geturl()

    @override
    def advice(self) -> Iterator[tuple[str, str]]:
        url = urlsplit(self.url)
        host = url.hostname or ""
        if url.scheme != "http" or is_near(host):
            return
        if url.query or any(_PROOF.search(name) for name in self.headers):
            yield "url", f"what proves who calls goes to {got(host)} in clear; use https://"

    @override
    def build(self, context: SinkContext) -> WebhookSink:
        return WebhookSink(
            self.url,
            timeout=self.timeout,
            headers={name: value.reveal() for name, value in self.headers.items()},
            permanent=self.permanent,
            deferred=self.deferred,
            structured=self.mode == "structured",
            connections=context.concurrency,
        )


class WebhookSink:
    """
    POST each event to one URL.

    The attempt travels as `runner-attempt`; `ce-source` and `ce-id` stay the same over all attempts, so
    a receiver can tell a repetition. Redirects are not followed, cookies not kept, proxies of the
    environment not used, and no more than 64 KiB of an answer is read.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: timedelta = _TIMEOUT,
        headers: Mapping[str, str] | None = None,
        permanent: Iterable[int] = (),
        deferred: timedelta | None = None,
        structured: bool = False,
        connections: int = 256,
    ) -> None:
        """
        Take the address and the headers, which `WebhookOptions` has checked.

        Args:
            url: where to post; it is sent as it is written.
            timeout: from the first step of connecting to the end of the answer.
            headers: sent with every event, such as `Authorization`.
            permanent: further statuses that reject an event for good.
            deferred: how long the receiver has to acknowledge what it answers with 202; None if 202 is a success.
            structured: send every event as one JSON document, and not only those whose attributes need more headers
                than servers take.
            connections: how many are open at once; further deliveries wait for one.
        """
        address = Address.parse(url)
        self._peer = address.peer
        self._client = Client(address, headers=_all_headers(headers or {}), timeout=timeout, connections=connections)
        self._rejected = _REJECTED.union(permanent)
        self._deferred = None if deferred is None else Deferred(deferred)
        self._structured = structured
        self._started = False

    async def start(self) -> None:
        """Prepare; nothing connects yet."""
        await self._client.start()
        self._started = True

    async def deliver(self, delivery: Delivery) -> Outcome:
        """Post the event and return the outcome of the answer's status."""
        try:
            headers, body = self._message(delivery)
        except EventError as error:
            return Rejected(f"the event cannot be sent over HTTP: {error}")
        answer = await self._post(headers, body, _READ)
        return answer if isinstance(answer, Failed) else self._outcome(answer.status, answer.headers, answer.body)

    async def deliver_batch(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        """Post the events as one JSON array; in halves if the receiver answers that it is too large."""
        count = len(deliveries)
        try:
            body = encode_batch(delivery.event for delivery in deliveries)
        except EventError as error:
            return _shared(Rejected(f"the event cannot be sent over HTTP: {error}"), count)
        attempt = max(each.attempt for each in deliveries)
        headers = {"content-type": BATCH_FORMAT} | self._own_headers(deliveries[0].subscription, attempt)
        answer = await self._post(headers, body, _READ_OUTCOMES)
        if isinstance(answer, Failed):
            return [answer] * count
        if answer.status == 413 and count > 1:
            halves = deliveries[: count // 2], deliveries[count // 2 :]
            return [outcome for half in halves for outcome in await self.deliver_batch(half)]
        outcome = self._outcome(answer.status, answer.headers, answer.body)
        if isinstance(outcome, Accepted | Deferred) and _is_json(answer):
            if not answer.complete:
                return [Failed("the answer to a batch was cut off")] * count
            return self._outcomes(answer.body, count, outcome)
        return _shared(outcome, count)

    async def _post(self, headers: Mapping[str, str], body: bytes, limit: int) -> Answer | Failed:
        if not self._started:
            raise SinkError("webhook: deliver() before start()")
        try:
            return await self._client.post(headers, body, limit)
        except NoAnswer as error:
            return Failed(f"{self._peer}: {error}")

    async def stop(self) -> None:
        """Close the connections."""
        self._started = False
        await self._client.stop()

    def _message(self, delivery: Delivery) -> tuple[dict[str, str], bytes]:
        own = self._own_headers(delivery.subscription, delivery.attempt)
        if not self._structured:
            headers, body = to_http(delivery.event)
            headers |= own
            if self._client.head_size(headers) <= _LARGEST_HEAD:
                return headers, body
        headers, body = to_http_structured(delivery.event)
        return headers | own, body

    def _own_headers(self, subscription: str, attempt: int) -> dict[str, str]:
        headers = {"runner-attempt": str(attempt)}
        if self._deferred is not None:
            headers["runner-subscription"] = subscription  # an acknowledgement has to name it
        return headers

    def _outcome(self, status: int, headers: Mapping[str, str], beginning: bytes) -> Outcome:
        if status == 202 and self._deferred is not None:
            return self._deferred
        if 200 <= status < 300:
            return ACCEPTED
        excerpt = _CONTROL.sub("\ufffd", beginning.decode(errors="replace")[:_EXCERPT]) or None
        if status in self._rejected:
            return Rejected(f"HTTP {status}{' (gone)' if status == 410 else ''}", status, excerpt)
        if 300 <= status < 400:
            return Failed(
                f"HTTP {status}: redirects are not followed, the sink's url has to change", None, status, excerpt
            )
        wait = _retry_after(headers) if status in _ASKS_TO_WAIT else None
        return Failed(f"HTTP {status}", wait, status, excerpt)

    def _outcomes(self, answer: bytes, count: int, common: Outcome) -> list[Outcome]:
        """
        Return the outcomes of a batch by its JSON answer: `common` for all, or one status each.

        `{"outcomes": [200, 422, {"status": 503, "retry_after": 30, "reason": "busy"}]}`, in the order of the batch;
        each means what it would mean as the status of the answer to that event alone.
        """
        try:
            document = orjson.loads(answer) if answer.strip() else None
            given = document.get("outcomes") if isinstance(document, dict) else None
            outcomes: list[Outcome] = [common] * count if given is None else [self._told(each) for each in given]
        except (ValueError, TypeError, KeyError):
            return [Failed("the answer to a batch is malformed")] * count
        if len(outcomes) != count:
            return [Failed(f"the answer gives {len(outcomes)} outcomes for a batch of {count}")] * count
        return outcomes

    def _told(self, given: object) -> Outcome:
        """Return the outcome of one event by its status or object in the answer. Raise if it is neither."""
        fields = given if isinstance(given, dict) else {"status": given}
        status, wait = fields["status"], fields.get("retry_after")
        if type(status) is not int or not 100 <= status < 600:
            raise ValueError(status)
        headers = {} if wait is None else {"retry-after": str(wait)}
        return self._outcome(status, headers, str(fields.get("reason") or "").encode())


def _shared(outcome: Outcome, count: int) -> list[Outcome]:
    """Return the outcomes of a batch with a single answer; reject none of several, since one may be at fault."""
    if count > 1 and isinstance(outcome, Rejected):
        reason = f"{outcome.reason}, for a batch of {count}: each is tried alone"
        outcome = Failed(reason, None, outcome.status, outcome.excerpt)
    return [outcome] * count


def _is_json(answer: Answer) -> bool:
    return answer.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


def _retry_after(headers: Mapping[str, str]) -> timedelta | None:
    """Return the wait of Retry-After (RFC 9110 §10.2.3), not below zero; None if it is invalid."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"-?[0-9]{1,20}", value):
        return timedelta(seconds=min(max(int(value), 0), _LONGEST_WAIT))
    moment = _http_date(value)
    if moment is None:
        return None
    # By the peer's own clock when it tells the time, so that ours may differ.
    now = _http_date(headers.get("date", "")) or utcnow()
    return max(moment - now, timedelta(0))


def _http_date(value: str) -> datetime | None:
    if len(value) > _LONGEST_DATE:
        return None
    try:
        moment = parsedate_to_datetime(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _all_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of every request: these, and the defaults."""
    given = {name.lower() for name in headers}
    return {name: value for name, value in _DEFAULTS.items() if name.lower() not in given} | dict(headers)
