"""A store that does some things in another way, for checks that have to see it."""

from __future__ import annotations

from typing import Any

__all__ = ["Faulty"]


class Faulty:
    """
    A store around another one: what a subclass defines stands in for the method of that name of any seam.

    Attributes:
        store: the sound one.
    """

    def __init__(self, store: Any) -> None:
        self.store = store
        self.events, self.queue, self.registry = (
            _Seam(self, each) for each in (store.events, store.queue, store.registry)
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


class _Seam:
    def __init__(self, faulty: Faulty, sound: object) -> None:
        self._faulty = faulty
        self._sound = sound

    def __getattr__(self, name: str) -> Any:
        return getattr(self._faulty if hasattr(type(self._faulty), name) else self._sound, name)
