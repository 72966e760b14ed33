"""The checker sees what it is there for; without that, no case means anything."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from .checker import Row, Tables, Verdict, judge
from .deployment import Subscriber
from .journals import Journal, Pen, Publishing, Sighting
from .publisher import Plan
from .report import publish
from .trial import Outcome, Trial, Violation

INVOKE = Publishing("e1", "load", "invoke", 10.0, "hash")
OK = Publishing("e1", "load", "ok", 11.0)
BEGUN = Sighting("e1", "work", 1, "begun", 12.0, 7, "hash")
ACCEPTED = replace(BEGUN, step="accepted", at=12.5)
TABLES = Tables(Counter(["e1"]), {("e1", "work"): Row("delivered", 1)})


def check(
    publishings: tuple[Publishing, ...] = (INVOKE, OK),
    sightings: tuple[Sighting, ...] = (BEGUN, ACCEPTED),
    tables: Tables = TABLES,
    prefix: str = "",
    faults: tuple[float, ...] = (),
) -> Verdict:
    return judge(publishings, sightings, tables, {"work": prefix}, faults=faults)


def test_all_is_well() -> None:
    verdict = check()
    assert (verdict.published, verdict.delivered, verdict.unknown) == (1, 1, 0)
    assert not verdict.lost + verdict.unexpected + verdict.untrue
    assert verdict.duplicated == 0


def test_what_was_acknowledged_and_is_gone_is_lost() -> None:
    assert check(tables=Tables(Counter(), {}), sightings=()).lost
    assert check(sightings=(BEGUN,)).lost == ["e1 for work: never accepted; the store says delivered"]
    assert check(tables=replace(TABLES, deliveries={})).lost == ["e1 for work: accepted, but the store says nothing"]
    assert check(tables=replace(TABLES, work=1)).lost == ["1 rows of work and 0 leases are left"]
    assert not check(sightings=(), tables=replace(TABLES, deliveries={("e1", "work"): Row("dead", 20, "no")})).lost


def test_what_got_no_answer_may_be_there_or_not_and_is_delivered_if_it_is() -> None:
    unknown = replace(OK, step="unknown")
    assert not check((INVOKE, unknown), (), Tables(Counter(), {})).lost
    assert check((INVOKE, unknown), (), replace(TABLES, deliveries={})).lost
    assert check((INVOKE, unknown)).published == check((INVOKE,)).published == 1
    assert check((INVOKE, unknown, replace(OK, duplicate=True))).unknown == 0


def test_what_is_on_record_for_a_subscription_that_does_not_take_it_is_unexpected() -> None:
    verdict = check(sightings=(), prefix="other.")
    assert verdict.unexpected == ["e1 for work: delivered on record, but does not match"]


def test_what_nobody_published_is_unexpected() -> None:
    assert check((), ()).unexpected == ["e1: recorded, but never published"]
    assert check(prefix="slow.").unexpected == [
        "e1 for work: delivered on record, but does not match",
        "e1 for work: does not match",
    ]
    assert check((replace(INVOKE, hash="other"), OK)).unexpected == ["e1 for work: another body than was published"]
    assert check((INVOKE, replace(OK, step="fail"))).unexpected == ["e1: refused, but recorded"]
    assert check(tables=replace(TABLES, recorded=Counter({"e1": 2}))).unexpected == ["e1: recorded 2 times"]


def test_a_delivery_begun_again_is_a_duplicate_unless_the_one_before_failed() -> None:
    again = replace(BEGUN, attempt=2, at=13.0)
    rows = replace(TABLES, deliveries={("e1", "work"): Row("delivered", 2)})
    assert check(sightings=(BEGUN, again, replace(ACCEPTED, attempt=2, at=14.0)), tables=rows).duplicated == 1
    failed = replace(BEGUN, step="failed", at=12.5)
    assert check(sightings=(BEGUN, failed, again, replace(ACCEPTED, attempt=2, at=14.0)), tables=rows).duplicated == 0


def test_a_retry_counts_on_and_waits() -> None:
    failed = replace(BEGUN, step="failed", at=12.5)
    seen = (BEGUN, failed, replace(BEGUN, attempt=2, at=12.7), replace(ACCEPTED, attempt=2, at=13.0))

    def found(sightings: tuple[Sighting, ...], wait: float, most: int = 20) -> list[str]:
        subscriptions, publishings = {"work": ""}, (INVOKE, OK)
        verdict = judge(
            publishings, sightings, TABLES, subscriptions, least_wait=lambda attempt: wait * attempt, max_attempts=most
        )
        return verdict.unexpected

    assert not found(seen, 0.15)
    assert found(seen, 0.25) == ["e1 for work: tried again 0.200 s after a failure"]
    assert found((*seen[:2], replace(seen[2], attempt=1)), 0.1) == ["e1 for work: attempt 1 after 1 had failed"]
    assert found(seen, 0.1, most=1) == ["e1 for work: more than 1 attempts"]


def test_a_stale_writer_that_won_is_found() -> None:
    seen = (BEGUN, replace(BEGUN, attempt=2, at=13.0), replace(ACCEPTED, attempt=2, at=13.5))
    assert check(sightings=seen).untrue == ["e1 for work: attempt 2 came last, the store says 1"]
    assert check(tables=replace(TABLES, rewritten=[("e1", "work")])).untrue


def test_a_paused_worker_that_begins_an_old_attempt_late_is_no_stale_writer() -> None:
    seen = (
        replace(BEGUN, attempt=2),
        replace(ACCEPTED, attempt=2),
        replace(BEGUN, at=13.0),
        replace(ACCEPTED, at=13.5),
    )
    second = replace(TABLES, deliveries={("e1", "work"): Row("delivered", 2)})
    assert not check(sightings=seen, tables=second).untrue
    assert check(sightings=seen, tables=replace(TABLES, deliveries={("e1", "work"): Row("delivered", 3)})).untrue


def test_recovery_counts_what_was_being_published_before_the_fault() -> None:
    assert check(faults=(12.0,)).recovered == 0.5
    assert check(faults=(10.5,)).recovered == 2.0
    assert check(faults=(9.5,)).recovered == 0.0
    assert check(faults=(13.0,)).recovered == 0.0


def test_what_a_second_fault_hits_before_it_has_recovered_counts_from_the_second() -> None:
    def recovered(series: float) -> float:
        return judge(
            (INVOKE, OK), (BEGUN, ACCEPTED), TABLES, {"work": ""}, faults=(12.4, 11.5), series=series
        ).recovered

    assert recovered(1.0) == pytest.approx(0.1)
    assert recovered(0.5) == pytest.approx(1.0)


def test_a_journal_gives_whole_lines_only(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", Publishing)
    assert journal.read() == []
    pen = Pen(journal.path)
    pen.write(INVOKE, sync=True)
    with journal.path.open("a") as file:
        file.write('{"id": "e2"')
    assert journal.read() == journal.read() == [INVOKE]


def test_a_publisher_repeats_itself() -> None:
    plan = Plan("bus.yaml", "journal", 10, types=("a", "b"), seed="7")
    assert plan.event(3) == plan.event(3)
    assert plan.event(3) != replace(plan, seed="8").event(3)
    assert [plan.event(number).type for number in range(3)] == ["a", "b", "a"]


def test_a_fault_that_never_bit_fails_the_case_and_catches_no_mutant(tmp_path: Path) -> None:
    trial = Trial(tmp_path, Outcome("FI-01", "kill", 7, 18), "postgresql://postgres@127.0.0.1:1/none", None)
    trial.deploy(Subscriber("note", "note"))
    trial.bite("deliveries running at a kill", 0)
    with pytest.raises(AssertionError, match="never bit") as failure:
        trial.conclude()
    assert not isinstance(failure.value, Violation)
    trial.require(False, "it took too long")
    with pytest.raises(Violation, match="it took too long"):
        trial.conclude()
    assert not trial.verified


def test_a_report_replaces_the_rows_of_what_was_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- cases -->\nold\n<!-- end of cases -->\nafter\n")
    publish([Outcome("FI-01", "kill", 1, 18, 5, 5), Outcome("FI-01", "kill", 1, 18, mutant="m", found="lost")], page)
    publish([Outcome("FI-00", "nothing", 2, 18), Outcome("FI-01", "kill", 2, 18, 7, 7)], page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| FI-01 | kill | 18 | 7 | 7 |" in text
    assert "| m | kill | FI-01 | lost |" in text
    assert text.index("FI-00") < text.index("FI-01")


def test_every_mutant_fits_the_code_as_it_is() -> None:
    """One that does not would end the processes of its case, which then fails for another reason."""
    program = "from tests.chaos.sabotage import MUTANTS\nfor mutant in MUTANTS.values(): mutant()"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
