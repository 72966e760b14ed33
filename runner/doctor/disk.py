"""The disk: which file system a path is on, how much of it is free, and for how long that lasts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from ..config.duration import format_duration
from ..storage.contract.archive import Retention
from .postgres import size
from .thresholds import Thresholds
from .verdict import Finding, fault, fine, warning

__all__ = ["free_space", "judge_disk", "judge_file_system", "judge_retention", "kind_of"]

MOUNTS = Path("/proc/self/mountinfo")

_NETWORKS = (
    "9p",
    "afs",
    "ceph",
    "cifs",
    "fuse.ceph",
    "fuse.glusterfs",
    "fuse.s3fs",
    "fuse.sshfs",
    "glusterfs",
    "lustre",
    "ncpfs",
    "nfs",
    "nfs4",
    "ocfs2",
    "smb3",
    "smbfs",
    "virtiofs",
)
_MEMORY = ("ramfs", "tmpfs")
_LEAST = timedelta(hours=1)  # the shortest history of records that gives a rate
_DAY = timedelta(days=1)


def kind_of(path: Path, mounts: Path = MOUNTS) -> str:
    """Return the kind of the file system that `path` is on, such as `ext4`; empty where the system does not say."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    resolved = os.path.realpath(path)
    best, kind = "", ""
    for line in lines:  # proc(5): id, parent, device, root, mount point, options, optional fields, "-", kind, …
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if len(fields) < 5 or not right:
            continue
        point = fields[4].encode().decode("unicode_escape")
        inside = point == "/" or resolved == point or resolved.startswith(f"{point}/")
        if inside and len(point) >= len(best):  # a later mount hides an earlier one
            best, kind = point, right.split(" ")[0]
    return kind


def judge_file_system(path: Path, kind: str) -> Iterator[Finding]:
    """Yield whether SQLite can rely on the file system of its file."""
    if kind in _NETWORKS:
        measured = (
            f"{path} is on a network file system ({kind}), whose locks and syncs do not hold: it can be corrupted"
        )
        yield fault("file system", "network", measured, "move the file to a disk of this machine, or use PostgreSQL")
    elif kind in _MEMORY:
        measured = f"{path} is in memory ({kind}): a restart of the machine loses every event"
        yield warning("file system", "memory", measured, "move the file to a disk: storage.dsn")
    else:
        yield fine("file system", kind or "a disk of unknown kind")


def free_space(path: Path) -> tuple[int, int] | None:
    """Return the free and the whole space, in bytes, of the disk of `path`; None where it cannot be known."""
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return None
    return usage.free, usage.total


def judge_disk(place: str, space: tuple[int, int] | None, limits: Thresholds) -> Iterator[Finding]:
    """Yield whether there is room for the next events."""
    if space is None:
        return
    free, total = space
    if free < limits.free:
        measured = f"{size(free)} of {size(total)} are free at {place}: soon nothing can be recorded"
        cure = "make room, or delete events: lower retention, then runner prune"
        yield fault("disk", "disk_full", measured, cure)
    else:
        yield fine("disk", f"{size(free)} of {size(total)} are free at {place}")


def judge_retention(
    retention: Retention,
    used: int,
    since: datetime | None,
    now: datetime,
    space: tuple[int, int] | None,
    limits: Thresholds,
) -> Iterator[Finding]:
    """
    Yield whether the disk holds what is recorded within the retention, at the rate of what is on record.

    Args:
        used: bytes that the records take.
        since: when the oldest of them was recorded.
        space: free and whole bytes of their disk, where that can be known.
    """
    if retention.delivered is None:
        cure = "set retention.delivered, such as 7d; `runner events export` keeps a copy elsewhere"
        yield warning("retention", "for_ever", f"events are kept for ever, {size(used)} so far", cure)
        return
    kept = format_duration(retention.delivered)
    age = None if since is None else now - since
    if age is None or age < _LEAST:
        yield fine("retention", f"{kept}; {size(used)} are used, too little time to tell the growth")
        return
    daily = used * (_DAY / age)
    more = max(0.0, daily * (retention.delivered / _DAY) - used)
    rate = f"{kept}; {size(used)} are used, {size(round(daily))} a day"
    if space is not None and more > space[0] * limits.shrinking:
        measured = f"{rate}: {size(round(more))} more are to come, and {size(space[0])} are free"
        most = _affordable(space[0] * limits.shrinking + used, daily)
        cure = f"lower retention.delivered to {most}, or enlarge the disk"
        yield warning("retention", "disk_too_small", measured, cure)
    elif age > 2 * retention.delivered + _DAY and (retention.dead is None or age > 2 * retention.dead + _DAY):
        measured = f"{rate}; the oldest event is {format_duration(timedelta(days=age.days))} old, past every retention"
        cure = "see what holds it: runner events list --until …; runner prune deletes what is past retention"
        yield warning("retention", "overdue", measured, cure)
    else:
        yield fine("retention", rate)


def _affordable(room: float, daily: float) -> str:
    days = room / daily
    return f"{int(days)}d" if days >= 1 else f"{max(1, int(days * 24))}h"
