"""`/reload`: have this process take the file as it is now."""

from __future__ import annotations

from typing import Any

from ..operations.reloading import Reload
from .endpoints import Call, Endpoint, flag
from .problems import Problem

__all__ = ["ENDPOINTS"]

_PROBLEMS = {
    "faulty": (422, "invalid-configuration", "the file has faults; the process goes on with the one it had"),
    "needs-restart": (409, "needs-restart", "something in the file takes a restart; nothing of it is in use"),
    "no-file": (409, "no-file", "the configuration was made in a program; there is no file to read"),
    "not-running": (409, "not-running", "the process starts or drains; nothing was read"),
    "store": (503, "store-unavailable", "the store does not take what is in the file; the same again is safe"),
}


async def _reload(call: Call) -> dict[str, Any]:
    dry_run = call.query.get("dry_run", False)
    async with call.operations.audit.action("config.reload", recorded=not dry_run) as entry:
        done = await call.surface.process.reloading.reload("http", dry_run=dry_run)
        changes = [each.to_json() for each in done.difference.changes]
        if done.outcome == "reloaded":
            entry.touched = len(changes)
        else:
            entry.refusal = "; ".join([done.reason, *done.faults])
    if done.outcome != "reloaded":
        raise _problem(done, changes)
    return {"digest": done.digest, "dry_run": dry_run, "changes": changes}


def _problem(done: Reload, changes: list[dict[str, Any]]) -> Problem:
    status, name, detail = _PROBLEMS[done.reason]
    headers = {"retry-after": "1"} if status == 503 else None
    return Problem(status, name, detail, headers=headers, faults=list(done.faults), changes=changes)


ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/reload",
        need="admin",
        summary="Read the configuration file again, and use what it says: all of it, or nothing.",
        answer="Reloaded",
        handle=_reload,
        query={"dry_run": flag("Only say what would change.")},
        errors=(409, 422, 503),
    ),
)
