"""Two PostgreSQL servers, one a standby of the other, and processes that know both."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import asyncpg
import pytest

from runner.storage.postgres.connector import COMMAND_TIMEOUT
from tests.support.eventually import eventually
from tests.support.postgres import PostgresServer
from tests.support.proxy import Proxy
from tests.support.server import HOST

from .deployment import LEASE, Subscriber
from .journals import now
from .trial import Trial, Violation

FAILED_OVER = 10.0  # seconds after the standby was promoted
RECOVERED = 5.0  # seconds after a fault that silences nobody
NOTICED = 4.0  # seconds until somebody promotes a standby; a silent server is given up after COMMAND_TIMEOUT

_OURS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'runner'"
_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'NOTIFY evb%'"
_PUBLISHING = (
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%INSERT INTO%events AS e%'"
)
_CANCEL = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
_WRITTEN = "SELECT " + ", ".join(
    f"(SELECT md5(string_agg(concat(ctid, xmin, xmax), ',' ORDER BY ctid)) FROM {table})"
    for table in ("events", "dispatch", "deliveries", "attempts", "instances", "subscriptions", "bus")
)


@dataclass
class Cluster:
    """
    A primary, its standby, and a proxy before each.

    Attributes:
        link: what the standby receives.
        url: both proxies, the primary's first.
    """

    primary: PostgresServer
    standby: PostgresServer
    database: str
    first: Proxy
    second: Proxy
    link: Proxy

    @property
    def url(self) -> str:
        return f"postgresql://postgres@{HOST}:{self.first.port},{HOST}:{self.second.port}/{self.database}"

    def synchronise(self) -> None:
        """Have every commit wait for the standby."""
        self.primary.psql("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.primary.psql("SELECT pg_reload_conf()")

    def written(self) -> str:
        """Return what changes with every write to the primary's tables of the deployment."""
        return self.primary.psql(_WRITTEN, self.primary.dsn(self.database))

    def replicated(self) -> bool:
        """Return whether the standby has all there is."""
        ahead = "SELECT bool_and(replay_lsn = pg_current_wal_lsn()) FROM pg_stat_replication"
        return self.primary.psql(ahead) == "t"

    async def promote(self, trial: Trial) -> None:
        """Make the standby the primary; the checker looks there from now on."""
        await asyncio.to_thread(self.standby.promote)
        trial.deployment.dsn = self.standby.dsn(self.database)


async def failed_over(trial: Trial, cluster: Cluster) -> None:
    """The first host falls silent, as one that lost its network does, and after a while its standby takes over."""
    await _begin(trial, cluster, 1500)
    await trial.reach(trial.random.randint(200, 400))
    await _take_over(trial, cluster)
    await trial.verify(duplicates=trial.held(3), recovery=FAILED_OVER, timeout=30.0)


async def failed_over_too_early(trial: Trial, cluster: Cluster) -> None:
    """What had not been replicated is lost: that, and nothing else."""
    await _begin(trial, cluster, 1500)
    await trial.reach(trial.random.randint(200, 400))
    held = now()
    await cluster.link.set_mode("blackhole")
    trial.note("the standby receives nothing more")
    await trial.reach(trial.answered() + 100)
    await _take_over(trial, cluster)
    await trial.drain(30.0)
    lines = trial.deployment.published.read()
    recorded = (await trial.deployment.tables()).recorded
    gone = {line.id for line in lines if line.step == "ok" and not recorded[line.id]}
    trial.bite("acknowledged events lost, none of them replicated", len(gone))
    older = {line.id for line in lines if line.id in gone and line.step == "ok" and line.at < held}
    trial.require(not older, f"{len(older)} events were lost that had been acknowledged while there was replication")
    # A delivery whose settlement is lost begins again.
    seen = trial.deployment.deliveries.read()
    again = {each.id for each in seen if held - LEASE < each.at < trial.faults[0]} - gone
    await trial.verify(duplicates=len(again) + trial.held(3), recovery=FAILED_OVER, written_off=gone)


async def _begin(trial: Trial, cluster: Cluster, count: int) -> None:
    await trial.start(Subscriber("work"), runner_dsn=cluster.url, publisher_dsn=cluster.url)
    trial.publish(count, rate=150.0)


async def _take_over(trial: Trial, cluster: Cluster) -> None:
    """Cut the primary off, kill it, and promote its standby once somebody has noticed."""
    await cluster.first.set_mode("blackhole")
    trial.note("the primary is silent")
    trial.bite("connections cut off", cluster.first.connections)
    cluster.primary.kill()
    await asyncio.sleep(NOTICED)
    await cluster.promote(trial)
    trial.fault()
    trial.note("its standby is promoted")


async def former_primary_returned(trial: Trial, cluster: Cluster) -> None:
    """The first host is there again, and takes writes: neither old processes nor new ones may do any."""
    await _begin(trial, cluster, 2400)
    await trial.reach(trial.random.randint(200, 400))
    await cluster.first.set_mode("refuse")  # for the processes; the primary runs on, un-fenced
    await cluster.promote(trial)
    trial.fault()
    trial.note("the first host is gone, its standby is promoted")
    await trial.reach(trial.answered() + 200)
    await eventually(lambda: cluster.primary.psql(_OURS) == "0")
    before = cluster.written()
    await cluster.first.set_mode("pass")
    for _ in range(3):
        await cluster.second.set_mode("reset")
        await cluster.second.set_mode("pass")
        trial.bite("connections ended while both took writes")
        await trial.reach(trial.answered() + 100)
    trial.note("the former primary returned")
    [newcomer] = await trial.deployment.start()
    victims = [runner for runner in trial.runners if runner is not newcomer]
    for victim in victims:
        trial.require(await asyncio.to_thread(victim.stop) == 0, "the exit code of a stop is not 0")
    trial.note("only a runner that was started since is left")
    await trial.drain(30.0)
    trial.require(cluster.written() == before, "something was written on the former primary's timeline")
    await trial.verify(duplicates=trial.held(3), recovery=FAILED_OVER)


async def demoted(trial: Trial, cluster: Cluster) -> None:
    """The primary takes no writes any more and closes nothing; its standby does."""
    await _begin(trial, cluster, 1500)
    await trial.reach(trial.random.randint(200, 400))
    cluster.primary.psql("ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf()")
    trial.note("the primary is read-only")
    await eventually(lambda: _unknown(trial) > 0)
    trial.bite("publishes refused", _unknown(trial))
    await eventually(cluster.replicated)
    await cluster.promote(trial)
    trial.fault()
    trial.note("its standby is promoted")
    await trial.verify(duplicates=trial.held(3), recovery=RECOVERED)


async def demoted_for_a_while(trial: Trial, server: PostgresServer) -> None:
    """There is no other server to go to."""
    await trial.start(Subscriber("work"))
    trial.publish(1500, rate=200.0)
    await trial.reach(trial.random.randint(200, 400))
    server.psql("ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf()")
    trial.note("the server is read-only")
    await asyncio.sleep(LEASE + 1.0)
    server.psql("ALTER SYSTEM RESET default_transaction_read_only; SELECT pg_reload_conf()")
    trial.fault()
    trial.bite("publishes refused", _unknown(trial))
    await trial.verify(duplicates=trial.held(3), recovery=RECOVERED)


async def standby_stopped(trial: Trial, cluster: Cluster) -> None:
    """Commits wait for the standby; whoever gives up and asks again under the same id has to wait, too."""
    await trial.start(Subscriber("work"), publisher_dsn=cluster.primary.dsn(cluster.database))
    publisher = trial.publish(1000, rate=150.0)
    await trial.reach(trial.random.randint(200, 400))
    cluster.standby.stop("fast")
    trial.note("the standby is stopped")
    with contextlib.suppress(AssertionError):
        await eventually(lambda: _unknown(trial) > 0, timeout=COMMAND_TIMEOUT + 5.0)
    trial.bite("publishes that gave up waiting", _unknown(trial))
    publisher.kill()
    # Nobody hears the answer any more; what was waited for is there now, on this server only.
    await asyncio.to_thread(cluster.primary.psql, _CANCEL)
    await eventually(lambda: cluster.primary.psql(_PUBLISHING) == "0")
    committed = await asyncio.to_thread(cluster.primary.psql, "SELECT count(*) FROM events", trial.dsn)
    answered = trial.answered()
    trial.bite("commits without their standby", int(committed) - answered)
    trial.publish(1000, rate=150.0)
    trial.note("the publisher asks again")
    repeated = False
    with contextlib.suppress(AssertionError):
        await eventually(
            lambda: trial.answered() > answered or cluster.primary.psql(_PUBLISHING) != "0", timeout=30.0, every=0.1
        )
        repeated = True
        await eventually(lambda: trial.answered() > answered, timeout=2.0)
    trial.bite("publishes repeated without their standby", int(repeated))
    early = trial.answered() - answered
    trial.require(early == 0, f"{early} events were acknowledged without their standby")
    await asyncio.to_thread(cluster.standby.start)
    trial.fault()
    trial.note("the standby is back")
    await trial.verify(duplicates=trial.held(3), recovery=RECOVERED)


async def foreign_notify_hangs(trial: Trial, cluster: Cluster, seconds: float = 10.0) -> None:
    """Somebody's commit with a NOTIFY waits for a standby, and holds the lock that each NOTIFY of the cluster takes."""
    local = f"ALTER DATABASE {cluster.database} SET synchronous_commit = local"
    await asyncio.to_thread(cluster.primary.psql, local)  # its standby answers through a proxy in this process
    await trial.start(Subscriber("work"), strategies="[{polling: 1s}, postgres]")
    trial.publish(2400, rate=150.0)
    await trial.reach(trial.random.randint(200, 400))
    cluster.standby.stop("fast")
    foreign, admin = await asyncpg.connect(cluster.primary.dsn()), await asyncpg.connect(cluster.primary.dsn())
    began = now()
    hanging = asyncio.ensure_future(foreign.execute("BEGIN; CREATE TABLE t (); NOTIFY elsewhere; COMMIT"))
    trial.note("somebody's NOTIFY hangs in its commit")
    ends = began + seconds
    waiting = 0
    while now() < ends:
        waiting = max(waiting, await admin.fetchval(_WAITING))
        await asyncio.sleep(0.1)
    trial.bite("signals that waited for it", waiting)
    trial.require(not hanging.done(), "the foreign commit did not hang")
    lines = trial.deployment.published.read()
    invoked = {line.id: line.at for line in lines if line.step == "invoke"}
    answers = [line for line in lines if line.step == "ok" and line.at > began]
    slowest = max((line.at - invoked[line.id] for line in answers), default=seconds)
    trial.note(f"the slowest of {len(answers)} publishes took {slowest:.2f} s")
    trial.require(slowest < seconds / 3, f"a publish took {slowest:.1f} s")
    await asyncio.to_thread(cluster.standby.start)
    await hanging
    trial.fault()
    trial.note("it has committed")
    await asyncio.gather(foreign.close(), admin.close())
    await trial.verify(recovery=RECOVERED)


def _unknown(trial: Trial) -> int:
    return sum(line.step == "unknown" for line in trial.deployment.published.read())


@pytest.fixture
async def cluster(
    request: pytest.FixtureRequest, make_trial: Callable[..., Trial], make_postgres: Callable[..., PostgresServer]
) -> AsyncIterator[tuple[Trial, Cluster]]:
    """A trial on a primary, its standby, and the proxies before them; the parameter names a mutant."""
    primary = make_postgres(settings={"track_activity_query_size": "16384"})  # `_PUBLISHING` reads whole statements
    trial = make_trial(primary, mutant=getattr(request, "param", ""))
    async with Proxy(primary.dsn()) as first, Proxy(primary.dsn()) as link:
        standby = await asyncio.to_thread(make_postgres, primary=link.url)
        async with Proxy(standby.dsn()) as second:
            yield trial, Cluster(primary, standby, trial.dsn.rsplit("/", 1)[1], first, second, link)


@pytest.mark.chaos_postgres
@pytest.mark.chaos("FI-22", "failover to a synchronous standby, the first host silent")
async def test_fi_22(cluster: tuple[Trial, Cluster]) -> None:
    cluster[1].synchronise()
    await failed_over(*cluster)


@pytest.mark.chaos_postgres
@pytest.mark.chaos("FI-22", "failover to an asynchronous standby that was behind")
async def test_fi_22_asynchronous(cluster: tuple[Trial, Cluster]) -> None:
    await failed_over_too_early(*cluster)


@pytest.mark.chaos_postgres
@pytest.mark.chaos("FI-23", "the former primary returns first in the DSN, and takes writes")
async def test_fi_23(cluster: tuple[Trial, Cluster]) -> None:
    await former_primary_returned(*cluster)


@pytest.mark.chaos_postgres
@pytest.mark.chaos("FI-24", "the primary turns read-only, its standby is promoted")
async def test_fi_24(cluster: tuple[Trial, Cluster]) -> None:
    await demoted(*cluster)


@pytest.mark.chaos_postgres
@pytest.mark.chaos("FI-24", "the only server turns read-only for a while")
async def test_fi_24_alone(make_trial: Callable[..., Trial], make_postgres: Callable[..., PostgresServer]) -> None:
    server = make_postgres()
    await demoted_for_a_while(make_trial(server), server)


@pytest.mark.chaos_postgres
@pytest.mark.chaos("FI-26", "the synchronous standby stopped, publishers time out and ask again")
async def test_fi_26(cluster: tuple[Trial, Cluster]) -> None:
    cluster[1].synchronise()
    await standby_stopped(*cluster)


@pytest.mark.parametrize("cluster", ["believe-duplicates"], indirect=True)
@pytest.mark.chaos("FI-26")
async def test_a_mutant_is_caught(cluster: tuple[Trial, Cluster]) -> None:
    cluster[1].synchronise()
    with pytest.raises(Violation):
        await standby_stopped(*cluster)


@pytest.mark.chaos_postgres
@pytest.mark.chaos("FI-29", "somebody's NOTIFY hangs in its commit for 10 s")
async def test_fi_29(cluster: tuple[Trial, Cluster]) -> None:
    cluster[1].synchronise()
    await foreign_notify_hangs(*cluster)
