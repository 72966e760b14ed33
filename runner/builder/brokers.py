"""The connections to NATS that a configuration asks for, shared by strategies and sinks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ..config import Config
from ..nats.options import BrokerOptions, NatsConnection

if TYPE_CHECKING:
    from ..nats.connection import Broker
    from ..sinks.nats import NatsSinkOptions

__all__ = ["Brokers", "nats_sinks", "nats_subjects"]


class Brokers:
    """One connection to NATS for each distinct way to reach it."""

    def __init__(self, config: Config, made: Mapping[BrokerOptions, Broker] | None = None) -> None:
        """Args: made has the existing ones."""
        self.made: dict[BrokerOptions, Broker] = dict(made or {})
        self._config = config

    def __call__(self, connection: NatsConnection) -> Broker:
        """Return the broker of a connection, made when it is first asked for."""
        from ..nats.connection import Broker

        options = BrokerOptions.of(_connection(self._config, connection))
        if options not in self.made:
            self.made[options] = Broker(options, name=f"runner {self._config.deployment_id}")
        return self.made[options]

    def following(self, config: Config) -> Brokers:
        """Return the brokers for another state of the file: the same ones, with the logins of that state."""
        renewed = {old: new for old, new in zip(_strategies(self._config), _strategies(config), strict=True)}
        return Brokers(config, {renewed.get(options, options): broker for options, broker in self.made.items()})

    def renew_logins(self) -> None:
        """Log in as the file says from the next connection on."""
        for options, broker in self.made.items():
            broker.renew_login(options)

    def unwanted(self) -> list[BrokerOptions]:
        """Return the options of the brokers that no strategy and no sink of the file uses."""
        from ..sinks.nats import NatsSinkOptions

        sinks = [each.options for each in self._config.sinks.values() if isinstance(each.options, NatsSinkOptions)]
        wanted = {*_strategies(self._config), *(BrokerOptions.of(_connection(self._config, each)) for each in sinks)}
        return [options for options in self.made if options not in wanted]


def nats_subjects(config: Config) -> Mapping[BrokerOptions, Sequence[str]]:
    """Return the subjects published to on each connection; placeholders of a sink are filled with examples."""
    subjects: dict[BrokerOptions, list[str]] = {}
    for plugin in config.strategies:
        if isinstance(plugin.options, NatsConnection):
            subjects.setdefault(BrokerOptions.of(plugin.options), []).append(config.signal_subject)
    for _, sink, made in nats_sinks(config):
        subjects.setdefault(BrokerOptions.of(_connection(config, sink)), []).extend(made)
    return {options: list(dict.fromkeys(made)) for options, made in subjects.items()}


def nats_sinks(
    config: Config, connection: BrokerOptions | None = None
) -> Iterator[tuple[str, NatsSinkOptions, Sequence[str]]]:
    """Yield the name and options of each nats sink, on that connection if one is given, with example subjects."""
    from ..sinks.nats import NatsSinkOptions, examples

    subscriptions = config.to_subscriptions()
    for name, plugin in config.sinks.items():
        options = plugin.options
        if not isinstance(options, NatsSinkOptions):
            continue
        if connection is None or connection == BrokerOptions.of(_connection(config, options)):
            types = [type for each in subscriptions if name in (each.sink, each.dead_letter) for type in each.types]
            yield name, options, examples(options.subject, config.deployment_id, types or ["*"])


def _strategies(config: Config) -> list[BrokerOptions]:
    """Return the options of each nats strategy."""
    return [BrokerOptions.of(each.options) for each in config.strategies if isinstance(each.options, NatsConnection)]


def _connection(config: Config, options: NatsConnection) -> NatsConnection:
    """Return the connection of `options`: their own, else that of the first nats strategy."""
    if options.servers is not None:
        return options
    return next(plugin.options for plugin in config.strategies if isinstance(plugin.options, NatsConnection))
