"""Receivers of webhooks, and the sink that posts to them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web

from runner.nats.connection import Broker
from runner.sinks.base import SinkContext
from runner.sinks.webhook import WebhookOptions, WebhookSink

from .server import HOST, free_port

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def no_broker(_options: object) -> Broker:
    raise AssertionError("a webhook asks for no broker")


def sink_context(**given: Any) -> SinkContext:
    """Return what the builder would give a webhook."""
    return SinkContext("tests", no_broker, 256, **given)


@contextlib.asynccontextmanager
async def receiver(answer: Answer, **options: Any) -> AsyncIterator[str]:
    """Run an HTTP server that answers every request so."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return await answer(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, HOST, port, **options).start()
    try:
        yield f"http{'s' if options.get('ssl_context') else ''}://{HOST}:{port}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def raw_receiver(talk: Talk) -> AsyncIterator[str]:
    """Run a server that does with each connection what `talk` does."""
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await talk(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(accept, HOST, 0)
    try:
        yield f"http://{HOST}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def webhook(url: str, context: SinkContext | None = None, **options: Any) -> WebhookSink:
    """Return the sink that these options of a file make."""
    return WebhookOptions(url=url, **options).build(context or sink_context())


@contextlib.asynccontextmanager
async def sink(url: str, context: SinkContext | None = None, **options: Any) -> AsyncIterator[WebhookSink]:
    """Run the sink that these options of a file make."""
    made = webhook(url, context, **options)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


def answering(status: int, headers: dict[str, str] | None = None, text: str = "") -> Answer:
    """Return what answers every request with these."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers=headers, text=text)

    return answer
