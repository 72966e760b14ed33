"""Judgements on a PostgreSQL server: pure, on the facts of an examination."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta

from ..config.duration import format_duration
from ..storage.contract.examination import Clock, Holder, Seats, ServerFacts, TableFacts
from ..storage.encoding import holds_everything
from ..storage.home import SEARCH_PATH
from .thresholds import Thresholds
from .verdict import Finding, fault, fine, warning

__all__ = [
    "about",
    "judge_autovacuum",
    "judge_clock",
    "judge_durability",
    "judge_encoding",
    "judge_horizon",
    "judge_rights",
    "judge_seats",
    "judge_server",
    "judge_tls",
    "size",
]

_RELOAD = "SELECT pg_reload_conf()"
_PLAIN = ("disable", "allow", "prefer")  # the modes of libpq that guarantee nothing


def judge_server(facts: ServerFacts, limits: Thresholds) -> Iterator[Finding]:
    """Yield whether the server takes writes, and is of a version that the bus knows."""
    if facts.standby:
        cure = "give the primary in storage.dsn, or every host of the cluster: postgresql://a,b/name"
        yield fault("server", "standby", "it is a standby, which takes no writes", cure)
    elif facts.read_only:
        cure = (
            f"ALTER ROLE {facts.role} RESET default_transaction_read_only, and the same for the database and the"
            " server; or give the primary in storage.dsn"
        )
        yield fault("server", "read_only", "the session takes no writes (default_transaction_read_only)", cure)
    if facts.number < limits.oldest_server:
        yield warning(
            "server",
            "old_version",
            f"PostgreSQL {facts.version} is older than the versions the bus is tested with",
            f"upgrade it to {limits.oldest_server // 10_000} or later",
        )


def judge_tls(facts: ServerFacts, mode: str, *, far: str | None) -> Iterator[Finding]:
    """
    Yield whether what goes to the server can be read or diverted on its way.

    Args:
        mode: the sslmode that is in force.
        far: a host that is not this machine; None if there is none.
    """
    cure = "set storage.tls: verify-full, and the authority of the server's certificate as sslrootcert in storage.dsn"
    if not facts.tls and far is not None:
        yield warning("tls", "plain", f"the password and the events go to {far} in clear (sslmode={mode})", cure)
    elif facts.tls and not facts.verified and (far is not None or mode not in _PLAIN):
        what = f"{facts.tls}, but the server's certificate is not verified (sslmode={mode})"
        yield warning("tls", "unverified", f"{what}: anybody on the way can be the server", cure)
    elif facts.tls and facts.verified == "authority" and far is not None:
        what = f"{facts.tls}, the certificate verified, but not the name in it (sslmode={mode})"
        yield warning("tls", "name_unverified", what, "set storage.tls: verify-full")
    elif facts.tls:
        how = (
            f"certificate {'and name ' if facts.verified == 'name' else ''}verified" if facts.verified else "unverified"
        )
        yield fine("tls", f"{facts.tls}, {how}")
    else:
        yield fine("tls", "none, and none needed: the server is on this machine")


def judge_encoding(facts: ServerFacts) -> Iterator[Finding]:
    """Yield whether the database holds every character, and every event as it came."""
    if facts.encoding == "SQL_ASCII":
        yield warning(
            "encoding",
            "encoding",
            "SQL_ASCII: the database checks no text, so that tools of other encodings read it wrong",
            "make the database with ENCODING 'UTF8', and move the events: runner events export, runner events import",
        )
    elif not holds_everything(facts.encoding):
        yield warning(
            "encoding",
            "encoding",
            f"{facts.encoding}: events with other characters are refused",
            "make the database with ENCODING 'UTF8', and move the events: runner events export, runner events import",
        )
    else:
        yield fine("encoding", facts.encoding)


def judge_durability(facts: ServerFacts) -> Iterator[Finding]:
    """Yield whether an event that was acknowledged survives a crash."""
    settings = facts.settings
    if settings["fsync"] == "off":
        yield fault(
            "durability",
            "fsync_off",
            "fsync = off: a crash of the machine can destroy the database",
            f"ALTER SYSTEM SET fsync = on; {_RELOAD}; or remove it from the command line of the server",
        )
    if settings["full_page_writes"] == "off":
        yield fault(
            "durability",
            "full_page_writes_off",
            "full_page_writes = off: a page that was half written at a crash stays so",
            f"ALTER SYSTEM SET full_page_writes = on; {_RELOAD}",
        )
    if settings.get("zero_damaged_pages") == "on":
        yield fault(
            "durability",
            "zero_damaged_pages",
            "zero_damaged_pages = on: damaged pages are emptied without a word",
            f"ALTER SYSTEM RESET zero_damaged_pages; {_RELOAD}",
        )
    if settings["synchronous_commit"] == "off":
        yield warning(
            "durability",
            "synchronous_commit_off",
            "synchronous_commit = off: events acknowledged in the last moments before a crash are lost",
            f"ALTER DATABASE {facts.database} SET synchronous_commit = on, and the same for role {facts.role} and the"
            " server",
        )
    if settings["synchronous_commit"] != "off" and settings["fsync"] == "on" == settings["full_page_writes"]:
        yield fine("durability", f"fsync, full_page_writes on, synchronous_commit {settings['synchronous_commit']}")


def judge_search_path(facts: ServerFacts) -> Iterator[Finding]:
    """Yield whether functions of other roles could shadow PostgreSQL's own."""
    path = facts.settings["search_path"]
    if path != SEARCH_PATH:
        yield warning(
            "rights",
            "search_path",
            f"through the pooler the role has the search path {path!r}: functions of others could be run",
            f"ALTER ROLE {facts.role} SET search_path = {SEARCH_PATH}, with storage.schema set",
        )


def judge_clock(clock: Clock, limits: Thresholds) -> Iterator[Finding]:
    """Yield whether the clocks of this machine and the database agree, within the precision of the round trip."""
    ahead, uncertain = clock.ahead, clock.after - clock.before
    off = abs(ahead)
    if off < limits.skew:
        yield fine("clock", f"within {_milliseconds(off + uncertain)} of the database")
        return
    side = "ahead of" if ahead > timedelta(0) else "behind"
    what = f"this machine is {format_duration(_rounded(off))} {side} the database"
    cure = "synchronise the clocks of both by NTP (chrony, systemd-timesyncd)"
    if off >= limits.large_skew:
        yield fault("clock", "clock", f"{what}: receivers refuse signatures of webhooks that far off", cure)
    else:
        yield warning("clock", "clock", what, cure)


def judge_rights(missing: Sequence[str], facts: ServerFacts) -> Iterator[Finding]:
    """Yield the rights that the role lacks."""
    if missing:
        some = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        yield fault(
            "rights",
            "rights",
            f"role {facts.role} lacks {some}",
            "`runner migrate --roles` prints what gives each role its rights",
        )
    yield from judge_search_path(facts)


def judge_seats(seats: Seats, each: int, processes: int) -> Iterator[Finding]:
    """
    Yield whether the server has enough connections for all processes.

    Args:
        each: connections that one process may hold.
        processes: how many run, one at least.
    """
    limits = [
        (seats.most, "max_connections leaves", "raise max_connections of the server"),
        (seats.role_most, "the role has", "ALTER ROLE … CONNECTION LIMIT"),
        (seats.database_most, "the database has", "ALTER DATABASE … CONNECTION LIMIT"),
    ]
    bound, whose, how = min(
        ((most, whose, how) for most, whose, how in limits if most is not None), key=lambda limit: limit[0]
    )
    need = each * processes
    budget = f"{processes} process{'es' if processes > 1 else ''} of {each} connections need {need}, {whose} {bound}"
    cure = f"lower storage.pool, put a pooler between (storage.pgbouncer), or {how}"
    if need > bound:
        yield fault("connections", "budget", budget, cure)
    elif need + each > bound:
        yield warning("connections", "budget", f"{budget}: a process more, as in a rolling restart, has no room", cure)
    elif seats.used >= seats.most:
        yield fault("connections", "exhausted", f"all {seats.most} connections are in use", cure)
    else:
        yield fine("connections", f"{budget}; {seats.used} are in use")


def judge_autovacuum(facts: ServerFacts, tables: Sequence[TableFacts], limits: Thresholds) -> Iterator[Finding]:
    """Yield whether dead rows of the tables of work are removed."""
    found = []
    for setting in ("autovacuum", "track_counts"):
        if facts.settings[setting] == "off":
            cure = f"ALTER SYSTEM SET {setting} = on; {_RELOAD}"
            found.append(fault("autovacuum", "autovacuum_off", f"{setting} = off: dead rows are never removed", cure))
    for each in tables:
        name = f"{facts.schema}.{each.name}" if facts.schema else each.name
        if not each.autovacuum:
            cure = f"ALTER TABLE {name} RESET (autovacuum_enabled)"
            measured = f"autovacuum is off for {name}, which has {each.dead:,} dead rows"
            found.append(fault("autovacuum", "autovacuum_off", measured, cure, each.name))
        elif each.dead > limits.dead_rows and each.dead > each.live // 5:
            cure = (
                f"see what holds the horizon, then VACUUM {name}; lower autovacuum_vacuum_cost_delay if it comes again"
            )
            measured = f"{name} has {each.dead:,} dead rows beside {each.live:,} live ones, {size(each.size)}"
            found.append(warning("autovacuum", "bloat", measured, cure, each.name))
    yield from found
    if not found:
        dead = max((each.dead for each in tables), default=0)
        yield fine("autovacuum", f"on; at most {dead:,} dead rows in a table of work")


def judge_horizon(holders: Sequence[Holder], facts: ServerFacts, limits: Thresholds) -> Iterator[Finding]:
    """Yield what keeps dead rows from being removed, or old WAL."""
    found = [finding for each in holders if (finding := _held(each, limits)) is not None]
    yield from found
    if not found:
        ages = [each.age for each in holders if each.age is not None]
        oldest = f"the oldest transaction is {format_duration(_rounded(max(ages)))} old" if ages else "nothing holds it"
        blind = "" if facts.sees_all else f"; {facts.role} sees its own sessions only: GRANT pg_read_all_stats TO it"
        yield fine("horizon", oldest + blind)


def _held(each: Holder, limits: Thresholds) -> Finding | None:
    old = each.age is not None and each.age >= limits.old_transaction
    since = "" if each.age is None else format_duration(_rounded(each.age))
    match each.kind:
        case "session" if old:
            measured = f"session {each.name} has a transaction open for {since} ({each.state or 'active'})"
            pid = each.name.split(" ")[0]
            cure = f"end it: SELECT pg_terminate_backend({pid}); set idle_in_transaction_session_timeout"
            return warning("horizon", "old_transaction", f"{measured}: dead rows stay", cure, each.name)
        case "prepared" if old:
            measured = f"prepared transaction {each.name!r} is {since} old: dead rows stay"
            gid = each.name.replace("'", "''")
            cure = f"COMMIT PREPARED '{gid}' or ROLLBACK PREPARED '{gid}'"
            return warning("horizon", "prepared_transaction", measured, cure, each.name)
        case "slot" if each.state == "inactive" or (each.wal or 0) > limits.wal_kept:
            kept = "" if each.wal is None else f", keeps {size(each.wal)} of WAL"
            rows = "" if each.xids is None else f" and the dead rows of {each.xids:,} transactions"
            measured = f"replication slot {each.name!r} is {each.state}{kept}{rows}: the disk fills up"
            cure = f"start who reads it, or SELECT pg_drop_replication_slot('{each.name}')"
            return warning("horizon", "replication_slot", measured, cure, each.name)
    return None


def about(facts: ServerFacts, milliseconds: float) -> str:
    """Return the server in a few words."""
    pooled = ", through a pooler" if facts.pooled else ""
    schema = f", schema {facts.schema}" if facts.schema else ""
    return (
        f"PostgreSQL {facts.version.split(' ')[0]}, database {facts.database}{schema} as {facts.role}, connected in"
        f" {milliseconds:.0f} ms{pooled}"
    )


def size(number: int) -> str:
    """Return a number of bytes for people."""
    value = float(number)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" or value >= 10 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _rounded(length: timedelta) -> timedelta:
    step = timedelta(seconds=1) if length >= timedelta(seconds=10) else timedelta(milliseconds=100)
    return step * round(length / step)


def _milliseconds(length: timedelta) -> str:
    return f"{max(1, round(length / timedelta(milliseconds=1)))} ms"
