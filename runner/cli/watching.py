"""Watch files: call back when one has changed, whichever way it is written or replaced."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..service.background import Background

__all__ = ["Watcher", "places"]

_QUIET = 200  # milliseconds without a further change before the callback: a burst of writes is one
_LONGEST = 2000  # milliseconds of changes without a pause
_LOOK = 2000  # milliseconds between checks of files without change notifications, such as on a network file system
_GAP = 0.5  # seconds for which a file may be missing while an editor replaces it
_LINKS = 40  # symbolic links on the way to a file; the kernel follows no more


class Watcher:
    """
    Call `changed` soon after a file is written, replaced, removed, or comes back.

    The kernel reports changes; between them the process sleeps. Changes of other files in the same directory, which may
    be the database, are not reported. Directories of symbolic links that lead to a file are watched, too: Kubernetes
    replaces a ConfigMap by changing a link.
    """

    def __init__(self, files: Callable[[], Sequence[Path]], changed: Callable[[], object]) -> None:
        """Args: files returns the absolute paths to watch; a change may add or remove some."""
        self._files = files
        self._changed = changed
        self._stopping = asyncio.Event()
        self._seen: dict[Path, tuple[int, int, int] | None] = {}
        self._loop = Background("watch files", self._step, nudge=self._stopping.set)

    async def start(self) -> None:
        """Call back once, because the files may have changed since they were read, and watch them from then on."""
        self._stopping.clear()
        self._seen = _look(self._files())
        self._changed()
        self._loop.start()

    async def stop(self) -> None:
        """Watch no more. Idempotent."""
        await self._loop.stop()

    async def _step(self) -> None:
        """Watch the files until one has changed, or others are to be watched."""
        from watchfiles import awatch

        files = tuple(self._files())
        watched = places(files)
        stop = self._stopping
        changes = awatch(
            *watched,
            watch_filter=None,
            debounce=_LONGEST,
            step=_QUIET,
            rust_timeout=_LOOK,
            yield_on_timeout=True,
            stop_event=stop,
            recursive=False,
        )
        async with contextlib.aclosing(changes):
            if await self._noted(files):  # between the last watch and this one
                return
            while not stop.is_set():
                try:
                    await self._loop.rest(anext(changes))
                except StopAsyncIteration:
                    return
                if await self._noted(files) or tuple(self._files()) != files or places(files) != watched:
                    return

    async def _noted(self, files: Sequence[Path]) -> bool:
        """Return whether a file has changed, and call back if so."""
        now = _look(files)
        before = {path: each for path, each in self._seen.items() if path in now}
        if now == before:  # otherwise a file is new here, and may have changed since it was read
            self._seen = now
            return False
        if None in now.values():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GAP):
                    await self._stopping.wait()
            now = _look(files)
        self._seen = now
        if now != before:
            self._changed()
        return True


def _look(files: Iterable[Path]) -> dict[Path, tuple[int, int, int] | None]:
    """Return the modification time, size and inode of each file; None for a missing one."""
    found: dict[Path, tuple[int, int, int] | None] = {}
    for path in files:
        try:
            status = path.stat()
        except OSError:
            found[path] = None
        else:
            found[path] = (status.st_mtime_ns, status.st_size, status.st_ino)
    return found


def places(files: Iterable[Path]) -> list[str]:
    """Return the paths to watch: each file, or the directory it is missing from, and the directories of links."""
    found: dict[str, None] = {}
    for path in files:
        for place in _places(path):
            found[place] = None
    return list(found)


def _places(path: Path) -> Iterable[str]:
    links = 0
    here, rest = Path(path.anchor), list(path.parts[1:])
    while rest:
        step = here / rest.pop(0)
        if step.is_symlink() and links < _LINKS:
            links += 1
            yield str(here)
            target = Path(os.path.normpath(here / os.readlink(step)))
            here, rest = Path(target.anchor), [*target.parts[1:], *rest]
        elif step.exists():
            here = step
        else:
            break
    yield str(here)
