"""One trial, in a process of its own: `python -m bench.trial SPEC` prints what was measured as JSON.

SPEC is JSON: `measure`, `place` (see `contenders/base.py`) and the options of the measure. A trial that loses,
repeats or forgets an event ends with an error, and so does the whole run.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import uvloop

from runner.cli.loop import tune_gc

from .backlog import drain, publish
from .claims import claims, horizon
from .contenders import contender
from .contenders.base import Place
from .crowd import crowd, member
from .idle import idle
from .latency import consume, latency
from .pulse import pulse

__all__ = ["MEASURES", "main"]

MEASURES: Mapping[str, Callable[..., Awaitable[dict[str, Any]]]] = {
    "drain": drain,
    "publish": publish,
    "latency": latency,
    "consume": consume,
    "crowd": crowd,
    "member": member,
    "claims": claims,
    "horizon": horizon,
    "idle": idle,
    "pulse": pulse,
}


async def _run(spec: dict[str, Any]) -> dict[str, Any]:
    place = Place(**spec.pop("place"))
    measure = MEASURES[spec.pop("measure")]
    return await measure(contender(place), place, **spec)


def main(spec: str) -> None:
    """Run one trial on uvloop and with our settings of the collector, all alike; print its result as the last line."""
    logging.disable(logging.INFO)  # peers log every job; nobody reads it here
    tune_gc()
    print(json.dumps(uvloop.run(_run(json.loads(spec)))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
