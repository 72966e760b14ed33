"""
The sink that posts CloudEvents over HTTP: one in binary or structured mode, several in batched mode.

`http/outcomes.py` says what an answer means, `http/signatures.py` how a request is signed.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_serializer, model_validator
from typing_extensions import override

from ..cloudevents import BATCH_FORMAT, encode_batch, to_http, to_http_structured
from ..config.destinations import Allow, Origin
from ..config.duration import PositiveDuration
from ..config.errors import got
from ..config.fields import Number, is_near
from ..config.plugin import Options
from ..config.secret import Secret
from ..delivery import Delivery, Failed, Outcome, Rejected
from ..errors import EventError, SinkError
from ..log.redaction import know
from ..tracing.carrier import OUTGOING, trace_headers
from .base import SinkContext
from .http.address import Address
from .http.answer import Answer
from .http.client import Client
from .http.connection import NoAnswer
from .http.consent import Consent
from .http.guard import ANYWHERE, Guard
from .http.oauth import NoToken, TokenSource
from .http.options import Auth, MomentField, SigningSecret, Tls, WebAddress, guard_of, shown_url, signer
from .http.outcomes import GONE, Meaning, shared
from .http.signatures import Signer, message_id

__all__ = ["WebhookOptions", "WebhookSink"]

_TIMEOUT = timedelta(seconds=10)
_LARGEST_HEAD = 8 * 1024  # bytes: the least that common servers take of request line and headers
# Bytes of those for what is added: two signatures, id and time; a token of common length; the origin.
_SIGNED, _TOKEN, _ORIGIN = 400, 2048, 300
_READ = 64 * 1024  # bytes of an answer's body; what is longer ends the connection
_READ_OUTCOMES = 1024 * 1024  # the same for a batch, whose answer may have an outcome for each of a thousand events
_UNAUTHORIZED = 401
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)  # RFC 9110 §5.6.2, token
_OWN_HEADERS = frozenset({"connection", "content-length", "content-type", "host", "transfer-encoding"})
_DEFAULTS = {"User-Agent": "eventbus-runner", "Accept": "*/*", "Accept-Encoding": "identity"}
_OWN_PREFIXES = ("ce-", "runner-", "webhook-")
_MOST_HEADERS = 50  # of the file; servers commonly take 100 in all
_PROOF = re.compile(r"auth|cookie|key|pass|secret|sign|token", re.IGNORECASE)  # headers that prove who calls

Pause = Callable[[str, str], None]


def _password_of(credentials: str) -> str:
    """Return the password in the credentials of HTTP's scheme Basic; empty if there is none."""
    try:
        return b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _few(headers: object) -> object:
    """Refuse more headers than servers accept, before each is registered as a secret."""
    if isinstance(headers, Mapping) and len(headers) > _MOST_HEADERS:
        raise ValueError(f"{len(headers)} headers, at most {_MOST_HEADERS} are taken")
    return headers


class WebhookOptions(Options):
    """Send every event by HTTP POST."""

    main = "url"
    batches = True

    url: WebAddress = Field(repr=False, description="`https://…` or `http://…`.")
    secret: SigningSecret | None = Field(
        default=None,
        description="Signs each request by Standard Webhooks: `whsec_` and the base64 of 24 to 64 random bytes, or "
        "`whsk_` and that of an ed25519 key.",
    )
    previous_secret: SigningSecret | None = Field(
        default=None, description="The secret before `secret`, which signs as well while receivers change over."
    )
    previous_until: MomentField | None = Field(
        default=None, description="When `previous_secret` stops signing, such as 2026-01-31T12:00:00Z; null: never."
    )
    auth: Auth | None = Field(
        default=None, description="How the receiver knows us: `bearer`, `basic` or `oauth2`; or a header of `headers`."
    )
    tls: Tls | None = Field(default=None, description="Authorities to trust, and a client certificate (mutual TLS).")
    allow: Allow | None = Field(
        default=None,
        description="With this section only https and public addresses, and what it names; null: wherever `url` leads.",
    )
    connections: Number | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Requests to the host at once, over all sinks of a process; null: as many as the worker delivers.",
    )
    timeout: PositiveDuration = Field(default=_TIMEOUT, description="Longest wait for the answer.")
    headers: Annotated[Mapping[str, Secret], BeforeValidator(_few)] = Field(
        default_factory=dict, description="Further headers, such as X-Api-Key; at most 50."
    )
    mode: Literal["binary", "structured"] = Field(
        default="binary",
        description="`binary`: attributes as headers, data as the body; `structured`: one JSON document, also used "
        "where the headers would pass 8 KiB.",
    )
    permanent: tuple[Annotated[Number, Field(ge=300, le=599)], ...] = Field(
        default=(), description="Statuses that no retry can help, besides 400, 410, 413, 415, 422 and 431."
    )
    gone: Literal["reject", "pause"] = Field(
        default="reject",
        description="What a 410 means: `reject`, this event is dead; `pause`, the subscription is paused until it is "
        "resumed, and the event waits.",
    )
    handshake: Literal["required", "warn"] | None = Field(
        default=None,
        description="Ask the receiver for its consent, by OPTIONS and WebHook-Request-Origin, before the first"
        " delivery: `required` delivers nothing without, `warn` only logs that there is none; null: it is not asked.",
    )
    origin: Origin | None = Field(
        default=None, description="DNS name that the handshake gives as the sender; null: the deployment_id."
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
            if name.lower() == "authorization" and self.auth is not None:
                raise ValueError(f"headers: {got(name)} is set by auth; leave one of them out")
        return self

    @model_validator(mode="after")
    def _check_together(self) -> WebhookOptions:
        if self.previous_secret is not None and self.secret is None:
            raise ValueError("previous_secret: there is no secret that follows it; with one alone write secret")
        if self.previous_until is not None and self.previous_secret is None:
            raise ValueError("previous_until: there is no previous_secret that ends then; leave it out")
        if self.origin is not None and self.handshake is None:
            raise ValueError("origin: only the handshake says it; add handshake, or leave it out")
        if self.gone == "pause" and GONE in self.permanent:
            raise ValueError("permanent: 410 cannot both reject the event and (gone: pause) pause the subscription")
        address = Address.parse(self.url)
        if self.tls is not None and not address.secure:
            raise ValueError("tls: the url is http://, where nothing is encrypted; write https://")
        if self.allow is not None and (fault := guard_of(self.allow).url_fault(address)) is not None:
            raise ValueError(f"url: {fault}; see allow")
        oauth2 = None if self.auth is None else self.auth.oauth2
        if oauth2 is not None and self.allow is not None:
            fault = guard_of(self.allow).url_fault(Address.parse(oauth2.token_url))
            if fault is not None:
                raise ValueError(f"auth.oauth2.token_url: {fault}; see allow")
        return self

    @field_serializer("url", when_used="json")
    def _shown(self, url: str) -> str:
        return shown_url(url)

    @override
    def advice(self) -> Iterator[tuple[str, str]]:
        url = urlsplit(self.url)
        host = url.hostname or ""
        proves = url.query or self.auth is not None or any(_PROOF.search(name) for name in self.headers)
        if proves and url.scheme == "http" and not is_near(host):
            yield "url", f"what proves who calls goes to {got(host)} in clear; use https://"
        oauth2 = None if self.auth is None else self.auth.oauth2
        if oauth2 is not None:
            token_url = urlsplit(oauth2.token_url)
            if token_url.scheme == "http" and not is_near(token_url.hostname or ""):
                yield "auth", f"the client secret goes to {got(token_url.hostname)} in clear; use https://"
        if self.secret is not None and "mode" not in self.model_fields_set:
            yield (
                "secret",
                "in binary mode the attributes are headers, which no signature covers; mode: structured signs them,"
                " mode: binary says that this is meant",
            )
        if self.previous_until is not None and self.previous_until < datetime.now(UTC):
            yield "previous_until", "the previous secret signs no more; remove it"

    @override
    def build(self, context: SinkContext) -> WebhookSink:
        return self.build_within(context, ANYWHERE if self.allow is None else guard_of(self.allow))

    def build_within(self, context: SinkContext, guard: Guard) -> WebhookSink:
        """Build the sink; it posts only to destinations that `guard` allows. Nothing connects yet."""
        address = Address.parse(self.url)
        pool = context.hosts.pool(address, connections=self.connections, tls=self.tls, guard=guard)
        headers = {name: value.reveal() for name, value in self.headers.items()}
        if self.auth is not None and self.auth.header is not None:
            headers["Authorization"] = self.auth.header
        oauth2 = None if self.auth is None else self.auth.oauth2
        client = Client(address, pool, headers=_all_headers(headers), timeout=self.timeout)
        origin, required = self.origin or context.deployment_id, self.handshake == "required"
        return WebhookSink(
            client,
            Meaning(
                permanent=self.permanent,
                deferred=self.deferred,
                gone_rejects=self.gone == "reject",
                excerpts=not guard.discreet,
            ),
            structured=self.mode == "structured",
            signer=signer(self.secret, self.previous_secret, self.previous_until),
            tokens=None if oauth2 is None else oauth2.source(context.hosts, guard, self.timeout),
            pause=context.pause if self.gone == "pause" else None,
            consent=None if self.handshake is None else Consent(client, origin, required=required),
        )


class WebhookSink:
    """
    POST each event to one URL.

    The attempt travels as `runner-attempt`; `ce-source` and `ce-id`, and the `webhook-id` of a signed request, stay the
    same over all attempts, so a receiver can tell a repetition. Redirects are not followed, cookies not kept, proxies
    of the environment not used, and no more than 64 KiB of an answer is read.
    """

    def __init__(
        self,
        client: Client,
        meaning: Meaning,
        *,
        structured: bool = False,
        signer: Signer | None = None,
        tokens: TokenSource | None = None,
        pause: Pause | None = None,
        consent: Consent | None = None,
    ) -> None:
        """
        Post through `client`, and read its answers by `meaning`.

        Args:
            structured: send every event as one JSON document, and not only those whose attributes need more headers
                than servers take.
            signer: signs each request.
            tokens: gives the token that is sent as `Authorization`.
            pause: called with the name of the subscription, and the reason, when the receiver is gone.
            consent: decides whether anything may be sent, and when.
        """
        self._client = client
        self._meaning = meaning
        self._structured = structured
        self._signer = signer
        self._tokens = tokens
        self._pause = pause
        self._consent = consent
        self._started = False
        self._largest_head = (
            _LARGEST_HEAD
            - (_SIGNED if signer is not None else 0)
            - (_TOKEN if tokens is not None else 0)
            - (_ORIGIN if consent is not None else 0)
        )

    async def start(self) -> None:
        """Prepare; nothing connects yet."""
        await self._client.start()
        if self._tokens is not None:
            await self._tokens.start()
        self._started = True

    async def stop(self) -> None:
        """Close the connections."""
        if self._started:
            self._started = False
            if self._consent is not None:
                await self._consent.stop()
            if self._tokens is not None:
                await self._tokens.stop()
            await self._client.stop()

    async def deliver(self, delivery: Delivery) -> Outcome:
        """Post the event and return the outcome of the answer's status."""
        try:
            headers, body = self._message(delivery)
        except EventError as error:
            return Rejected(f"the event cannot be sent over HTTP: {error}")
        answer = await self._post([delivery], headers, body, _READ)
        if isinstance(answer, Failed):
            return answer
        outcome = self._meaning.outcome(answer.status, answer.headers, answer.body)
        return self._heed([outcome], delivery.subscription)[0] if answer.status == GONE else outcome

    async def deliver_batch(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        """Post the events as one JSON array; in halves if the receiver answers that it is too large."""
        count = len(deliveries)
        try:
            body = encode_batch(delivery.event for delivery in deliveries)
        except EventError as error:
            return shared(Rejected(f"the event cannot be sent over HTTP: {error}"), count)
        attempt = max(each.attempt for each in deliveries)
        headers = {"content-type": BATCH_FORMAT} | self._own_headers(deliveries[0].subscription, attempt)
        headers |= OUTGOING.get() or {}
        answer = await self._post(deliveries, headers, body, _READ_OUTCOMES)
        if isinstance(answer, Failed):
            return [answer] * count
        if answer.status == 413 and count > 1:
            halves = deliveries[: count // 2], deliveries[count // 2 :]
            return [outcome for half in halves for outcome in await self.deliver_batch(half)]
        return self._heed(self._meaning.outcomes(answer, count), deliveries[0].subscription)

    async def _post(
        self, deliveries: Sequence[Delivery], headers: dict[str, str], body: bytes, limit: int
    ) -> Answer | Failed:
        if not self._started:
            raise SinkError("webhook: deliver() before start()")
        if self._consent is not None:
            if (withheld := await self._consent.withheld()) is not None:
                return withheld
            headers |= self._consent.header
        token = None
        try:
            if self._tokens is not None:
                token = await self._tokens.token()
                headers["authorization"] = f"Bearer {token}"
            if self._signer is not None:
                id = message_id([(each.event.source, each.event.id) for each in deliveries])
                headers |= self._signer.headers(id, body)
            answer = await self._client.post(headers, body, limit)
        except NoToken as error:
            return Failed(f"no token: {error}")
        except NoAnswer as error:
            return Failed(f"{self._client.peer}: {error}")
        if answer.status == _UNAUTHORIZED and self._tokens is not None and token is not None:
            self._tokens.refused(token)
        return answer

    def _heed(self, outcomes: Sequence[Outcome], subscription: str) -> Sequence[Outcome]:
        """Pause the subscription if the receiver of one of these outcomes is gone, where that is wanted."""
        if self._pause is not None and any(isinstance(each, Failed) and each.status == GONE for each in outcomes):
            self._pause(subscription, f"HTTP {GONE} of {self._client.peer}")
        return outcomes

    def _message(self, delivery: Delivery) -> tuple[dict[str, str], bytes]:
        own = {**self._own_headers(delivery.subscription, delivery.attempt), **trace_headers(delivery.event)}
        if not self._structured:
            headers, body = to_http(delivery.event)
            headers |= own
            if self._client.head_size(headers) <= self._largest_head:
                return headers, body
        headers, body = to_http_structured(delivery.event)
        return headers | own, body

    def _own_headers(self, subscription: str, attempt: int) -> dict[str, str]:
        headers = {"runner-attempt": str(attempt)}
        if self._meaning.deferred is not None:
            headers["runner-subscription"] = subscription  # an acknowledgement has to name it
        return headers


def _all_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of every request: these, and the defaults."""
    given = {name.lower() for name in headers}
    return {name: value for name, value in _DEFAULTS.items() if name.lower() not in given} | dict(headers)
