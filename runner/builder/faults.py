"""Faults that are found while parts are built: all of them in one error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Self

from ..config import Config
from ..errors import ConfigError, RunnerError, SinkError

__all__ = ["Faults"]


class Faults:
    """Collect faults, and raise all of them at the end."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._errors: list[RunnerError] = []
        self._lines: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._errors and raised[0] is None:
            raise ConfigError(*self._lines) from self._errors[0]

    @contextlib.contextmanager
    def at(self, *path: str | int) -> Iterator[None]:
        """Collect a fault at `path` and continue; without a path, the fault names its own place."""
        try:
            yield
        except (ConfigError, SinkError) as error:
            lines = error.faults if isinstance(error, ConfigError) else [str(error)]
            self._errors.append(error)
            self._lines += [self._config.locate(path, line) for line in lines] if path else lines
