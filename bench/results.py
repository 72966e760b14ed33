"""What was measured: every result of every round, and where it was."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from .measures import Target

__all__ = ["Results", "machine"]

PACKAGES = ("pgqueuer", "procrastinate", "faststream", "asyncpg", "psycopg", "nats-py", "SQLAlchemy", "uvloop")


@dataclass(slots=True)
class Results:
    """Results by key, with the machine and the versions they belong to."""

    about: dict[str, str]
    quick: bool
    rounds: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, key: str, result: Mapping[str, Any]) -> None:
        """Keep the result of one round."""
        self.rounds.setdefault(key, []).append(dict(result))

    def median(self, path: str) -> float | None:
        """Return the median of `key:metric` over the rounds that have it; None when it was not measured."""
        values = self._values(path)
        return statistics.median(values) if values else None

    def measured(self, target: Target) -> float | None:
        """
        Return what a target is about; None when it was not measured.

        A ratio is the median of the rounds' ratios: machines drift, and those of one round ran within a minute or two.
        """
        if target.against is None:
            return self.median(target.measured)
        pairs = zip(self._values(target.measured), self._values(target.against), strict=False)
        ratios = [value / against for value, against in pairs]
        return statistics.median(ratios) if ratios else None

    def _values(self, path: str) -> list[float]:
        key, _, metric = path.partition(":")
        return [float(result[metric]) for result in self.rounds.get(key, ()) if metric in result]

    def curve(self, trials: str) -> list[int]:
        """Return for which x there are results of `trials@x/runner`."""
        found = (key.removesuffix("/runner").partition("@") for key in self.rounds)
        return sorted(int(x) for name, _, x in found if name == trials)

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return what `save()` wrote."""
        return cls(**json.loads(path.read_text()))


def machine(servers: Mapping[str, str]) -> dict[str, str]:
    """Return what the figures depend on."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        **servers,
        **{name: version(name) for name in PACKAGES},
    }


def _processor() -> str:
    names: Sequence[str] = ()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
