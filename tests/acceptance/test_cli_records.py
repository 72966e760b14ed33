from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sqlite3
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.support.eventually import eventually

from .deployment import Deployment, started


@pytest.fixture(params=["sqlite", "postgres"])
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Deployment:
    dsn = "sqlite:///runner.db" if request.param == "sqlite" else request.getfixturevalue("postgres_dsn")
    made = Deployment(tmp_path, dsn)
    made.write()
    made.cli("migrate")
    return made


def line(number: int, **more: object) -> str:
    return json.dumps({"specversion": "1.0", "id": f"n{number}", "source": "/test", "type": "a.b", **more}) + "\n"


def test_publish_prints_the_receipt(deployment: Deployment) -> None:
    output, _ = deployment.cli("publish", "order.created", "--data", '{"n": 1}', "--source", "/shop", "--id", "o1")
    assert output == "o1  seq 1\n"
    repeated = ("publish", "order.created", "--data", '{"n": 1}', "--source", "/shop", "--id", "o1")
    assert deployment.cli(*repeated)[0] == "o1  seq 1  duplicate\n"
    assert deployment.json(*repeated) == [{"id": "o1", "source": "/shop", "seq": 1, "duplicate": True}]
    _, complaint = deployment.cli("publish", "order.created", "--source", "/shop", "--id", "o1", code=1)
    assert complaint.startswith("Error: ")
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f-]{27}  seq \d+\n", deployment.cli("publish", "order.created")[0])


def test_data_is_kept_as_it_was_given(deployment: Deployment) -> None:
    content = '{"big": 12345678901234567890123,  "n": 1.0}'
    (deployment.directory / "data.json").write_text(content)
    deployment.cli("publish", "a.file", "--data", "@data.json", "--subject", "eu/1")
    deployment.cli("publish", "a.pipe", "--data", "-", "--content-type", "text/plain", input="grüße")
    deployment.cli("publish", "a.bare")
    assert re.search(rf"^data +{re.escape(content)}$", deployment.cli("events", "show", "1")[0], re.MULTILINE)
    [first], [second], [third] = (deployment.json("events", "show", str(seq)) for seq in (1, 2, 3))
    assert first["event"].items() >= {"subject": "eu/1", "datacontenttype": "application/json"}.items()
    assert second["event"].items() >= {"data": "grüße", "datacontenttype": "text/plain"}.items()
    assert "data" not in third["event"]


def test_a_file_goes_in_whole_and_again_without_effect(deployment: Deployment) -> None:
    file = deployment.directory / "events.jsonl"
    file.write_text("".join(line(number) for number in range(1200)))
    assert deployment.cli("publish", "--file", file, "--dry-run")[0] == "1200 valid, nothing published\n"
    assert deployment.cli("events", "list")[0].count("\n") == 1
    assert deployment.cli("publish", "--file", file)[0] == "1200 new, 0 already there\n"
    receipts = deployment.json("publish", "--file", file)
    assert [receipt["id"] for receipt in receipts] == [f"n{number}" for number in range(1200)]
    assert all(receipt["duplicate"] for receipt in receipts)


def test_a_conflict_in_a_file_is_named_and_the_rest_goes_in(deployment: Deployment) -> None:
    file = deployment.directory / "events.jsonl"
    file.write_text("".join(line(number) for number in (1, 3)))
    deployment.cli("publish", "--file", file)
    file.write_text("".join(line(number, type="a.c" if number in (1, 4) else "a.b") for number in (1, 2, 3, 4, 5, 6)))
    file.write_text(file.read_text() + line(6, type="a.c"))
    output, complaint = deployment.cli("publish", "--file", "events.jsonl", code=1)
    assert output == "4 new, 1 already there, 2 in conflict\n"
    assert re.findall(r"^events\.jsonl:(\d+): event '(n\d)'", complaint, re.MULTILINE) == [("1", "n1"), ("7", "n6")]
    listed = [each["event"]["id"] for each in deployment.json("events", "list")]
    assert listed == ["n6", "n5", "n4", "n2", "n3", "n1"]


def test_a_bad_line_in_a_file_loses_nothing_and_publishes_nothing(deployment: Deployment) -> None:
    file = deployment.directory / "events.jsonl"
    file.write_text(line(1) + line(2, type="") + line(3) + "{\n")
    _, complaint = deployment.cli("publish", "--file", "events.jsonl", code=1)
    assert "events.jsonl:2: type" in complaint
    assert "events.jsonl:4: " in complaint
    assert deployment.json("events", "list") == []


def test_standard_input_is_published_up_to_the_first_bad_line(deployment: Deployment) -> None:
    output, complaint = deployment.cli("publish", "--file", "-", code=1, input=line(1) + line(2) + "{\n" + line(3))
    assert output == "2 new, 0 already there\n"
    assert "-:3: " in complaint
    assert [each["event"]["id"] for each in deployment.json("events", "list")] == ["n2", "n1"]


def test_a_later_event_is_scheduled(deployment: Deployment) -> None:
    before = datetime.now(UTC)
    [receipt] = deployment.json("publish", "a.b", "--delay", "1h")
    later = (before + timedelta(days=300)).replace(microsecond=0)
    at = later.astimezone(timezone(timedelta(hours=1))).isoformat()
    due = later.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    assert deployment.cli("publish", "a.b", "--deliver-at", at)[0].endswith(f"seq 2  due {due}\n")
    assert deployment.cli("publish", "a.b", "--deliver-at", at, "--dry-run")[1] == f"due {due}\n"
    assert due in deployment.cli("events", "list")[0]
    second, first = deployment.json("events", "list")
    assert (first["state"], second["state"]) == ("scheduled", "scheduled")
    assert datetime.fromisoformat(second["due_at"]) == later
    assert receipt["due_at"] == first["due_at"]
    assert timedelta(minutes=59) < datetime.fromisoformat(first["due_at"]) - before < timedelta(minutes=61)


def test_events_are_listed_and_shown(deployment: Deployment) -> None:
    text = "".join(line(number, type=f"order.{'odd' if number % 2 else 'even'}") for number in range(6))
    deployment.cli("publish", "--file", "-", input=text)
    plain = deployment.cli("events", "list", "--limit", "2")[0].splitlines()
    assert [row.split()[0] for row in plain] == ["SEQ", "6", "5"]
    odd = deployment.json("events", "list", "--type", "*.odd", "--since", "1h")
    assert [each["event"]["id"] for each in odd] == ["n5", "n3", "n1"]
    assert deployment.json("events", "list", "--since", "2100-01-01T00:00:00Z") == []
    assert deployment.json("events", "list", "--until", "1h") == []
    [shown] = deployment.json("events", "show", "n3")
    assert shown.keys() == {"seq", "state", "created_at", "due_at", "deliveries", "event"}
    assert (shown["seq"], shown["state"], shown["deliveries"]) == (4, "queued", {})
    assert shown["event"].items() >= json.loads(line(3, type="order.odd")).items()
    _, complaint = deployment.cli("events", "show", "n99", code=1)
    assert complaint.startswith("Error: ")
    assert "n99" in complaint


def test_tail_follows_until_interrupted(deployment: Deployment) -> None:
    deployment.cli("publish", "old.one")
    deployment.cli("publish", "old.two")
    with deployment.process("events", "tail", "--type", "new.*") as tail:
        with deployment.process("events", "tail", "--since", "1h", "--json") as everything:
            everything.wait_for_line("old.two")
            number = 0

            def appears() -> bool:
                # What is published before `tail` looks for the first time is old for it.
                nonlocal number
                number += 1
                deployment.cli("publish", "new.one", "--data", str(number))
                deployment.cli("publish", "other.one")
                return any("new.one" in row for row in tail.stdout)

            _wait(appears)
            everything.wait_for_line("other.one")
            everything.signal(signal.SIGINT)
            assert everything.wait() == 130
            shown = [json.loads(row)["event"]["type"] for row in everything.stdout]
            assert shown[:2] == ["old.one", "old.two"]
        tail.signal(signal.SIGINT)
        assert tail.wait() == 130
        assert {row.split()[2] for row in tail.stdout} == {"new.one"}
        assert "".join(tail.stderr + everything.stderr).strip() == ""


def _wait(check: Any) -> None:
    asyncio.run(eventually(lambda: asyncio.to_thread(check)))


def test_deliveries_are_listed_shown_and_retried(deployment: Deployment) -> None:
    with started(deployment) as runner:
        deployment.cli("publish", "broken.one", "--id", "b1", "--source", "/test")
        _wait(lambda: deployment.json("deliveries", "list", "--state", "dead"))
        [dead] = deployment.json("deliveries", "list", "--state", "dead", "--subscription", "broken")
        assert dead.keys() == {
            "seq",
            "subscription",
            "source",
            "id",
            "type",
            "state",
            "attempts",
            "due_at",
            "held_by",
            "last_error",
            "updated_at",
        }
        assert (dead["id"], dead["source"], dead["type"], dead["attempts"]) == ("b1", "/test", "broken.one", 2)
        [shown] = deployment.json("deliveries", "show", "b1", "broken")
        assert [each["number"] for each in shown["history"]] == [1, 2]
        assert shown["history"][0].keys() == {"number", "at", "duration", "status", "error", "excerpt"}
        assert "dead" in deployment.cli("deliveries", "show", "1", "broken")[0]

        output, _ = deployment.cli("deliveries", "retry", "--state", "dead", "--dry-run")
        assert output == "1 delivery would be retried\n"
        assert deployment.json("deliveries", "list", "--state", "dead")[0]["updated_at"] == dead["updated_at"]
        (deployment.directory / "handlers.py").touch()
        assert deployment.cli("deliveries", "retry", "b1", "broken")[0] == "1 delivery retried\n"
        _wait(
            lambda: any(
                each["updated_at"] > dead["updated_at"]
                for each in deployment.json("deliveries", "list", "--state", "dead")
            )
        )
        _, complaint = deployment.cli("deliveries", "retry", "b1", "everything", code=1)
        assert "delivered; only dead or cancelled" in complaint
        deployment.cli("deliveries", "show", "b1", "nobody", code=1)
        known = "no subscription 'nobody'; there are: broken, everything, stuck"
        for verb in ("list", "retry", "cancel"):
            assert known in deployment.cli("deliveries", verb, "--subscription", "nobody", code=1)[1]
        assert known in deployment.cli("deliveries", "retry", "b1", "nobody", code=1)[1]
        assert runner.stop() == 0


def test_waiting_deliveries_are_cancelled(deployment: Deployment) -> None:
    with started(deployment) as runner:
        deployment.cli("publish", "stuck.one")
        runner.wait_for_line("stuck now")
        _wait(lambda: deployment.json("deliveries", "list", "--state", "leased"))
        assert deployment.json("deliveries", "cancel", "--subscription", "stuck", "--dry-run") == [
            {"cancelled": 1, "dry_run": True}
        ]
        assert deployment.cli("deliveries", "cancel", "--subscription", "stuck")[0] == "1 delivery cancelled\n"
        assert deployment.cli("deliveries", "cancel", "--subscription", "stuck")[0] == "0 deliveries cancelled\n"
        [cancelled] = deployment.json("deliveries", "list", "--event", "1", "--state", "cancelled")
        assert cancelled["subscription"] == "stuck"


def test_recorded_events_are_replayed_to_a_newer_subscription(deployment: Deployment) -> None:
    events = "".join(line(number, type="stock.low" if number % 2 else "a.b") for number in range(6))
    with started(deployment) as runner:
        deployment.cli("publish", "--file", "-", input=events)
        _wait(lambda: len(deployment.json("deliveries", "list", "--state", "delivered")) == 6)
        assert runner.stop() == 0
    replay = ("events", "replay", "--subscription", "later")
    assert "no active subscription 'later'" in deployment.cli(*replay, code=1)[1]
    newer = deployment.path.read_text().replace(
        "worker:", '  - {name: later, types: ["stock.*"], sink: terminal}\nworker:'
    )
    deployment.path.write_text(newer)
    with started(deployment) as runner:
        assert deployment.cli(*replay, "--dry-run")[0] == "3 events would be replayed to later\n"
        assert deployment.json(*replay, "--type", "a.*", "--dry-run") == [{"replayed": 0, "dry_run": True}]
        assert deployment.cli(*replay, "--missing", "--rate", "1000/s")[0] == "3 events replayed to later\n"
        theirs = ("deliveries", "list", "--subscription", "later", "--state", "delivered")
        _wait(lambda: len(deployment.json(*theirs)) == 3)
        assert deployment.cli(*replay, "--missing")[0] == "0 events replayed to later\n"
        assert "expected a rate such as" in deployment.cli(*replay, "--rate", "fast", code=2)[1]


def test_what_is_still_to_come_is_cancelled(deployment: Deployment) -> None:
    with started(deployment):
        [receipt] = deployment.json("publish", "a.b", "--delay", "1h")
        seq = str(receipt["seq"])
        assert deployment.cli("events", "cancel", receipt["id"])[0] == f"event {seq} cancelled, 1 delivery\n"
        [shown] = deployment.json("events", "show", seq)
        assert (shown["state"], shown["due_at"], shown["deliveries"]) == ("cancelled", None, {"cancelled": 1})
        assert "is cancelled; nothing of it is still to come" in deployment.cli("events", "cancel", seq, code=1)[1]
        deployment.cli("publish", "stuck.one")
        _wait(lambda: deployment.json("deliveries", "list", "--state", "leased"))
        assert deployment.json("events", "cancel", "2") == [{"seq": 2, "cancelled": 1}]
        assert deployment.json("events", "show", "2")[0]["deliveries"] == {"delivered": 1, "cancelled": 1}


def test_subscriptions_are_listed_paused_and_resumed(deployment: Deployment) -> None:
    with started(deployment) as runner:
        names = [each["name"] for each in deployment.json("subscriptions", "list")]
        assert names == ["everything", "broken", "stuck"]
        [shown] = deployment.json("subscriptions", "show", "everything")
        assert shown.items() >= {"active": True, "paused": False, "origin": "file", "sink": "terminal"}.items()
        plain, _ = deployment.cli("subscriptions", "show", "everything")
        for field in ("sink +terminal", "active +yes", "paused +no", "timeout +25s", r"retry\.max_delay +1h"):
            assert re.search(rf"^{field}$", plain, re.MULTILINE)
        assert re.search(r"^everything +active", deployment.cli("subscriptions", "list")[0], re.MULTILINE)

        assert deployment.cli("subscriptions", "pause", "everything")[0] == "everything is paused\n"
        assert deployment.cli("subscriptions", "pause", "everything")[0] == "everything was already paused\n"
        assert re.search(r"^everything +paused", deployment.cli("subscriptions", "list")[0], re.MULTILINE)
        deployment.cli("publish", "while.paused")
        assert deployment.json("subscriptions", "resume", "everything") == [
            {"name": "everything", "paused": False, "changed": True}
        ]
        runner.wait_for_line("while.paused")
        _, complaint = deployment.cli("subscriptions", "pause", "nobody", code=1)
        assert "everything" in complaint
        deployment.cli("subscriptions", "show", "nobody", code=1)


def test_a_subscription_that_is_in_no_file_any_more_is_removed(deployment: Deployment) -> None:
    with started(deployment) as runner:
        deployment.cli("subscriptions", "pause", "stuck")
        deployment.cli("publish", "stuck.one")
        _wait(lambda: deployment.json("deliveries", "list", "--state", "pending", "--subscription", "stuck"))
        refused = deployment.cli("subscriptions", "remove", "stuck", code=1)[1]
        assert "stuck is in the file, and would come back with it" in refused
        assert runner.stop() == 0
    text = deployment.path.read_text()
    deployment.path.write_text(text.replace('  - {name: stuck, types: ["stuck.*"], sink: stuck}\n', ""))
    remove = ("subscriptions", "remove", "stuck")
    assert deployment.cli(*remove, "--dry-run")[0] == "stuck would be removed, 1 delivery cancelled\n"
    assert deployment.json(*remove) == [{"name": "stuck", "cancelled": 1, "dry_run": False}]
    assert [each["name"] for each in deployment.json("subscriptions", "list")] == ["everything", "broken"]
    assert "no subscription 'stuck'; there are: broken, everything" in deployment.cli(*remove, code=1)[1]


def test_a_breaker_is_shown_and_closed_by_hand(deployment: Deployment) -> None:
    lines = [json.dumps({"specversion": "1.0", "type": "broken.n", "source": "/t", "id": str(n)}) for n in range(30)]
    with started(deployment) as runner:
        [before] = deployment.json("subscriptions", "show", "broken")
        assert before["breaker"] == {"failures": 20, "pause": 10.0, "max_pause": 300.0}
        assert (before["breaker_state"], before["breaker_left"], before["breaker_trips"]) == ("closed", None, 0)
        deployment.cli("publish", "--file", "-", input="\n".join(lines))
        _wait(lambda: deployment.json("subscriptions", "show", "broken")[0]["breaker_state"] != "closed")
        [shown] = deployment.json("subscriptions", "show", "broken")
        assert shown["breaker_state"] in ("open", "half-open")
        assert 0 <= shown["breaker_left"] <= 10
        assert shown["breaker_trips"] >= 1
        table = deployment.cli("subscriptions", "list")[0]
        assert re.search(r"^broken +breaker (open, \d+s left|half-open) ", table, re.MULTILINE)
        assert re.search(r"^everything +active", table, re.MULTILINE)
        plain = deployment.cli("subscriptions", "show", "broken")[0]
        assert re.search(r"^breaker\.max_pause +5m$", plain, re.MULTILINE)
        assert re.search(r"^breaker_left +\d+s$", plain, re.MULTILINE)
        waiting = deployment.json("deliveries", "list", "--state", "pending", "--subscription", "broken")
        assert waiting
        assert all(each["held_by"].startswith("breaker ") for each in waiting)
        one = ("deliveries", "show", str(waiting[0]["seq"]), "broken")
        assert re.search(r"^held by +breaker (open, \d+s left|half-open)$", deployment.cli(*one)[0], re.MULTILINE)
        assert deployment.cli("subscriptions", "resume", "broken")[0] == "broken is active\n"
        assert runner.stop() == 0


def test_instances_are_listed(deployment: Deployment) -> None:
    assert deployment.cli("instances")[0].splitlines() == [
        "ID  HOST  PID  VERSION  STATE  RUNNING  LAG  HEARS  FILE  STARTED  HEARTBEAT"
    ]
    with started(deployment) as runner:
        _wait(lambda: deployment.json("instances"))
        [instance] = deployment.json("instances")
        assert (instance["pid"], instance["alive"]) == (runner.pid, True)
        assert (instance["state"], instance["running"]) == ("working", 0)
        assert instance["sinks"] == ["broken", "stuck", "terminal"]
        told = {"alive", "state", "progress_at", "lag", "running", "sinks", "strategies", "configuration"}
        assert instance.keys() == {"id", "host", "pid", "version", "started_at", "heartbeat_at"} | told


def test_what_is_over_is_pruned_and_its_id_may_come_again(deployment: Deployment) -> None:
    hello = ("publish", "hello.world", "--source", "/test", "--id", "h1")
    deployment.cli(*hello)
    deployment.cli("publish", "broken.now", "--source", "/test", "--id", "b1")
    with started(deployment):
        _wait(lambda: deployment.json("deliveries", "list", "--state", "dead"))
        _wait(lambda: all(each["state"] == "settled" for each in deployment.json("events", "list")))
    assert deployment.cli("prune")[0] == "pruned 0 events\n"
    deployment.write(more="retention: {delivered: 1ms, dead: 90d}\n")
    assert deployment.json("prune", "--dry-run") == [{"events": 1, "dry_run": True}]
    assert deployment.cli("prune", "--dry-run")[0] == "would prune 1 event\n"
    assert deployment.json(*hello)[0]["duplicate"]
    assert deployment.cli("prune")[0] == "pruned 1 event\n"
    assert [each["event"]["id"] for each in deployment.json("events", "list")] == ["b1"]
    assert not deployment.json(*hello)[0]["duplicate"]


LOOKS = (
    ("events", "list"),
    ("events", "show", "1"),
    ("deliveries", "list"),
    ("deliveries", "show", "1", "everything"),
    ("subscriptions", "list"),
    ("instances",),
    ("check", "--online"),
    ("migrate", "--status"),
)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("events list", 1),
        ("events show 1", 1),
        ("events tail", 1),
        ("events trace 1", 1),
        ("events export", 1),
        ("events cancel 1", 1),
        ("deliveries list", 1),
        ("deliveries retry --state dead", 1),
        ("subscriptions list", 1),
        ("subscriptions pause everything", 1),
        ("instances", 1),
        ("why 1 everything", 1),
        ("prune", 1),
        ("schedules list", 1),
        ("status", 2),
        ("migrate --status", 0),
        ("check --online", 0),
        ("publish a.b --dry-run", 0),
    ],
)
def test_no_verb_but_those_that_begin_makes_a_file(tmp_path: Path, command: str, code: int) -> None:
    deployment = Deployment(tmp_path, "sqlite:///shop.db")
    deployment.write()
    output, complaint = deployment.cli(*command.split(), code=code)
    if code:
        assert "the tables are not there" in output + complaint
        assert "runner migrate" in output + complaint
    assert not (tmp_path / "shop.db").exists()


class TestLooking:
    """What only looks needs no right to write."""

    @pytest.fixture
    def settled(self, deployment: Deployment) -> Deployment:
        deployment.cli("publish", "order.created", "--source", "/shop")
        with started(deployment):
            _wait(lambda: deployment.json("deliveries", "list"))
        return deployment

    def test_beside_somebody_who_writes(self, settled: Deployment) -> None:
        if not settled.dsn.startswith("sqlite"):
            pytest.skip("writers of PostgreSQL do not wait for each other")
        with contextlib.closing(sqlite3.connect(settled.directory / "runner.db", isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            for look in LOOKS:
                settled.cli(*look)

    def test_in_a_file_that_is_read_only(self, settled: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
        if not settled.dsn.startswith("sqlite"):
            pytest.skip("a file is SQLite's")
        file = settled.directory / "runner.db"
        file.chmod(0o444)
        before, access = file.read_bytes(), os.access
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))  # root may all
        for look in LOOKS:
            if look[0] != "check":
                settled.cli(*look)
        assert file.read_bytes() == before
        for refused in (("check",), ("publish", "order.created")):  # as `start` would
            assert "not writable" in settled.cli(*refused, code=78)[1]

    def test_as_a_role_that_may_only_select(self, settled: Deployment) -> None:
        if settled.dsn.startswith("sqlite"):
            pytest.skip("roles are PostgreSQL's")
        role = f"looker_{os.getpid()}"
        asyncio.run(
            self.execute(
                settled.dsn,
                f"CREATE ROLE {role} LOGIN",
                f"GRANT USAGE ON SCHEMA public TO {role}",
                f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}",
                f"ALTER ROLE {role} SET default_transaction_read_only = on",
            )
        )
        try:
            looker = Deployment(settled.directory, settled.dsn.replace("//postgres@", f"//{role}@"))
            assert looker.dsn != settled.dsn
            looker.write()
            for look in LOOKS:
                looker.cli(*look)
        finally:
            asyncio.run(self.execute(settled.dsn, f"DROP OWNED BY {role}", f"DROP ROLE {role}"))

    async def execute(self, dsn: str, *statements: str) -> None:
        connection = await asyncpg.connect(dsn)
        for statement in statements:
            await connection.execute(statement)
        await connection.close()


async def test_tail_shows_what_is_committed_late(postgres_dsn: str, tmp_path: Path) -> None:
    """Its seq is smaller than those that are shown already."""
    deployment = Deployment(tmp_path, postgres_dsn)
    deployment.write()
    await asyncio.to_thread(deployment.cli, "migrate")
    late, later, never = [await asyncpg.connect(postgres_dsn) for _ in range(3)]
    try:
        await late.execute("BEGIN; SELECT public.publish_event('late.one')")  # before it looks for the first time
        await asyncio.to_thread(deployment.cli, "publish", "old.one")
        with deployment.process("events", "tail") as tail:

            async def appears() -> bool:
                await asyncio.to_thread(deployment.cli, "publish", "new.one")
                return any("new.one" in row for row in tail.stdout)

            await eventually(appears)
            await never.execute("BEGIN; SELECT public.publish_event('never.one')")
            await later.execute("BEGIN; SELECT public.publish_event('later.one')")
            await asyncio.to_thread(deployment.cli, "publish", "last.one")
            await asyncio.to_thread(tail.wait_for_line, "last.one")
            await never.execute("ROLLBACK")
            await asyncio.sleep(4)  # the fault itself: longer than anybody would wait for a rollback
            await late.execute("COMMIT")
            await asyncio.to_thread(tail.wait_for_line, "late.one")
            await later.execute("COMMIT")
            await asyncio.to_thread(tail.wait_for_line, "later.one")
            tail.signal(signal.SIGINT)
            assert await asyncio.to_thread(tail.wait) == 130
            shown = [row.split()[1] for row in tail.stdout]
            assert len(shown) == len(set(shown))
            assert not any("old.one" in row or "never.one" in row for row in tail.stdout)
    finally:
        for connection in (late, later, never):
            await connection.close()


def test_the_audit_log_says_who_changed_what(deployment: Deployment) -> None:
    deployment.cli("publish", "a.b", "--id", "o1", "--delay", "1h")
    deployment.cli("events", "reschedule", "o1", "--delay", "2h")
    deployment.cli("events", "cancel", "nothing", code=1)
    [refused, moved] = deployment.json("audit")
    assert re.fullmatch(r"cli:[^@]+@[^@]+", moved["who"])
    assert (moved["action"], moved["target"], moved["outcome"]) == ("events.reschedule", "o1", "done")
    assert (refused["outcome"], refused["touched"]) == ("refused", 0)
    assert deployment.json("audit", "--action", "*.reschedule", "--who", "cli:*", "--since", "1h", "--limit", "1") == [
        moved
    ]
    assert deployment.json("audit", "--until", "1h") == []
    output, _ = deployment.cli("audit")
    assert output.splitlines()[0].split() == [
        "AT",
        "WHO",
        "ACTION",
        "TARGET",
        "TOUCHED",
        "OUTCOME",
        "PARAMETERS",
        "DETAIL",
    ]
    assert "delay=7200s" in output
