from __future__ import annotations

from runner.storage.home import TABLES
from runner.storage.postgres.examination import _CHURNED

# Only added to between deletions by retention, or of a few rows.
_CALM = {"attempts", "audit", "bus", "events", "instances", "occurrences", "schedules", "subscriptions", "throughput"}


def test_each_table_is_looked_at_for_dead_rows_or_is_calm() -> None:
    assert {*_CHURNED} | _CALM == {*TABLES}
    assert not {*_CHURNED} & _CALM
