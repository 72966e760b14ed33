"""Build the sinks of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..config import Config
from ..errors import ConfigError
from ..sinks import build_sink
from ..sinks.base import Sink, SinkContext
from .faults import Faults

if TYPE_CHECKING:
    from ..tracing.base import Tracing

__all__ = ["sinks_of"]


def sinks_of(
    config: Config,
    context: SinkContext,
    tracing: Tracing | None,
    faults: Faults,
    kept: Mapping[str, Sink] | None = None,
) -> dict[str, Sink]:
    """
    Return the sinks of `config` by name, none where the process does not deliver; collect their faults.

    Args:
        kept: the existing sinks that stay.
    """
    sinks = dict(kept or {})
    for name, plugin in config.sinks.items() if config.worker.enabled else ():
        if name not in sinks:
            with faults.at("sinks", name):
                made = build_sink(plugin, context)
                sinks[name] = made if tracing is None else tracing.sink(made)
    with faults.at():
        _check_batches(config, sinks)
    return sinks


def _check_batches(config: Config, sinks: Mapping[str, Sink]) -> None:
    """Refuse `batch` for a third-party sink without `deliver_batch()`; built-in kinds check it in their options."""
    faults = [
        config.locate(
            ("subscriptions", index, "batch"),
            f"sink {entry.sink!r} has no deliver_batch(); leave batch out, or add it (docs/writing-a-sink.md)",
        )
        for index, entry in enumerate(config.subscriptions)
        if entry.batch and entry.sink in sinks and not hasattr(sinks[entry.sink], "deliver_batch")
    ]
    if faults:
        raise ConfigError(*faults)
