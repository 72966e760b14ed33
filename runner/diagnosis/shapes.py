"""The JSON forms of a diagnosis, shared by `runner status --json` and `/status`."""

from __future__ import annotations

from typing import Any

from ..storage.contract.records import EventView
from .matching import Clause
from .status import Finding, Report, Snapshot, Subscribed
from .why import Answer

__all__ = ["answer_json", "clause_json", "report_json"]


def report_json(report: Report) -> dict[str, Any]:
    """
    Return a report; rates are per second, durations in seconds. Only the verdict if the store cannot be reached.

    `store` says whether it can be reached, `tables` whether they are at head; null if that is unknown.
    """
    seen = report.snapshot
    store = not any(each.kind == "store_away" for each in report.findings)
    return {
        "verdict": report.verdict.name.lower(),
        "exit_code": int(report.verdict),
        "store": store,
        "tables": seen is not None if store else None,
        "findings": [_finding(each) for each in report.findings],
        **({} if seen is None else _snapshot(seen)),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "verdict": "note" if not finding.verdict else finding.verdict.name.lower(),
        "kind": finding.kind,
        "subject": finding.subject or None,
        "cause": finding.cause,
        "cure": finding.cure,
    }


def _snapshot(seen: Snapshot) -> dict[str, Any]:
    queue = seen.queue
    return {
        "at": seen.now,
        "instances": {
            "alive": len(seen.live),
            "stuck": sum(each.state == "stuck" for each in seen.live),
            "silent": len(seen.instances) - len(seen.live),
        },
        "strategies": [
            {"instance": each.instance.id, **strategy._asdict()}
            for each in seen.live
            for strategy in each.strategies or ()
        ],
        "queue": {
            "queued": queue.queued,
            "oldest_at": queue.oldest_at,
            "scheduled": queue.scheduled,
            "next_at": queue.next_at,
            "rate_in": round(seen.rate_in, 3),
            "rate_published": round(seen.rate_published, 3),
        },
        "subscriptions": [_subscribed(each, seen) for each in seen.subscriptions],
    }


def _subscribed(each: Subscribed, seen: Snapshot) -> dict[str, Any]:
    drain, flow = seen.drain(each), each.flow
    ratio = flow.success_ratio
    return {
        "name": each.name,
        "state": each.state,
        "served": each.served,
        "backlog": each.backlog,
        "exact": each.exact,
        "undispatched": each.undispatched,
        "pending": each.load.pending,
        "leased": each.load.leased,
        "dead": each.load.dead,
        "oldest_at": each.oldest_at,
        "failing_since": each.failing_since,
        "last_success": each.recent.last_success,
        "last_failure": each.recent.last_failure,
        "last_error": each.recent.last_error,
        "rate_in": None if each.rate_in is None else round(each.rate_in, 3),
        "rate_out": round(each.rate(seen.now), 3),
        "drain": None if drain is None else round(drain.total_seconds(), 3),
        "success_ratio": None if ratio is None else round(ratio, 4),
        **{f"latency_p{share}": _seconds(flow.latency.quantile(share / 100)) for share in (50, 95, 99)},
    }


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def answer_json(event: EventView, subscription: str, answer: Answer) -> dict[str, Any]:
    """Return why an event is not delivered; `failing` is null if it matches."""
    return {
        "seq": event.seq,
        "source": event.event.source,
        "id": event.event.id,
        "type": event.event.type,
        "subscription": subscription,
        "state": answer.state,
        "attempts": answer.attempts,
        "matched": answer.failing is None,
        "failing": clause_json(answer.failing),
        "version": answer.version,
        "written_at": answer.written_at,
        "reasons": [
            {"kind": each.kind, "cause": each.cause, "until": each.until, "cure": each.cure or None}
            for each in answer.reasons
        ],
    }


def clause_json(clause: Clause | None) -> dict[str, Any] | None:
    """Return the clause that fails."""
    if clause is None:
        return None
    return {"clause": clause.clause, "expected": clause.expected, "actual": clause.actual}
