"""What becomes of an outcome between the handler and the table."""

from __future__ import annotations

from collections import Counter

import asyncpg
import pytest

from .deployment import Subscriber
from .trial import Trial

# What is recorded of these events is refused when it is to be committed, and not before.
_REFUSE = """
CREATE FUNCTION public.chaos_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    RAISE EXCEPTION 'refused at the commit: \u00a7';
END $$;
CREATE FUNCTION public.chaos_refuse_cursed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF (SELECT type FROM public.events WHERE seq = NEW.event_seq) = 'cursed' THEN
        RAISE EXCEPTION 'refused at the commit: \u00a7';
    END IF;
    RETURN NULL;
END $$;
CREATE FUNCTION public.chaos_refuse_run() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF EXISTS (SELECT FROM public.events e
               WHERE e.seq BETWEEN NEW.first AND NEW.last AND NEW.seqs @> e.seq AND e.type = 'cursed') THEN
        RAISE EXCEPTION 'refused at the commit: \u00a7';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER chaos_refuse AFTER INSERT ON public.events DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.type = 'barred') EXECUTE FUNCTION public.chaos_refuse();
CREATE CONSTRAINT TRIGGER chaos_refuse AFTER INSERT OR UPDATE ON public.deliveries DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.state = 'delivered') EXECUTE FUNCTION public.chaos_refuse_cursed();
CREATE CONSTRAINT TRIGGER chaos_refuse AFTER INSERT ON public.runs DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION public.chaos_refuse_run();
"""


async def tasks_ended(trial: Trial) -> None:
    """Handlers that end the task they run in, at once and when they are held under a lease of their own."""
    options = "concurrency: 8, breaker: off"
    await trial.start(
        Subscriber("note", "note"),
        Subscriber("perish", "perish", options=options),
        Subscriber("linger", "linger", options=options),
    )
    trial.publish(200, rate=100.0)
    await trial.drain(20)
    failed = Counter(line.subscription for line in trial.deployment.deliveries.read() if line.step == "failed")
    trial.bite("attempts that ended their task at once", failed["perish"])
    trial.bite("attempts that ended their task under a lease of their own", failed["linger"])
    await trial.verify()


async def refused_at_the_commit(trial: Trial) -> None:
    """Some outcomes, and some events, that the database refuses with everything else that is in their transaction."""
    await trial.start(Subscriber("note", "note"), Subscriber("toil", "toil"))
    connection = await asyncpg.connect(trial.dsn)
    await connection.execute(_REFUSE)
    await connection.close()
    trial.note("triggers that refuse at the commit")
    trial.publish(300, rate=150.0, types=[*["load"] * 20, "cursed", *["load"] * 5, "barred"])
    await trial.drain(20)
    refused = {line.id for line in trial.deployment.published.read() if line.step == "fail"}
    barred = {line.id for line in trial.deployment.published.read() if line.type == "barred"}
    trial.require(refused == barred, f"{len(refused - barred)} publishes failed with one that was refused")
    dead = {
        pair: row.error or ""
        for pair, row in (await trial.deployment.tables()).deliveries.items()
        if row.state == "dead"
    }
    trial.require(
        all(error.isascii() and "refused at the commit" in error for error in dead.values()), "dead otherwise"
    )
    cursed = {line.id for line in trial.deployment.published.read() if line.type == "cursed"}
    trial.require({id for id, _ in dead} == cursed, "others are dead than those which were refused")
    trial.bite("publishes refused at the commit", len(refused))
    trial.bite("outcomes refused at the commit", len(dead))
    await trial.verify()


@pytest.mark.chaos("FI-58", "handlers that end their own task")
async def test_fi_58(trial: Trial) -> None:
    await tasks_ended(trial)


@pytest.mark.chaos("FI-59", "a refusal at the commit, of events and of outcomes")
async def test_fi_59(trial: Trial) -> None:
    await refused_at_the_commit(trial)
