"""The deployment as its tables show it: the findings of `runner status`, versions that run side by side, sinks."""

from __future__ import annotations

from collections.abc import Iterator

from ..diagnosis.status import Report, Verdict
from .verdict import Finding, fault, fine, warning

__all__ = ["judge_deployment"]

_INSTANCES = frozenset({"no_live_instance", "stuck_instance", "silent_instance", "deaf"})


def judge_deployment(report: Report) -> Iterator[Finding]:
    """Yield what is wrong with the instances, and with the subscriptions."""
    found = []
    for each in report.findings:
        if each.verdict is Verdict.HEALTHY:
            continue  # a note
        check = "instances" if each.kind in _INSTANCES else "deliveries"
        made = fault if each.verdict is Verdict.DOWN else warning
        measured = f"{each.subject}: {each.cause}" if each.subject and check == "deliveries" else each.cause
        found.append(made(check, each.kind, measured, each.cure, each.subject))
    live = report.snapshot.live if report.snapshot is not None else ()
    versions = sorted({each.instance.version for each in live})
    if len(versions) > 1:
        cure = "bring all instances to one version; two side by side are meant for the time of an upgrade"
        found.append(warning("instances", "versions", f"versions {', '.join(versions)} run side by side", cure))
    yield from found
    checks = {each.check for each in found}
    if "instances" not in checks:
        yield fine("instances", f"{len(live)} alive, version {', '.join(versions)}")
    if "deliveries" not in checks and report.snapshot is not None:
        names = [each for each in report.snapshot.subscriptions if each.active]
        yield fine(
            "deliveries", f"none late, failing or dead, of {len(names)} subscription{'' if len(names) == 1 else 's'}"
        )
