"""
The meaning of an answer: of its status alone, never of its text.

    2xx                           accepted
    400 410 413 415 422 431       rejected: the receiver will say the same of this event again
    everything else               failed, tried again: 5xx, 408, 425, 429; but also 401, 403, 404, 405 and
                                  redirects, which say that one side is wrongly deployed or configured
                                  now, and nothing about the event

Further statuses may reject, a 202 may say that the receiver acknowledges the delivery itself, and a 410 that it wants
nothing any more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import orjson

from ...delivery import ACCEPTED, Accepted, Deferred, Failed, Outcome, Rejected
from ...service.clock import utcnow
from .answer import Answer

__all__ = ["GONE", "Meaning", "retry_after", "shared"]

GONE = 410

_REJECTED = frozenset({400, GONE, 413, 415, 422, 431})
_ASKS_TO_WAIT = frozenset({429, 503})
_LONGEST_WAIT = 10**9  # seconds; the retry policy has a limit of its own, this one keeps the arithmetic in range
_LONGEST_DATE = 40  # characters; those of RFC 9110 §5.6.7 have 33 at most
_EXCERPT = 512  # characters of an answer that are kept
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Meaning:
    """Meaning of the answers of one receiver."""

    def __init__(
        self,
        *,
        permanent: Iterable[int] = (),
        deferred: timedelta | None = None,
        gone_rejects: bool = True,
        excerpts: bool = True,
    ) -> None:
        """
        Take the choices of a sink.

        Args:
            permanent: further statuses that reject an event for good.
            deferred: how long the receiver has to acknowledge what it answers with 202; None if 202 is a success.
            gone_rejects: whether a 410 is about the event, which is rejected then, or else about the receiver.
            excerpts: whether the beginning of an answer is kept; not if the author of the destination could read it.
        """
        self.deferred = None if deferred is None else Deferred(deferred)
        self._excerpts = excerpts
        self._rejected = _REJECTED.union(permanent) - (frozenset() if gone_rejects else {GONE})

    def outcome(self, status: int, headers: Mapping[str, str], beginning: bytes) -> Outcome:
        """Return what an answer with this status means; `beginning` is what is kept of its body."""
        if status == 202 and self.deferred is not None:
            return self.deferred
        if 200 <= status < 300:
            return ACCEPTED
        excerpt = _CONTROL.sub("\ufffd", beginning.decode(errors="replace")[:_EXCERPT]) or None
        excerpt = excerpt if self._excerpts else None
        named = f"HTTP {status}{' (gone)' if status == GONE else ''}"
        if status in self._rejected:
            return Rejected(named, status, excerpt)
        if 300 <= status < 400:
            return Failed(f"{named}: redirects are not followed, the sink's url has to change", None, status, excerpt)
        wait = retry_after(headers) if status in _ASKS_TO_WAIT else None
        return Failed(named, wait, status, excerpt)

    def outcomes(self, answer: Answer, count: int) -> list[Outcome]:
        """
        Return what an answer says of each event of a batch: one status for all, or in JSON a status for each.

        `{"outcomes": [200, 422, {"status": 503, "retry_after": 30, "reason": "busy"}]}`, in the order of the batch;
        each means what it would mean as the status of the answer to that event alone.
        """
        outcome = self.outcome(answer.status, answer.headers, answer.body)
        if not isinstance(outcome, Accepted | Deferred) or not _is_json(answer):
            return shared(outcome, count)
        if not answer.complete:
            return [Failed("the answer to a batch was cut off")] * count
        try:
            document = orjson.loads(answer.body) if answer.body.strip() else None
            given = document.get("outcomes") if isinstance(document, dict) else None
            outcomes: list[Outcome] = [outcome] * count if given is None else [self._told(each) for each in given]
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
        headers = {} if wait is None else {"retry-after": _plain(wait)}
        return self.outcome(status, headers, _plain(fields.get("reason") or "").encode())


def _plain(value: object) -> str:
    """Return a scalar as text. Raise `ValueError` for what is nested, perhaps too deeply to be written."""
    if isinstance(value, list | dict):
        raise ValueError("expected text or a number")
    return str(value)


def shared(outcome: Outcome, count: int) -> list[Outcome]:
    """Return the outcomes of a batch with a single answer; reject none of several, since one may be at fault."""
    if count > 1 and isinstance(outcome, Rejected):
        reason = f"{outcome.reason}, for a batch of {count}: each is tried alone"
        outcome = Failed(reason, None, outcome.status, outcome.excerpt)
    return [outcome] * count


def _is_json(answer: Answer) -> bool:
    return answer.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


def retry_after(headers: Mapping[str, str]) -> timedelta | None:
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
