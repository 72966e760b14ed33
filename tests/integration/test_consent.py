"""The handshake of CloudEvents webhooks: a receiver is asked before it is sent anything."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import ValidationError

from runner import load
from runner.cloudevents import from_http
from runner.delivery import ACCEPTED, Delivery, DeliveryState, Failed, Withheld
from runner.event import Event
from runner.sinks.http import consent
from runner.sinks.http.consent import Pace
from runner.sinks.webhook import WebhookOptions
from runner.storage.contract.records import DeliveryQuery
from tests.support.eventually import eventually
from tests.support.receivers import receiver, sink
from tests.support.server import HOST

DELIVERY = Delivery(Event(type="order.created", source="/shop", id="1", data=b"x"), "crm", 1)
ALLOWED = {"WebHook-Allowed-Origin": "bus.example", "WebHook-Allowed-Rate": "*"}


class Receiver:
    """Answers OPTIONS with these headers, and takes every post."""

    def __init__(self, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.headers = headers or {}
        self.status = status
        self.asked: list[web.Request] = []
        self.posted: list[web.Request] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        if request.method == "OPTIONS":
            self.asked.append(request)
            return web.Response(status=self.status, headers=self.headers)
        self.posted.append(request)
        return web.Response(status=204)

    def origins(self) -> set[str | None]:
        return {each.headers.get("WebHook-Request-Origin") for each in (*self.asked, *self.posted)}


def required(url: str, context: Any = None, **more: Any) -> Any:
    return sink(f"{url}/events?key=1", context, **({"handshake": "required", "origin": "bus.example"} | more))


@pytest.mark.parametrize("allowed", ["*", "bus.example", "BUS.example"])
async def test_it_is_asked_once_and_the_origin_goes_with_every_delivery(allowed: str) -> None:
    there = Receiver({"WebHook-Allowed-Origin": allowed})
    async with receiver(there) as url, required(url, headers={"X-Api-Key": "k"}) as crm:
        assert await asyncio.gather(*(crm.deliver(DELIVERY) for _ in range(20))) == [ACCEPTED] * 20
        assert await crm.deliver_batch([DELIVERY] * 3) == [ACCEPTED] * 3
    assert len(there.asked) == 1
    assert there.asked[0].path_qs == there.posted[0].path_qs == "/events?key=1"  # the exact resource
    assert there.asked[0].headers["X-Api-Key"] == "k"
    assert len(there.posted) == 21
    assert there.origins() == {"bus.example"}


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ({}, 200, "HTTP 200 without WebHook-Allowed-Origin"),
        ({"Allow": "POST"}, 405, "HTTP 405 without WebHook-Allowed-Origin"),
        ({"WebHook-Allowed-Origin": "other.example"}, 200, "WebHook-Allowed-Origin is neither * nor bus.example"),
        ({"WebHook-Allowed-Origin": ""}, 200, "WebHook-Allowed-Origin is neither * nor bus.example"),
        ({"WebHook-Allowed-Origin": "*, *"}, 200, "WebHook-Allowed-Origin is neither * nor bus.example"),
    ],
)
async def test_without_consent_nothing_is_sent(headers: dict[str, str], status: int, reason: str) -> None:
    there = Receiver(headers, status)
    async with receiver(there) as url, required(url) as crm:
        outcomes = [await crm.deliver(DELIVERY), await crm.deliver(DELIVERY), *await crm.deliver_batch([DELIVERY] * 2)]
    assert len(there.asked) == 1  # and left alone from then on
    assert there.posted == []
    for outcome in outcomes:
        assert isinstance(outcome, Withheld)
        assert reason in outcome.reason
        assert not outcome.blameless
        assert outcome.retry_after is not None
        assert timedelta(0) < outcome.retry_after <= timedelta(seconds=10)


async def test_a_receiver_that_asks_to_wait_is_asked_no_sooner() -> None:
    there = Receiver({"Retry-After": "100"}, 429)
    async with receiver(there) as url, required(url) as crm:
        outcome = await crm.deliver(DELIVERY)
    assert outcome.retry_after > timedelta(seconds=60)


async def test_it_only_warns_where_that_is_all_that_is_wanted() -> None:
    there = Receiver({}, 405)
    async with receiver(there) as url, required(url, handshake="warn") as crm:
        assert [await crm.deliver(DELIVERY) for _ in range(3)] == [ACCEPTED] * 3
    assert (len(there.asked), len(there.posted)) == (1, 3)


async def test_a_receiver_that_is_down_costs_no_attempt() -> None:
    async with receiver(Receiver()) as url:
        pass
    async with required(url) as crm:
        outcome = await crm.deliver(DELIVERY)
    assert isinstance(outcome, Withheld)
    assert "cannot connect" in outcome.reason


async def test_it_is_asked_within_the_same_limits() -> None:
    there = Receiver(ALLOWED)
    async with (
        receiver(there) as url,
        required(url.replace(HOST, "localhost"), allow={"http": True}) as crm,
    ):
        outcome = await crm.deliver(DELIVERY)
    assert isinstance(outcome, Withheld)
    assert "not allowed" in outcome.reason
    assert there.asked == []


async def test_nobody_is_asked_unless_that_is_wanted() -> None:
    there = Receiver()
    async with receiver(there) as url, sink(url) as crm:
        assert await crm.deliver(DELIVERY) is ACCEPTED
    assert there.asked == []
    assert there.origins() == {None}


async def test_a_rate_is_kept_to() -> None:
    there = Receiver({"WebHook-Allowed-Origin": "*", "WebHook-Allowed-Rate": "6"})
    async with receiver(there) as url, required(url) as crm:
        outcomes = [await crm.deliver(DELIVERY) for _ in range(4)]
    assert outcomes[0] is ACCEPTED
    waits = [each.retry_after.total_seconds() for each in outcomes[1:]]
    assert [each.blameless for each in outcomes[1:]] == [True] * 3
    assert all("it permits 6 requests a minute" in each.reason for each in outcomes[1:])
    assert waits == sorted(waits)  # each has a turn of its own
    assert waits[2] - waits[0] > 15
    assert len(there.posted) == 1


async def test_turns() -> None:
    now, slept = 100.0, list[float]()

    async def sleep(seconds: float) -> None:
        slept.append(round(seconds, 6))

    pace = Pace(60, clock=lambda: now, sleep=sleep)
    assert [await pace.turn() for _ in range(3)] == [0, 0, 0]
    assert slept == [1.0, 2.0]
    assert [await pace.turn() for _ in range(3)] == [4.0, 5.0, 6.0]
    now = 104.0
    assert await pace.turn() == 0
    assert slept == [1.0, 2.0]  # its turn had come
    now = 1000.0
    assert await pace.turn() == 0
    many = [await pace.turn() for _ in range(5000)]
    assert max(many) <= 3600


async def test_attempts_are_for_what_was_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consent, "_FIRST", 0.05)
    monkeypatch.setattr(consent, "_LONGEST", 0.05)
    there = Receiver()
    async with receiver(there) as url:
        path = tmp_path / "runner.yaml"
        path.write_text(
            "deployment_id: shop\nstorage: {dsn: 'sqlite:///shop.db'}\n"
            f"sinks: {{crm: {{webhook: {{url: '{url}', handshake: required}}}}}}\n"
            "subscriptions: [{name: orders, sink: crm, retry: {max_attempts: 1}, breaker: off}]\n"
        )
        async with load(path) as runner:
            await runner.publish(Event.new("order.created", {"n": 1}, source="/shop"))

            async def listed() -> Any:
                return [each async for each in runner._storage.records.deliveries(DeliveryQuery())]

            async def held() -> bool:
                found = await listed()
                return len(there.asked) > 3 and bool(found) and found[0].state is DeliveryState.PENDING

            await eventually(held)
            [waiting] = await listed()
            assert waiting.attempts == 0
            assert "no consent to deliveries" in (waiting.last_error or "")
            assert there.posted == []
            there.headers = ALLOWED | {"WebHook-Allowed-Origin": "shop"}
            await eventually(lambda: len(there.posted) == 1)
    assert there.posted[0].headers["runner-attempt"] == "1"
    assert there.origins() == {"shop"}  # the deployment, unless another name is given
    assert from_http(there.posted[0].headers, b"").type == "order.created"


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"handshake": "always"}, "'required' or 'warn'"),
        ({"handshake": "warn", "origin": "a b"}, "origin"),
        ({"handshake": "warn", "origin": "a\r\nX: y"}, "origin"),
        ({"origin": "bus.example"}, "only the handshake says it"),
    ],
)
def test_options_that_are_refused(options: dict[str, object], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        WebhookOptions.model_validate({"url": "https://crm.example"} | options)


def test_a_withheld_delivery_is_a_failed_one_for_all_that_do_not_know_it() -> None:
    assert isinstance(Withheld("x"), Failed)
