from __future__ import annotations

from datetime import timedelta
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.storage.contract.claims import ClaimedDelivery, DeliveryClaim, RegulatedRequest
from runner.storage.regulation import RegulatedScan
from runner.worker.look import Look

HOUR = timedelta(hours=1)
PAGE = 3
LEASE = 30.0


class Lines:
    """Lines whose first deliveries are due at certain times, and a store that visits a few of them in a claim."""

    def __init__(self, due: list[int]) -> None:
        self.due = {f"={chr(97 + n)}": second for n, second in enumerate(due)}
        self.visited: list[str] = []

    def claim(self, look: Look, now: float, quota: int = 100) -> DeliveryClaim:
        asked = RegulatedRequest(1, quota, ordered=True, rate=None, after=look.after, since=look.since)
        keys = sorted(key for key in self.due if key > asked.after)
        page, found, left_off = keys[:PAGE], list[str](), None
        for key in page:
            if len(found) < quota:
                self.visited.append(key)
                left_off = key
                if self.due[key] <= now:
                    found.append(key)
        to_come = [self.due[key] - now for key in page if self.due[key] > now]
        ended = len(page) < PAGE and len(found) < quota
        due = timedelta(seconds=min(to_come)) if to_come else None
        scan = RegulatedScan(quota, None if ended else left_off, False, None, due)
        claimed: list[ClaimedDelivery] = [None] * len(found)  # type: ignore[list-item]  # only counted
        return scan.claim(asked, 1, claimed)


@given(st.lists(st.integers(1, 100), max_size=20), st.sampled_from(["", "=a", "=e", "=k", "=z"]))
def test_a_look_without_a_find_goes_round_once_and_knows_when_the_first_is_due(due: list[int], after: str) -> None:
    lines, look = Lines(due), Look()
    look.after = look.since = after
    claims = 0
    while look.left(0.0) <= 0 and claims < 100:
        look.begin(LEASE)
        look.end(lines.claim(look, 0.0), 0.0, full=False)
        claims += 1
    assert set(lines.visited) == set(lines.due)
    assert claims <= ceil(len(due) / PAGE) + 2
    assert look.left(0.0) == min([LEASE, *due])
    assert look.idle == (not due)


def test_a_due_time_of_an_earlier_claim_is_kept() -> None:
    lines, look = Lines([5, 90, 90, 90]), Look()
    look.begin(LEASE)
    look.end(lines.claim(look, 0.0), 0.0, full=False)
    look.begin(40.0)
    look.end(lines.claim(look, 10.0), 10.0, full=False)  # it has become due meanwhile
    assert look.left(10.0) == 0


def test_what_is_written_while_it_goes_on_begins_another() -> None:
    lines, look = Lines([90] * 7), Look()
    look.begin(LEASE)
    look.end(lines.claim(look, 0.0), 0.0, full=False)
    look.stir()
    lines.visited.clear()
    while look.left(0.0) <= 0:
        look.begin(LEASE)
        look.end(lines.claim(look, 0.0), 0.0, full=False)
    assert set(lines.visited) == set(lines.due)


def test_what_is_written_while_it_asks_is_not_forgotten() -> None:
    look = Look()
    look.begin(LEASE)
    look.stir()
    look.end(DeliveryClaim(1, (), HOUR), 0.0, full=False)
    assert look.left(0.0) == 0


@pytest.mark.parametrize("found", [True, False])
def test_the_longer_others_are_held_up_the_later_it_looks_again(found: bool) -> None:
    look, now, pauses = Look(), 100.0, []
    claimed: list[ClaimedDelivery] = [None] * found  # type: ignore[list-item]  # only counted
    while now < 160.0:
        look.begin(now + LEASE)
        look.end(DeliveryClaim(1, claimed, held_up=True), now, full=False)
        pauses.append(look.left(now))
        now += pauses[-1]
    assert pauses[0] == pytest.approx(0.025)
    assert max(pauses) == pytest.approx(0.025 if found else 1.0)
    assert found or len(pauses) < 100
