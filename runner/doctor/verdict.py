"""The result of an examination: findings, the verdict on all of them, their JSON form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..errors import ConfigError, StorageUnavailable
from ..log.redaction import redacted

__all__ = ["Finding", "Level", "exit_code", "fault", "findings_json", "fine", "skipped", "warning"]


class Level(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"
    SKIPPED = "skipped"  # it was not run, for a reason that another finding gives


@dataclass(frozen=True, slots=True)
class Finding:
    """
    The result of one check.

    Attributes:
        check: the name of the check, such as `clock`.
        measured: the value, and what is wrong with it.
        cure: what to do; empty where nothing is wrong.
        kind: a stable name of what is wrong, such as `fsync_off`; empty where nothing is.
        subject: the sink, table or the like that it is about; empty for the whole.
    """

    level: Level
    check: str
    measured: str
    cure: str = ""
    kind: str = ""
    subject: str = ""


def fine(check: str, measured: str) -> Finding:
    """Return the finding of a check that found nothing wrong."""
    return Finding(Level.OK, check, measured)


def warning(check: str, kind: str, measured: str, cure: str, subject: str = "") -> Finding:
    """Return a warning: a risk, or a cost in latency."""
    return Finding(Level.WARNING, check, measured, cure, kind, subject)


def fault(check: str, kind: str, measured: str, cure: str, subject: str = "") -> Finding:
    """Return a fault: it loses events or stops deliveries, or soon will."""
    return Finding(Level.FAULT, check, measured, cure, kind, subject)


def skipped(check: str, why: str) -> Finding:
    """Return the finding of a check that could not be run."""
    return Finding(Level.SKIPPED, check, why)


_BAD_FILE = frozenset({"invalid", "foreign"})


def exit_code(findings: Sequence[Finding], *, allow_warnings: bool = False) -> int:
    """
    Return the exit code: 0 healthy, 1 not, 69 if the database cannot be reached, 78 if the configuration is wrong.

    Args:
        allow_warnings: count warnings as healthy.
    """
    faults = {each.kind for each in findings if each.level is Level.FAULT}
    if faults & _BAD_FILE:
        return ConfigError.exit_code
    if "unreachable" in faults:
        return StorageUnavailable.exit_code
    bad = faults or (not allow_warnings and any(each.level is Level.WARNING for each in findings))
    return 1 if bad else 0


def findings_json(findings: Sequence[Finding], *, allow_warnings: bool = False) -> dict[str, Any]:
    """Return the whole examination; `verdict` is that of the worst finding."""
    levels = {each.level for each in findings}
    worst = next((each for each in (Level.FAULT, Level.WARNING) if each in levels), Level.OK)
    return {
        "verdict": str(worst),
        "exit_code": exit_code(findings, allow_warnings=allow_warnings),
        "checks": [
            {
                "check": each.check,
                "verdict": str(each.level),
                "kind": each.kind or None,
                "subject": each.subject or None,
                "measured": redacted(each.measured),
                "cure": redacted(each.cure) or None,
            }
            for each in findings
        ],
    }
