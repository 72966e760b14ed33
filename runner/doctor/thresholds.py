"""The thresholds of the doctor: the limits beyond which a value is a finding."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

__all__ = ["Thresholds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """
    When a measured value is a finding.

    Attributes:
        budget: seconds for each check.
        skew, large_skew: difference of the clocks that is a warning, and a fault: receivers of signed webhooks refuse
            what is five minutes off (Standard Webhooks 1.0.0).
        old_transaction: age of a transaction that keeps dead rows. The bus itself holds none for ten seconds.
        dead_rows: dead rows of one table; a claim takes many times as long behind a million of them.
        wal_kept: bytes of WAL that a slot retains.
        free: bytes of free space on the disk of the data.
        shrinking: share of a disk that may be used, including the growth expected within the retention.
        expiry: how long before its end a token is a warning.
        oldest_server: the oldest version of PostgreSQL that the bus is tested with.
    """

    budget: float = 5.0
    skew: timedelta = timedelta(seconds=2)
    large_skew: timedelta = timedelta(minutes=5)
    old_transaction: timedelta = timedelta(minutes=5)
    dead_rows: int = 100_000
    wal_kept: int = 1024**3
    free: int = 256 * 1024**2
    shrinking: float = 0.9
    expiry: timedelta = timedelta(days=14)
    oldest_server: int = 160_000
