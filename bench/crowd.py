"""Several processes on one backlog."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE, create_subprocess_exec
from dataclasses import asdict
from typing import Any

from .backlog import batches, until
from .contenders.base import Contender, Place

__all__ = ["crowd", "member"]


async def crowd(subject: Contender, place: Place, *, events: int, processes: int) -> dict[str, Any]:
    """Publish a backlog, let `processes` processes loose on it; from the first delivery until all are on record."""
    await subject.prepare()
    async with subject.session() as session:
        for batch in batches(events):
            await session.publish_many(batch)
    spec = json.dumps({"measure": "member", "place": asdict(place)})
    command = (sys.executable, "-m", "bench.trial", spec)
    members = [await create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE) for _ in range(processes)]
    try:
        await _each(members, b"ready")
        for member in members:
            assert member.stdin is not None
            member.stdin.write(b"go\n")
        await until(subject.idle, every=0.005)
        ended = time.monotonic()
        answers = [await _answer(member) for member in members]
    finally:
        for member in members:
            if member.returncode is None:
                member.kill()
    delivered = sum(answer["count"] for answer in answers)
    if delivered != events or (await subject.counts()).delivered != events:
        raise SystemExit(f"expected {events} deliveries, {delivered} were handled")
    began = min(answer["began"] for answer in answers if answer["count"])
    return {"rate": events / (ended - began)}


async def member(subject: Contender, place: Place) -> dict[str, Any]:
    """Work from the word go until standard input ends."""
    began, count = 0.0, 0

    def handler(data: bytes) -> None:
        nonlocal began, count
        if not count:
            began = time.monotonic()
        count += 1

    loop = asyncio.get_running_loop()
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    async with subject.session(handler):
        await loop.run_in_executor(None, sys.stdin.read)
    return {"began": began, "count": count}


async def _answer(member: asyncio.subprocess.Process) -> dict[str, Any]:
    """Let a member end, and return what it did."""
    assert member.stdin is not None
    member.stdin.close()
    said, _ = await asyncio.wait_for(member.communicate(), 60)
    answer: dict[str, Any] = json.loads(said.splitlines()[-1])
    return answer


async def _each(members: list[asyncio.subprocess.Process], line: bytes) -> None:
    """Return when every member has said `line`."""
    for member in members:
        assert member.stdout is not None
        said = await asyncio.wait_for(member.stdout.readline(), 30)
        if said.strip() != line:
            raise SystemExit(f"expected {line!r} of a process, got {said!r}")
