"""FastStream on JetStream: a stream in a file, a durable consumer, explicit acknowledgements.

JetStream acknowledges a message before it is synced to the disk (its default: every two minutes); the systems on
PostgreSQL sync every commit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import nats
from faststream.nats import JStream, NatsBroker, PullSub
from nats.js.api import ConsumerConfig, DeliverPolicy

from .base import Counts, Handler, Place

__all__ = ["FastStreamBatch", "FastStreamSingle"]

STREAM, SUBJECT, CONSUMER = "bench", "bench.events", "bench"
BATCH = 500


class FastStreamSingle:
    """A handler that takes one message at a time."""

    def __init__(self, place: Place) -> None:
        self._url = place.nats
        self._stream = JStream(STREAM, subjects=[SUBJECT])

    async def prepare(self) -> None:
        """Empty the stream of the round before."""
        client = await nats.connect(self._url)
        with contextlib.suppress(nats.js.errors.NotFoundError):
            await client.jetstream().delete_stream(STREAM)
        await client.jetstream().add_stream(name=STREAM, subjects=[SUBJECT])
        await client.close()

    @contextlib.asynccontextmanager
    async def session(self, handler: Handler | None = None) -> AsyncIterator[_Session]:
        """Publish, and consume."""
        broker = NatsBroker(self._url, logger=None, apply_types=False)
        if handler is not None:
            self._subscribe(broker, handler)
        async with broker:
            await broker.start()
            yield _Session(broker)

    def _subscribe(self, broker: NatsBroker, handler: Handler) -> None:
        async def deliver(data: bytes) -> None:
            handler(data)

        config = ConsumerConfig(durable_name=CONSUMER, max_ack_pending=10_000)
        broker.subscriber(
            SUBJECT, stream=self._stream, durable=CONSUMER, config=config, deliver_policy=DeliverPolicy.ALL
        )(deliver)

    async def idle(self) -> bool:
        """Return whether every message is acknowledged."""
        counts = await self.counts()
        return counts.stored == counts.delivered

    async def counts(self) -> Counts:
        """Ask the server what it stored, and up to where it has acknowledgements."""
        client = await nats.connect(self._url)
        try:
            stream = await client.jetstream().stream_info(STREAM)
            try:
                consumer = await client.jetstream().consumer_info(STREAM, CONSUMER)
            except nats.js.errors.NotFoundError:
                return Counts(stream.state.messages, 0)
            return Counts(stream.state.messages, consumer.ack_floor.stream_seq if consumer.ack_floor else 0)
        finally:
            await client.close()


class FastStreamBatch(FastStreamSingle):
    """A handler that takes what is there, at most 500 messages."""

    def _subscribe(self, broker: NatsBroker, handler: Handler) -> None:
        async def deliver(batch: list[bytes]) -> None:
            for data in batch:
                handler(data)

        pull = PullSub(batch_size=BATCH, timeout=0.1, batch=True)
        config = ConsumerConfig(durable_name=CONSUMER, max_ack_pending=10_000)
        broker.subscriber(
            SUBJECT,
            stream=self._stream,
            durable=CONSUMER,
            config=config,
            deliver_policy=DeliverPolicy.ALL,
            pull_sub=pull,
        )(deliver)


class _Session:
    def __init__(self, broker: NatsBroker) -> None:
        self._broker = broker

    async def publish(self, data: bytes) -> None:
        """Publish and wait for the stream's acknowledgement."""
        await self._broker.publish(data, SUBJECT, stream=STREAM, timeout=30)

    async def publish_many(self, batch: Sequence[bytes]) -> None:
        """Publish all, then wait for all acknowledgements: there is no batch on the wire."""
        await asyncio.gather(*(self.publish(data) for data in batch))
