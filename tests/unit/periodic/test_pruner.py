"""The pruner walks to the first event that is too young, rests, and begins anew in time."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from time import monotonic

import pytest

from runner.periodic.pruner import Pruner
from runner.storage.contract.archive import Pruned, Retention
from tests.support.eventually import eventually

WEEK = Retention(delivered=timedelta(days=7), dead=timedelta(days=90))
SOON = timedelta(milliseconds=1)


class Archive:
    """Events from 1 on, of which some are over and the last one is too young."""

    def __init__(self, over: set[int], last: int) -> None:
        self.over = over
        self.last = last
        self.asked: list[int] = []
        self.failures = 0

    async def prune(self, retention: Retention, after: int, limit: int, *, dry_run: bool = False) -> Pruned:
        self.asked.append(after)
        if self.failures:
            self.failures -= 1
            raise RuntimeError("away")
        page = range(after + 1, min(after + limit, self.last - 1) + 1)
        return Pruned(len(self.over & set(page)), after + len(page), len(page) < limit)


async def test_a_run_adds_up_its_pages() -> None:
    archive, reported = Archive({1, 2, 5}, last=8), list[int]()
    assert await Pruner(archive, WEEK, page=3).run(report=reported.append) == 3
    assert archive.asked == [0, 3, 6]
    assert reported == [2, 1, 0]


async def test_passes_go_on_where_the_last_one_ended() -> None:
    archive = Archive(set(), last=8)
    pruner = Pruner(archive, WEEK, every=SOON, page=3)
    await pruner.start()
    await eventually(lambda: len(archive.asked) >= 6)
    await pruner.stop()
    assert archive.asked[:6] == [0, 3, 6, 7, 7, 7]


async def test_a_whole_pass_comes_after_a_tenth_of_the_shortest_retention() -> None:
    archive = Archive(set(), last=8)
    pruner = Pruner(archive, Retention(dead=timedelta(milliseconds=20)), every=SOON, page=10)
    await pruner.start()
    await eventually(lambda: archive.asked.count(0) >= 3)
    await pruner.stop()


async def test_a_page_that_fails_is_tried_again() -> None:
    archive = Archive({1}, last=3)
    archive.failures = 2
    pruner = Pruner(archive, WEEK, every=SOON)
    await pruner.start()
    await eventually(lambda: len(archive.asked) >= 4)
    await pruner.stop()
    assert archive.asked[:4] == [0, 0, 0, 2]


async def test_a_pass_of_many_pages_is_not_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page is a sign of life: a pass over millions of events takes longer than a step may hang."""
    archive, seen = Archive(set(), last=50), list[float]()
    pruner = Pruner(archive, WEEK, every=SOON, page=1)

    async def page(*arguments: object, **options: bool) -> Pruned:
        await asyncio.sleep(0.002)
        seen.append(pruner.loop.stalled)
        return await Archive.prune(archive, WEEK, archive.asked[-1] + 1 if archive.asked else 0, 1)

    monkeypatch.setattr(archive, "prune", page)
    began = monotonic()
    await pruner.start()
    await eventually(lambda: len(seen) >= 40)
    took = monotonic() - began
    await pruner.stop()
    assert sorted(seen)[20] < took / 5


async def test_what_is_kept_for_ever_is_not_looked_at() -> None:
    archive = Archive({1}, last=3)
    pruner = Pruner(archive, Retention(), every=SOON)
    await pruner.start()
    assert pruner.loop._task is None
    await pruner.stop()
