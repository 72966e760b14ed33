from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.storage import stretches
from runner.storage.stretches import Stretches

MOST = stretches._MOST
times = st.sampled_from([0.0, 0.03, 0.15, 1.0])


@given(st.integers(0, 10**7), st.integers(0, 3 * 10**7), st.booleans(), st.lists(times, min_size=1))
def test_every_seq_is_looked_at_once_and_in_order(
    first: int, length: int, newest_first: bool, took: list[float]
) -> None:
    last = first + length - 1
    cut, seen = Stretches(first, last, newest_first=newest_first), 0
    expected = last if newest_first else first
    while cut.left:
        low, high = cut.next()
        assert first <= low <= high <= last
        assert high - low < MOST
        near, far = (high, low) if newest_first else (low, high)
        assert near == expected
        expected = far - 1 if newest_first else far + 1
        cut.looked_through(far, took[seen % len(took)])
        seen += 1
    assert expected == (first - 1 if newest_first else last + 1)


def test_what_was_looked_through_in_part_is_gone_on_with() -> None:
    cut = Stretches(1, 100, newest_first=True)
    assert cut.next() == (1, 100)
    cut.looked_through(40, 0.0)
    assert cut.next() == (1, 39)
    cut = Stretches(1, 100, newest_first=False)
    cut.looked_through(40, 0.0)
    assert cut.next() == (41, 100)


@pytest.mark.parametrize(("seconds", "longer"), [(0.0, True), (0.15, None), (1.0, False)])
def test_the_next_one_is_as_long_as_the_time_of_the_last_one_allows(seconds: float, longer: bool | None) -> None:
    cut = Stretches(1, 10**9, newest_first=False)
    for _ in range(2):
        cut.looked_through(cut.next()[1], 0.05)
    before = _length(cut)
    cut.looked_through(cut.next()[1], seconds)
    after = _length(cut)
    assert (after > before, after < before) == ((longer is True), (longer is False))


def _length(cut: Stretches) -> int:
    first, last = cut.next()
    return last - first + 1
