"""What goes past the router, and what does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from runner.api.application import Shortcut

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

PUBLISH = {"type": "http", "method": "POST", "path": "/events", "root_path": ""}


@pytest.mark.parametrize(
    ("scope", "past"),
    [
        ({}, True),
        ({"method": "OPTIONS"}, True),
        ({"method": "GET"}, False),
        ({"path": "/events/1"}, False),
        ({"path": "/bus/events", "root_path": "/bus"}, False),
        ({"type": "websocket", "method": None}, False),
        ({"type": "lifespan", "method": None, "path": None}, False),
    ],
)
async def test_only_a_publish_goes_past_the_router(scope: dict[str, Any], past: bool) -> None:
    called = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        called.append("app")

    async def router(scope: Scope, receive: Receive, send: Send) -> None:
        called.append("router")

    given = {name: value for name, value in {**PUBLISH, **scope}.items() if value is not None}
    await Shortcut("/events", ("POST", "OPTIONS"), app, router)(given, None, None)  # type: ignore[arg-type]
    assert called == (["app"] if past else ["router"])
