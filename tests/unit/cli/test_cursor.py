from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runner.cli.cursor import Cursor


def test_numbers_in_order_are_passed_at_once() -> None:
    cursor = Cursor(10)
    assert [cursor.fresh(number, 0) for number in (11, 12, 13)] == [True, True, True]
    cursor.advance(0)
    assert cursor.after == 13


def test_a_gap_is_read_again_until_patience_ends() -> None:
    cursor = Cursor(0, patience=2)
    cursor.fresh(2, 100)
    cursor.advance(101.9)
    assert cursor.after == 0
    assert not cursor.fresh(2, 101.9)
    cursor.advance(102)
    assert cursor.after == 2
    assert not cursor.fresh(1, 102)


def test_old_gaps_are_given_up_together() -> None:
    cursor = Cursor(0, patience=2)
    for number in (3, 6, 9):
        cursor.fresh(number, 0)
    cursor.advance(2)
    assert cursor.after == 9


@given(st.permutations(range(1, 30)), st.integers(1, 5))
def test_each_number_that_comes_in_time_is_fresh_exactly_once(order: list[int], size: int) -> None:
    """Numbers become visible in any order, a few between two looks; every look reads all visible ones."""
    cursor = Cursor(0, patience=1000)
    visible: set[int] = set()
    printed: list[int] = []
    for look, start in enumerate(range(0, len(order), size)):
        visible |= set(order[start : start + size])
        printed += [number for number in sorted(visible) if number > cursor.after and cursor.fresh(number, look)]
        cursor.advance(look)
    assert sorted(printed) == sorted(order)
    assert cursor.after == max(order)
