from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from runner.dashboard.definitions import lines
from runner.policies.breaker import BreakerPolicy
from runner.policies.rate import Rate
from runner.policies.retry import RetryPolicy
from runner.policies.schedule import EventTemplate, Schedule
from runner.subscription import Destination, Subscription

CRM = Subscription(
    name="crm",
    sink="destination:crm",
    types=("order.*", "user.created"),
    filter={"prefix": {"subject": "eu/"}},
    rate=Rate.parse("20/s"),
    retry=RetryPolicy(schedule=(timedelta(seconds=1), timedelta(minutes=5)), max_age=timedelta(days=1)),
    destination=Destination(kind="webhook", shown={"url": "https://crm.example", "secret": "***"}, sealed="c2VhbGVk"),
    expires_at=datetime(2037, 1, 1, tzinfo=UTC),
)


def test_a_subscription_reads_as_in_the_file() -> None:
    shown = dict(lines(CRM))
    expected = {
        "types": "order.*, user.created",
        "filter": '{"prefix":{"subject":"eu/"}}',
        "rate": "20/s",
        "timeout": "25s",
        "retry.schedule": "1s, 5m",
        "retry.max_age": "1d",
        "retry.jitter": "0.2",
        "breaker.max_pause": "5m",
        "destination.webhook.secret": "***",
        "expires_at": "2037-01-01T00:00:00Z",
    }
    assert shown.items() >= expected.items()
    assert not {"name", "batch", "source"} & shown.keys()  # the name is the title; the others are not set
    assert "c2VhbGVk" not in str(shown)


def test_a_schedule_reads_as_in_the_file() -> None:
    nightly = Schedule(name="nightly", cron="0 2 * * *", event=EventTemplate(type="report.due", data='{"n":1}'))
    assert dict(lines(nightly)).items() >= {"window": "1d", "jitter": "0s", "event.data": '{"n":1}'}.items()


@pytest.mark.parametrize("policy", [RetryPolicy(max_age=timedelta(hours=1)), BreakerPolicy(), CRM])
def test_every_length_is_in_words(policy: RetryPolicy | BreakerPolicy | Subscription) -> None:
    """An option that is added is shown like the others, without a list of them."""
    for each in fields(policy):
        if isinstance(getattr(policy, each.name), timedelta):
            longer: Any = {each.name: timedelta(minutes=90)}
            assert dict(lines(replace(policy, **longer)))[each.name] == "1h30m"
