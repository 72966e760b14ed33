"""The NATS servers of a configuration: whether they answer, and accept the messages of the file."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..builder import nats_sinks, nats_subjects
from ..errors import StrategyError, readable
from .verdict import Finding, fault, fine

if TYPE_CHECKING:
    from ..config import Config
    from ..nats.options import BrokerOptions

__all__ = ["BrokerFacts", "brokers", "look_at_broker"]

_PAUSE = 0.025  # seconds between two looks whether NATS is connected


@dataclass(frozen=True, slots=True)
class BrokerFacts:
    """
    One connection to NATS.

    Attributes:
        server: host and port; None if none was reached.
        error: why none was.
        subjects: for each subject the reason why the server refuses messages to it; None where it takes them.
        streams: for each sink of JetStream why no stream would store its messages as the file says.
    """

    server: str | None
    error: str | None = None
    subjects: Mapping[str, str | None] = field(default_factory=dict)
    streams: Mapping[str, Sequence[str]] = field(default_factory=dict)


async def look_at_broker(
    config: Config, options: BrokerOptions, subjects: Sequence[str], *, name: str, patience: float
) -> BrokerFacts:
    """
    Connect to NATS, and return what the server permits. No message is sent.

    Args:
        name: of the connection, as the server shows it.
        patience: seconds until a server counts as away.
    """
    from ..nats.connection import Broker

    broker = Broker(options, name=name)
    await broker.start()
    try:
        for _ in range(max(1, round(patience / _PAUSE))):
            if broker.connected:
                break
            await asyncio.sleep(_PAUSE)
        else:
            return BrokerFacts(None, readable(broker.last_error))
        refusals: dict[str, str | None] = dict.fromkeys(subjects)
        for subject in subjects:
            try:
                await broker.try_publish(subject)
            except StrategyError as error:
                refusals[subject] = readable(str(error))
        streams = {
            name: [readable(each) for each in await stream.complaints(examples)]
            for name, sink, examples in nats_sinks(config, options)
            if (stream := sink.streams(broker, config.deployment_id)) is not None
        }
        return BrokerFacts(broker.server, None, refusals, streams)
    finally:
        await broker.stop()


async def brokers(config: Config, budget: float) -> Sequence[Finding]:
    """Return what is wrong with the NATS servers; nothing where the file names none."""
    wanted = nats_subjects(config)
    looks = [
        look_at_broker(config, options, subjects, name="runner doctor", patience=budget * 0.7)
        for options, subjects in wanted.items()
    ]
    found: list[Finding] = []
    for facts in await asyncio.gather(*looks):
        found += _judge(facts)
    return found


def _judge(facts: BrokerFacts) -> Sequence[Finding]:
    if facts.server is None:
        cure = "start the server, or correct servers and the login of nats in the file; events wait for the next poll"
        return [fault("nats", "unreachable_nats", f"no server can be used: {facts.error}", cure)]
    found = []
    for subject, refusal in facts.subjects.items():
        if refusal is not None:
            cure = (
                f'permit it: permissions: {{publish: ["{subject}"]}} for the user, in the configuration of the server'
            )
            found.append(fault("nats", "may_not_publish", refusal, cure, subject))
    for sink, complaints in facts.streams.items():
        for complaint in complaints:
            cure = f"make or mend the stream (nats stream add), or correct sink {sink}"
            found.append(fault("nats", "stream", f"sink {sink}: {complaint}", cure, sink))
    return found or [fine("nats", f"connected to {facts.server}; it takes {len(facts.subjects)} subjects")]
