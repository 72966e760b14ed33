from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import StorageLocked, StorageRefused, StorageUnavailable
from runner.storage.halves import in_halves


@given(
    count=st.integers(0, 70),
    refused=st.sets(st.integers(0, 69), max_size=5),
    locked=st.sets(st.integers(0, 69), max_size=3),
)
def test_all_but_what_is_refused_or_held_is_written_once(count: int, refused: set[int], locked: set[int]) -> None:
    written: list[int] = []
    waits = 0

    async def write(some: Sequence[int]) -> Sequence[int]:
        nonlocal waits
        if locked.intersection(some):
            waits += 1
            raise StorageLocked("another session")
        if refused.intersection(some):
            raise StorageRefused("not this one")
        written.extend(some)
        return some

    answers, apart = asyncio.run(in_halves(range(count), write))
    bad = (refused | locked) & set(range(count))
    left = [item for item, _ in apart]
    assert answers == written == [each for each in range(count) if each not in left]
    assert bad <= set(left)
    assert all(isinstance(error, StorageLocked) or item in refused for item, error in apart)
    if not any(each + 1 in locked for each in locked):  # else what is behind them may have been given up
        assert left == sorted(bad)
    # Who waits for a lock waits for it twice: with all the others that are left, and alone.
    assert waits <= 2 * len(locked) + sum(each in range(count) for each in refused)


async def test_where_all_of_it_is_held_two_are_tried_alone_and_the_rest_is_given_up() -> None:
    tried: list[Sequence[int]] = []

    async def write(some: Sequence[int]) -> Sequence[int]:
        tried.append(some)
        raise StorageLocked("a lock on the table")

    written, locked = await in_halves(range(512), write)
    assert tried == [range(512), range(1), range(1, 2)]
    assert written == []
    assert [item for item, _ in locked] == list(range(512))
    assert all(isinstance(error, StorageLocked) for _, error in locked)


async def test_few_writes_find_the_one_among_many() -> None:
    writes = 0

    async def write(some: Sequence[int]) -> Sequence[int]:
        nonlocal writes
        writes += 1
        if 17 in some:
            raise StorageRefused("not this one")
        return some

    await in_halves(range(512), write)
    assert writes == 19


async def test_what_is_wrong_with_all_of_it_is_not_looked_for_in_each() -> None:
    writes = 0

    async def write(some: Sequence[int]) -> Sequence[int]:
        nonlocal writes
        writes += 1
        raise StorageUnavailable("no server")

    with pytest.raises(StorageUnavailable):
        await in_halves(range(512), write)
    assert writes == 1
