"""The tally: sources are bounded, and schedules leave room for others."""

from __future__ import annotations

from runner.service.tally import OTHER, Tally


def test_hundreds_of_schedules_leave_room_for_publishers() -> None:
    tally = Tally()
    tally.add_ticks(f"/schedules/{number}" for number in range(300))
    tally.add_published(["/shop"], 0.001)
    assert (len(tally.published), tally.published[OTHER], tally.published["/shop"]) == (52, 250, 1)
    tally.add_ticks(["/schedules/0", "/schedules/299"])
    assert (tally.published["/schedules/0"], tally.published[OTHER]) == (2, 251)
    assert tally.publish.count == 1  # nobody waited for the others


def test_a_schedule_is_expected_once() -> None:
    tally = Tally()
    tally.add_missed("nightly", 3)
    tally.expect_schedules(["nightly", "pulse"])
    assert tally.schedules_missed == {"nightly": 3, "pulse": 0}
