from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runner.storage.base import UnreadableWork
from runner.storage.runs import runs

GROUPS: list[tuple[int, ...]] = [(), (2, 3)]


@st.composite
def _claims(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, ...]]]:
    """Positions in any order (those of events that cannot be read come last), and who got each."""
    positions = draw(st.lists(st.integers(1, 10), unique=True))
    return positions, [draw(st.sampled_from(GROUPS)) for _ in positions]


@given(_claims())
def test_runs_hold_each_work_once_with_its_subscriptions_and_nothing_else(
    claim: tuple[list[int], list[tuple[int, ...]]],
) -> None:
    positions, delivered = claim
    works = [UnreadableWork(position, 1, position, None, "") for position in positions]
    firsts, lasts, froms, tos, ids = runs(works, delivered)
    found = [
        (position, tuple(ids[start - 1 : end]))
        for first, last, start, end in zip(firsts, lasts, froms, tos, strict=True)
        for position in range(first, last + 1)
    ]
    assert sorted(found) == sorted(zip(positions, delivered, strict=True))


def test_works_in_a_row_that_went_to_the_same_are_one_run() -> None:
    everyone = (7, 8)
    works = [UnreadableWork(position, 1, position, None, "") for position in range(100, 600)]
    assert runs(works, [everyone] * 500) == ([100], [599], [1], [2], [7, 8])
