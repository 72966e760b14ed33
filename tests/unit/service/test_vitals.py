"""Whether a process is well: what counts as a fault, and what does not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from runner.service.vitals import INTERVAL, STUCK, Phase, Vitals, faults


@dataclass
class Loop:
    name: str = "claim"
    alive: bool = True
    stalled: float = 0.0


class TestFaults:
    def test_loops_that_go_round_have_none(self) -> None:
        assert faults([Loop(), Loop(stalled=STUCK)], answering=1000.0) == []

    def test_one_that_has_ended_is_one_whatever_the_store_does(self) -> None:
        assert faults([Loop(), Loop("renew", alive=False)], answering=None) == ["renew"]

    def test_a_probe_with_the_third_interval_sees_it(self) -> None:
        """With room for the look of the probe itself: a loop is stuck well within three intervals."""
        assert faults([Loop(stalled=2.5 * INTERVAL)], answering=2.5 * INTERVAL) == ["claim"]

    def test_one_that_hangs_while_the_store_answers(self) -> None:
        assert faults([Loop(stalled=STUCK + 1)], answering=STUCK + 1) == ["claim"]

    @pytest.mark.parametrize("answering", [None, 0.0, STUCK])
    def test_a_loop_that_fails_because_the_store_is_away_is_none(self, answering: float | None) -> None:
        """Nor is one right after it has come back: it has had no time to go round."""
        assert faults([Loop(stalled=1000.0)], answering) == []


class TestVitals:
    def test_only_of_a_process_that_runs_loops_are_judged(self) -> None:
        vitals = Vitals()
        vitals.starting()
        assert (vitals.phase, vitals.faults()) == (Phase.STARTING, [])
        vitals.running([Loop(alive=False)])
        assert (vitals.phase, vitals.faults()) == (Phase.RUNNING, ["claim"])
        vitals.stopping()
        assert (vitals.phase, vitals.faults(), vitals.draining.is_set()) == (Phase.DRAINING, [], True)
        vitals.stopped()
        vitals.starting()
        assert not vitals.draining.is_set()

    def test_the_store_answers_from_its_first_answer_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 0.0
        monkeypatch.setattr("runner.service.vitals.monotonic", lambda: now)
        vitals = Vitals()
        vitals.running([Loop(stalled=1000.0)])
        vitals.answered()
        now = STUCK
        vitals.answered()
        assert vitals.faults() == []
        now = STUCK + 1
        assert vitals.faults() == ["claim"]
        vitals.unanswered()
        assert vitals.faults() == []
