"""Who is compared, by name; each is imported only in the process that runs it."""

from __future__ import annotations

from importlib import import_module

from .base import Contender, Place

__all__ = ["CONTENDERS", "contender"]

# name -> module, class
CONTENDERS = {
    "runner": ("ours", "Ours"),
    "floor": ("floor", "Floor"),
    "floor-rows": ("floor", "FloorRows"),
    "pgqueuer": ("pgqueuer", "PgQueuer"),
    "procrastinate": ("procrastinate", "Procrastinate"),
    "faststream": ("faststream", "FastStreamSingle"),
    "faststream-batch": ("faststream", "FastStreamBatch"),
}


def contender(place: Place) -> Contender:
    """Return the contender that is to work at `place`."""
    module, cls = CONTENDERS[place.contender]
    made: Contender = getattr(import_module(f".{module}", __name__), cls)(place)
    return made
