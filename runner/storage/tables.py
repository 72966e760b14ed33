"""The one definition of the tables, for PostgreSQL and SQLite."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from .expressions import Correlation, CorrelationKey, Ids, Instant, Seqs

__all__ = [
    "attempts",
    "audit",
    "bus",
    "deliveries",
    "delivery_states",
    "dispatch",
    "events",
    "expiries",
    "instances",
    "metadata",
    "occurrences",
    "paces",
    "runs",
    "scheduled",
    "schedules",
    "subscriptions",
    "throughput",
    "turns",
]

# SQLite numbers rows by itself only where the key's type is INTEGER, which holds 64 bits there.
_Serial = BigInteger().with_variant(Integer, "sqlite")

# Compared byte by byte: faster, and never at odds with an index made under another version of the locale.
_KEY = Text().with_variant(Text(collation="C"), "postgresql")

# The queue's rows live for milliseconds: updated once (the claim, HOT, because no index holds a lease
# column and half of each page is free for the new version), then deleted. Vacuum early and without rest.
_QUEUE = {
    "fillfactor": 50,
    "autovacuum_vacuum_scale_factor": 0.0,
    "autovacuum_vacuum_threshold": 5000,
    "autovacuum_analyze_scale_factor": 0.0,
    "autovacuum_analyze_threshold": 50000,
    "autovacuum_vacuum_cost_delay": 0,
}

# A schedule's row is written at every tick, and found by the time of the next one.
_TICKING = {
    "autovacuum_vacuum_scale_factor": 0.0,
    "autovacuum_vacuum_threshold": 1000,
    "autovacuum_analyze_scale_factor": 0.0,
    "autovacuum_analyze_threshold": 10000,
    "autovacuum_vacuum_cost_delay": 0,
}

metadata = MetaData()

events = Table(
    "events",
    metadata,
    Column("seq", _Serial, Identity(), primary_key=True),
    Column("id", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("subject", Text),
    Column("time", Instant),
    Column("datacontenttype", Text),
    Column("dataschema", Text),
    Column("extensions", JSON(none_as_null=True)),
    Column("data", LargeBinary),
    Column("created_at", Instant, nullable=False),
    Column("cancelled_at", Instant),
    UniqueConstraint("source", "id", name="events_source_id"),
    sqlite_autoincrement=True,
)

# Only events that carry a correlation have an entry, so that all others cost nothing to record.
Index(
    "events_correlation",
    CorrelationKey(Correlation(events.c.extensions)),
    postgresql_where=Correlation(events.c.extensions).is_not(None),
    sqlite_where=Correlation(events.c.extensions).is_not(None),
)

dispatch = Table(
    "dispatch",
    metadata,
    Column("position", _Serial, Identity(), primary_key=True),
    Column("event_seq", BigInteger, nullable=False),
    Column("lease_until", Instant),
    Column("lease_token", BigInteger),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    sqlite_autoincrement=True,
    postgresql_with=_QUEUE,
)

scheduled = Table(
    "scheduled",
    metadata,
    Column("event_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("due_at", Instant, nullable=False),
    Index("scheduled_due_at", "due_at"),
)

# Only events with an `expirytime`. From `look_at` on, what waits of the event is ended; without any left the row goes.
expiries = Table(
    "expiries",
    metadata,
    Column("event_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("expires_at", Instant, nullable=False),
    Column("look_at", Instant, nullable=False),
    Index("expiries_look_at", "look_at"),
)

# `due_at` is when a pending delivery may be claimed, and when the lease of a leased one ends: in both
# cases the moment from which a claim may take it, so that one index serves both.
deliveries = Table(
    "deliveries",
    metadata,
    Column("event_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("subscription_id", Integer, primary_key=True, autoincrement=False),
    Column("state", String(9), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due_at", Instant),
    Column("lease_token", BigInteger),
    Column("last_error", Text),
    Column("updated_at", Instant, nullable=False),
    Index(
        "deliveries_due",
        "subscription_id",
        "due_at",
        postgresql_where=text("state IN ('pending', 'leased')"),
        sqlite_where=text("state IN ('pending', 'leased')"),
    ),
    Index(
        "deliveries_dead",
        "subscription_id",
        "event_seq",
        postgresql_where=text("state = 'dead'"),
        sqlite_where=text("state = 'dead'"),
    ),
)

# What was delivered at the first attempt, many deliveries in a row: each event in `seqs` to each of `subscriptions`. A
# row of `deliveries` for one of them says something newer. See `runs.py`; `delivery_states` is both.
runs = Table(
    "runs",
    metadata,
    Column("id", _Serial, Identity(), primary_key=True),
    Column("first", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False),
    Column("seqs", Seqs, nullable=False),
    Column("subscriptions", Ids, nullable=False),
    Column("settled_at", Instant, nullable=False),
    Index("runs_first", "first", "last"),
)

# A view, with one row for each delivery: those of `deliveries`, and what only runs record. It has no key of its own.
delivery_states = Table(
    "delivery_states",
    MetaData(),
    *(Column(each.name, each.type, primary_key=each.primary_key) for each in deliveries.columns),
)

# Where a subscription asks for order: the line of unfinished deliveries of each key. The first of a line
# may be delivered, once no event before it waits to be dispatched.
turns = Table(
    "turns",
    metadata,
    Column("subscription_id", Integer, primary_key=True, autoincrement=False),
    Column("order_key", _KEY, primary_key=True),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("event_seq", BigInteger, nullable=False),
    Index("turns_delivery", "event_seq", "subscription_id"),
    postgresql_with={key: value for key, value in _QUEUE.items() if key != "fillfactor"},  # never updated
)

# Where a subscription has a rate: from when on it is as if never used, over all instances (see `rate.py`).
paces = Table(
    "paces",
    metadata,
    Column("subscription_id", Integer, primary_key=True, autoincrement=False),
    Column("next_at", Instant, nullable=False),
)

attempts = Table(
    "attempts",
    metadata,
    Column("serial", _Serial, Identity(), primary_key=True),
    Column("event_seq", BigInteger, nullable=False),
    Column("subscription_id", Integer, nullable=False),
    Column("number", Integer, nullable=False),
    Column("at", Instant, nullable=False),
    Column("duration_us", BigInteger, nullable=False),
    Column("status", Integer),
    Column("error", Text),
    Column("excerpt", Text),
    Index("attempts_delivery", "event_seq", "subscription_id"),
)

subscriptions = Table(
    "subscriptions",
    metadata,
    Column("id", Integer, Identity(), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("spec", JSON, nullable=False),
    Column("origin", Text, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("paused", Boolean, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("breaker_until", Instant),  # open, or trying again, since too many deliveries failed in a row
    Column("breaker_trips", Integer, nullable=False, server_default=text("0")),  # in a row
    Column("paused_at", Instant),
    Column("paused_by", Text),  # as the actor gave it
    sqlite_autoincrement=True,
)

# `tick` is the first nominal time that is not done with, `next_at` when the schedule is to be looked at; both are null
# while nothing of it will come. `revision` changes with everything but the ticks.
schedules = Table(
    "schedules",
    metadata,
    Column("id", Integer, Identity(), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("cron", Text, nullable=False),  # this and the next column are for readers: `spec` has all
    Column("timezone", Text, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("origin", Text, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("paused", Boolean, nullable=False),
    Column("next_at", Instant),
    Column("updated_at", Instant, nullable=False),
    Column("revision", BigInteger, nullable=False, server_default=text("0")),
    Column("tick", Instant),
    Column("last_tick", Instant),  # that was published, its event, and where that was queued
    Column("last_seq", BigInteger),
    Column("last_position", BigInteger),
    Column("queued_until", Instant),
    Column("missed", BigInteger, nullable=False, server_default=text("0")),
    Column("skipped", BigInteger, nullable=False, server_default=text("0")),
    Column("paused_at", Instant),
    Column("paused_by", Text),
    Index("schedules_next_at", "next_at"),
    sqlite_autoincrement=True,
    postgresql_with=_TICKING,
)

occurrences = Table(
    "occurrences",
    metadata,
    Column("schedule_id", Integer, primary_key=True, autoincrement=False),
    Column("tick", Instant, primary_key=True),
    Column("event_seq", BigInteger),
    Column("created_at", Instant, nullable=False),
)

instances = Table(
    "instances",
    metadata,
    Column("id", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("version", Text, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("heartbeat_at", Instant, nullable=False),
    Column("progress_at", Instant),  # when its worker last went round
    Column("lag_us", BigInteger),  # the longest its event loop was blocked since the last beat
    Column("running", Integer),  # deliveries
    Column("sinks", JSON),  # their names
    Column("strategies", JSON(none_as_null=True)),  # name, hears and detail of each
    Column("holder", BigInteger),  # the first half of the tokens of its leases
    Column("configuration", JSON(none_as_null=True)),  # `Configuration`
)

# What one holder, an instance, has counted within a minute; written again as a whole while the minute lasts. The
# subscription 0 is the bus. `latency` has how many deliveries are in each bucket of `Histogram`, by its number.
throughput = Table(
    "throughput",
    metadata,
    Column("minute", Instant, primary_key=True),
    Column("subscription_id", Integer, primary_key=True, autoincrement=False),
    Column("holder", BigInteger, primary_key=True, autoincrement=False),
    Column("published", BigInteger, nullable=False),
    Column("delivered", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),  # attempts of deliveries that go on
    Column("dead", BigInteger, nullable=False),
    Column("latency", JSON, nullable=False),
    Column("dispatched", BigInteger, nullable=False, server_default="0"),
    Column("backlog", BigInteger),  # the most that waited, for the bus; null where it was not counted
)

# One row for each action by hand, written before it and completed after it; deleted by the pruner.
audit = Table(
    "audit",
    metadata,
    Column("seq", _Serial, Identity(), primary_key=True),
    Column("at", Instant, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("target", Text),
    Column("parameters", JSON, nullable=False),
    Column("outcome", String(11), nullable=False),
    Column("touched", BigInteger, nullable=False),
    Column("detail", Text),
    Column("ended_at", Instant),
    sqlite_autoincrement=True,
)

bus = Table(
    "bus",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("deployment_id", Text),
    Column("subscriptions_version", BigInteger, nullable=False),
    Column("channel", Text),
    Column("created_at", Instant, nullable=False),
)
