from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runner.operations.cursor import Cursor


def see(cursor: Cursor, *numbers: int, writers: str = "", now: float = 100.0) -> list[int]:
    """Look once, while `numbers` are visible; return what is new."""
    cursor.look(list(writers))
    wanted = [*cursor.gaps, (cursor.newest + 1, 10**9)]
    visible = [number for number in numbers if any(first <= number <= last for first, last in wanted)]
    fresh = [number for number in visible if cursor.fresh(number, now)]
    cursor.forget_gaps(now)
    return fresh


def test_numbers_in_order_leave_no_gap() -> None:
    cursor = Cursor(10)
    assert see(cursor, 11, 12, 13) == [11, 12, 13]
    assert (cursor.newest, cursor.gaps) == (13, [])


def test_a_gap_stays_while_a_writer_is_left_that_may_fill_it() -> None:
    cursor = Cursor(0)
    assert see(cursor, 2, writers="a") == [2]
    for now in (101.0, 103.0, 3600.0):
        assert see(cursor, 2, writers="abc", now=now) == []
    assert cursor.gaps == [(1, 1)]
    assert see(cursor, 1, 2, writers="c", now=3601.0) == [1]
    assert cursor.gaps == []


def test_a_gap_that_nobody_can_fill_any_more_is_forgotten() -> None:
    cursor = Cursor(0)
    see(cursor, 2, 5, writers="ab")
    see(cursor, 2, 5, writers="ab", now=103.0)
    see(cursor, 2, 5, writers="b", now=104.0)
    assert cursor.gaps == [(1, 1), (3, 4)]
    see(cursor, 2, 5, writers="c", now=105.0)  # who began later has later numbers
    assert cursor.gaps == []


def test_a_writer_that_ends_between_the_look_and_the_read_is_not_missed() -> None:
    cursor = Cursor(0)
    see(cursor, 2, writers="")  # the gap is seen after the look, its writer may have begun since
    assert see(cursor, 1, 2, writers="", now=200.0) == [1]


def test_without_writers_a_gap_is_kept_for_as_long_as_patience_lasts() -> None:
    cursor = Cursor(0, patience=2)
    see(cursor, 2, now=100.0)
    see(cursor, 2, now=101.9)
    assert cursor.gaps == [(1, 1)]
    see(cursor, 2, now=102.0)
    assert cursor.gaps == []


def test_a_prepared_transaction_has_another_id_than_before() -> None:
    cursor = Cursor(0)
    cursor.fresh(2, 100.0)
    for writers in (["3/17"], ["-1/745"], ["-1/745", "4/2"]):
        cursor.look(writers)
        cursor.forget_gaps(200.0)
        assert cursor.gaps == [(1, 1)]
    cursor.look(["4/2"])
    cursor.forget_gaps(200.0)
    assert cursor.gaps == []


def test_too_many_gaps_are_given_up_from_the_oldest_on_and_counted() -> None:
    cursor = Cursor(0)
    for number in range(2, 2 * 510 + 1, 2):
        cursor.fresh(number, 100.0)
    assert cursor.forget_gaps(100.0) == 10
    assert cursor.gaps[0] == (21, 21)


@given(st.permutations(range(1, 30)), st.integers(1, 5))
def test_each_number_is_fresh_exactly_once_however_late_it_comes(order: list[int], size: int) -> None:
    """Numbers become visible in any order, a few between two looks; who has yet to commit is a writer."""
    cursor = Cursor(0, patience=0)
    visible: set[int] = set()
    printed: list[int] = []
    for start in range(0, len(order), size):
        writers = [str(number) for number in order[start:]]
        cursor.look(writers)
        visible |= set(order[start : start + size])
        wanted = [*cursor.gaps, (cursor.newest + 1, 10**9)]
        found = [number for number in sorted(visible) if any(first <= number <= last for first, last in wanted)]
        printed += [number for number in found if cursor.fresh(number, start)]
        cursor.forget_gaps(start)
    assert sorted(printed) == sorted(order)


def test_the_safe_number_lags_behind_the_first_gap() -> None:
    cursor = Cursor(4)
    assert cursor.safe == 4
    see(cursor, 5, 7, 9, writers="ab")
    assert cursor.safe == 5
    see(cursor, 6, writers="b")
    assert cursor.safe == 7
    see(cursor, writers="", now=200.0)
    assert cursor.safe == 9


def test_gaps_that_others_found_are_watched_besides_the_known_ones() -> None:
    cursor = Cursor(10)
    see(cursor, 12, 15, writers="a")
    cursor.expect([(3, 4), (8, 14), (13, 13)], 100.0)
    assert cursor.gaps == [(3, 4), (8, 10), (11, 11), (12, 12), (13, 14)]
    assert cursor.safe == 2
    assert see(cursor, 3, 9, writers="a") == [3, 9]
    see(cursor, writers="b", now=200.0)
    see(cursor, writers="", now=200.0)
    assert cursor.gaps == []
    assert cursor.safe == 15


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 9))), st.sets(st.integers(1, 60)))
def test_no_gap_is_watched_twice(given: list[tuple[int, int]], visible: set[int]) -> None:
    cursor = Cursor(0)
    see(cursor, *sorted(visible), writers="a")
    for first, size in given:
        cursor.expect([(first, first + size)], 100.0)
    watched = [number for first, last in cursor.gaps for number in range(first, last + 1)]
    assert len(watched) == len(set(watched))
    assert {number for first, size in given for number in range(first, first + size + 1)} <= set(watched)
