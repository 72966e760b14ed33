from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from runner.cli.deliveries import _print_delivery
from runner.delivery import DeliveryState
from runner.operations.shapes import attempt_json
from runner.storage.contract.records import AttemptView, DeliveryView

AT = datetime(2026, 1, 31, 12, tzinfo=UTC)
HISTORY = [
    AttemptView(1, AT, timedelta(milliseconds=1500), 503, "HTTP 503", "<h1>busy</h1>"),
    AttemptView(2, AT, timedelta(0), None, "cannot connect", None),
]


def test_every_attempt_is_shown_with_all_that_is_known_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    view = DeliveryView(7, "crm", "/shop", "o1", "order.created", DeliveryState.DEAD, 2, None, "cannot connect", AT)
    _print_delivery(view, None, HISTORY)
    head, first, second = capsys.readouterr().out.splitlines()[-3:]
    assert head.split() == ["ATTEMPT", "AT", "TOOK", "STATUS", "ERROR", "ANSWER"]
    assert first.split() == ["1", "2026-01-31T12:00:00.000Z", "1s500ms", "503", "HTTP", "503", "<h1>busy</h1>"]
    assert second.split() == ["2", "2026-01-31T12:00:00.000Z", "0s", "cannot", "connect"]


def test_every_attempt_is_json_with_all_that_is_known_of_it() -> None:
    assert attempt_json(HISTORY[0]) == {
        "number": 1,
        "at": AT,
        "duration": 1.5,
        "status": 503,
        "error": "HTTP 503",
        "excerpt": "<h1>busy</h1>",
    }
