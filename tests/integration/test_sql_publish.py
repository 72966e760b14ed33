from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import BigInteger, Column, MetaData, Table, insert, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from runner.config.dsn import Dsn
from runner.errors import EventConflict, EventError
from runner.event import Event
from runner.storage import open_storage
from runner.storage.contract.events import Publication
from runner.storage.migrate import migrate
from tests.support.engines import open_engine
from tests.support.eventually import eventually
from tests.support.postgres import PostgresServer

Psql = Callable[[str], str]

SCHEMA = "the Bus"
ALIVE = f"""INSERT INTO "{SCHEMA}".instances (id, host, pid, version, started_at, heartbeat_at)
    VALUES ('i', 'h', 1, '1', clock_timestamp(), clock_timestamp())"""
PUBLISH = f'"{SCHEMA}".publish_event'


@pytest.fixture
def schema_dsn(tables_in: Callable[[str], str]) -> str:
    return tables_in(SCHEMA)


@pytest.fixture
def psql(postgres: PostgresServer, schema_dsn: str) -> Psql:
    """Run statements in one psql session on migrated tables, its search path as a stranger has it."""

    def run(sql: str) -> str:
        return postgres.psql(sql, schema_dsn)

    run(f"""UPDATE "{SCHEMA}".bus SET deployment_id = 'shop'""")
    return run


def rows(psql: Psql, table: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(
        psql(f"""SELECT coalesce(json_agg(to_json(t)), '[]') FROM "{SCHEMA}".{table} t""")
    )
    return found


def test_a_committed_publish_is_an_event_in_the_queue(psql: Psql) -> None:
    seq = psql(f"""BEGIN; SELECT {PUBLISH}('order.created', '{{"total": 12.50}}', subject => 'o/1'); COMMIT;""")
    [event] = rows(psql, "events")
    assert (event["seq"], event["type"], event["subject"]) == (int(seq), "order.created", "o/1")
    assert (event["source"], event["datacontenttype"]) == ("urn:runner:shop", "application/json")
    assert bytes.fromhex(str(event["data"])[2:]) == b'{"total": 12.50}'
    assert event["created_at"] is not None
    [work] = rows(psql, "dispatch")
    assert (work["event_seq"], work["attempts"], work["lease_token"]) == (int(seq), 0, None)
    assert rows(psql, "scheduled") == []


def test_a_publish_that_is_rolled_back_is_no_event(psql: Psql) -> None:
    assert psql(f"BEGIN; SELECT {PUBLISH}('order.created'); ROLLBACK;")
    assert rows(psql, "events") == rows(psql, "dispatch") == []


def test_every_attribute_is_kept(psql: Psql) -> None:
    psql(
        f"""SELECT {PUBLISH}(type => 't', source => '/s', id => 'i', subject => 'é', "time" => '2026-01-31 12:00+01',
            datacontenttype => 'text/plain', dataschema => 'urn:schema', extensions => '{{"tenant": "a", "n": 7}}',
            raw => '\\x00ff')"""
    )
    [event] = rows(psql, "events")
    assert (event["id"], event["source"], event["subject"]) == ("i", "/s", "é")
    assert str(event["time"]).startswith("2026-01-31T11:00:00")
    assert (event["datacontenttype"], event["dataschema"]) == ("text/plain", "urn:schema")
    assert event["extensions"] == {"tenant": "a", "n": 7}
    assert event["data"] == "\\x00ff"


def test_no_data_is_not_null_data(psql: Psql) -> None:
    psql(f"SELECT {PUBLISH}('none'), {PUBLISH}('null', 'null')")
    assert {(e["type"], e["data"], e["datacontenttype"]) for e in rows(psql, "events")} == {
        ("none", None, None),
        ("null", "\\x" + b"null".hex(), "application/json"),
    }


def test_ids_made_by_the_function_sort_by_time_where_the_server_can(psql: Psql, postgres: PostgresServer) -> None:
    psql(f"SELECT {PUBLISH}('t') FROM generate_series(1, 20)")
    ids = [str(event["id"]) for event in sorted(rows(psql, "events"), key=lambda event: str(event["seq"]).zfill(9))]
    assert len(set(ids)) == 20
    if postgres.version >= 18:
        assert ids == sorted(ids)
    assert {each[14] for each in ids} == {"7" if postgres.version >= 18 else "4"}


@pytest.mark.parametrize("separator", ["", "COMMIT; BEGIN;"])
def test_the_same_event_again_changes_nothing(psql: Psql, separator: str) -> None:
    publish = f"""SELECT {PUBLISH}('t', '{{"a": 1}}', '/s', 'one', extensions => '{{"k": true}}');"""
    first, second = psql(f"BEGIN; {publish} {separator} {publish} COMMIT;").split()
    assert first == second
    assert len(rows(psql, "events")) == len(rows(psql, "dispatch")) == 1


def test_the_same_id_with_other_content_is_refused(psql: Psql) -> None:
    psql(f"SELECT {PUBLISH}('t', '1', '/s', 'one')")
    with pytest.raises(RuntimeError, match='event "one" of source "/s" is recorded with other content'):
        psql(f"SELECT {PUBLISH}('t', '2', '/s', 'one')")
    assert psql(f"SELECT {PUBLISH}('t', '2', '/other', 'one')")


def test_an_event_for_later_is_scheduled(psql: Psql) -> None:
    later = psql(f"SELECT {PUBLISH}('t', deliver_at => clock_timestamp() + interval '1 hour')")
    past = psql(f"SELECT {PUBLISH}('t', deliver_at => clock_timestamp() - interval '1 hour')")
    assert [row["event_seq"] for row in rows(psql, "scheduled")] == [int(later)]
    assert [row["event_seq"] for row in rows(psql, "dispatch")] == [int(past)]


def test_a_trigger_can_publish(psql: Psql) -> None:
    psql(
        f"""
        CREATE TABLE orders (id int, total numeric);
        CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM {PUBLISH}('order.' || lower(TG_OP), to_jsonb(NEW), id => 'order-' || NEW.id);
            RETURN NULL;
        END $$;
        CREATE TRIGGER tell AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION tell();
        INSERT INTO orders VALUES (1, 9.5), (2, 10);
        BEGIN; INSERT INTO orders VALUES (3, 0); ROLLBACK;
        """
    )
    assert {(event["type"], event["id"]) for event in rows(psql, "events")} == {
        ("order.insert", "order-1"),
        ("order.insert", "order-2"),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("NULL", "type must not be empty"),
        ("''", "type must not be empty"),
        ("'t', source => ''", "source must not be empty"),
        ("'t', id => ''", "id must not be empty"),
        ("'t', subject => ''", "subject must not be empty"),
        ("repeat('t', 65537)", "type has 65537 characters, at most 65536"),
        ("'t', id => E'a\\nb'", "id has a control character"),
        ("'t', subject => U&'\\FFFE'", "subject has a control character or noncharacter"),
        ("'t', to_jsonb(repeat('x', 1048575))", "data has 1048577 bytes, at most 1048576"),
        ("'t', '1', raw => '\\x00'", "both data and raw"),
        ("'t', extensions => '[1]'", "extensions is a JSON array, expected an object"),
        ("""'t', extensions => '{"Tenant": 1}'""", 'extension "Tenant" has no possible name'),
        ("""'t', extensions => '{"time": 1}'""", 'extension "time" has no possible name'),
        ("""'t', extensions => '{"n": 2147483648}'""", 'extension "n" is no text, boolean or integer'),
        ("""'t', extensions => '{"n": 1.5}'""", 'extension "n" is no text, boolean or integer'),
        ("""'t', extensions => '{"n": null}'""", 'extension "n" is no text, boolean or integer'),
        ("""'t', extensions => '{"n": "a\\u0007"}'""", 'extension "n" has a control character'),
        ("""'t', "time" => 'infinity'""", "must be in the years 1 to 9999"),
        ("'t', deliver_at => 'infinity'", "must be in the years 1 to 9999"),
    ],
)
def test_what_no_event_may_be_is_refused(psql: Psql, arguments: str, message: str) -> None:
    with pytest.raises(RuntimeError, match="publish_event: ") as refusal:
        psql(f"SELECT {PUBLISH}({arguments})")
    assert message in str(refusal.value)
    assert rows(psql, "events") == []


def call(attributes: dict[str, Any]) -> str:
    """Return a call of `publish_event` with the attributes that `Event.new` would be given."""
    quoted = {
        name: "'"
        + (json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value).replace("'", "''")
        + "'"
        for name, value in {"type": "t", "source": "/s", "id": "i", **attributes}.items()
    }
    return f"SELECT {PUBLISH}({', '.join(f'{name} => {value}' for name, value in quoted.items())}, raw => '')"


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        *(
            ({"datacontenttype": each}, f'datacontenttype "{each}" is no media type')
            for each in ("json", "/json", "text/", "text/plain/x", "text /plain", "text/plain charset=x", "téxt/plain")
        ),
        ({"datacontenttype": "text/plain; ü"}, "is no media type"),
        ({"datacontenttype": "text/plain\n"}, "datacontenttype has a control character"),
        *(
            ({"subject": f"a{chr(code)}b"}, "subject has a control character or noncharacter")
            for code in (0x1, 0x1F, 0x7F, 0x9F, 0xFDD0, 0xFDEF, 0xFFFE, 0xFFFF, 0x1FFFE, 0x9FFFF, 0xFFFFE, 0x10FFFF)
        ),
        ({"extensions": {f"x{n}": 1 for n in range(1001)}}, "there are 1001 extensions, at most 1000 are taken"),
        ({"extensions": {f"x{n}": "y" * 50_000 for n in range(3)}}, "bytes together, at most 131072 are taken"),
        ({"dataschema": "urn:\u0085"}, "dataschema has a control character"),
        ({"extensions": {"n": "a\U0002ffff"}}, 'extension "n" has a control character or noncharacter'),
        *(
            ({"extensions": {each: 1}}, f'extension "{each}" has no possible name')
            for each in ("", "a_b", "a-b", "A", "é", "x" * 101, "data", "specversion")
        ),
        ({"extensions": {"name\n": 1}}, "has no possible name"),
        ({"extensions": {"n": [1]}}, 'extension "n" is no text, boolean or integer'),
    ],
)
def test_what_python_refuses_is_refused_in_the_same_way(psql: Psql, attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(EventError):
        Event.new("t", b"", **{"source": "/s", "id": "i", **attributes})
    with pytest.raises(RuntimeError, match="publish_event: ") as refusal:
        psql(call(attributes))
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    "attributes",
    [
        {"datacontenttype": "application/cloudevents+json; charset=UTF-8"},
        {"datacontenttype": 'a!#$&^_.+-Z9/x ;p="~"'},
        {"source": "s" * 1300, "id": "i" * 1300},
        {"subject": "a\xa0\ufdcf\ufdf0\ufffd\U0001fffd\U00020000\U0010fffd'\\"},
        {"extensions": {"x" * 20: 1, "0": "é"}},
    ],
)
def test_what_python_takes_is_taken(psql: Psql, attributes: dict[str, Any]) -> None:
    Event.new("t", b"", **{"source": "/s", "id": "i", **attributes})
    assert psql(call(attributes))


async def test_the_same_event_from_either_side_is_one(psql: Psql, schema_dsn: str) -> None:
    store = open_storage(Dsn.parse(schema_dsn, base=Path.cwd()), schema=SCHEMA, pool=2)
    for id, extensions, written in (
        ("one", {"b": 1, "a": "x"}, '{ "a":"x",  "b":1 }'),
        ("two", {}, "{ }"),
    ):
        event = Event.new("t", b"1", source="/s", id=id, extensions=extensions, datacontenttype="application/json")
        publish = f"SELECT {PUBLISH}('t', '1', '/s', '{id}', extensions => '{written}')"
        seq = await asyncio.to_thread(psql, publish)
        [receipt] = await store.events.append([Publication(event)])
        assert (receipt.seq, receipt.duplicate) == (int(seq), True)
        assert await asyncio.to_thread(psql, publish) == seq
    with pytest.raises(EventConflict):
        await store.events.append([Publication(Event.new("t", b"1", source="/s", id="one", extensions={"b": 2}))])
    await store.close()


async def test_a_session_that_publishes_keeps_its_own_tables(psql: Psql, schema_dsn: str) -> None:
    """The caller's own table of the name of one of ours: what it writes there lands there."""
    psql("CREATE TABLE public.events (seq bigint PRIMARY KEY)")
    store = open_storage(Dsn.parse(schema_dsn, base=Path.cwd()), schema=SCHEMA, pool=2)
    callers = create_async_engine(schema_dsn.replace("postgresql:", "postgresql+asyncpg:"))
    theirs = Table("events", MetaData(), Column("seq", BigInteger, primary_key=True))
    async with AsyncSession(callers) as session, session.begin():
        await session.execute(insert(theirs).values(seq=1))
        [receipt] = await store.events.append_in(session, [Publication(Event.new("t", {"n": 1}, source="/s"))])
        await session.execute(insert(theirs).values(seq=2))
        assert (await session.scalars(select(theirs.c.seq))).all() == [1, 2]
    await callers.dispose()
    await store.close()
    assert [event["seq"] for event in rows(psql, "events")] == [receipt.seq]
    assert [work["event_seq"] for work in rows(psql, "dispatch")] == [receipt.seq]


@pytest.mark.parametrize(
    "arguments",
    [
        "repeat('t', 65536)",
        "'t', to_jsonb(repeat('x', 1048574))",
        """'t', extensions => '{"n": -2147483648, "empty": "", "yes": true}'""",
    ],
)
def test_what_is_just_allowed_is_taken(psql: Psql, arguments: str) -> None:
    assert psql(f"SELECT {PUBLISH}({arguments})")


def test_without_a_deployment_the_source_has_to_be_given(psql: Psql) -> None:
    psql(f'UPDATE "{SCHEMA}".bus SET deployment_id = NULL')
    with pytest.raises(RuntimeError, match="source has no default before a runner was started"):
        psql(f"SELECT {PUBLISH}('t')")
    assert psql(f"SELECT {PUBLISH}('t', source => '/s')")


def test_objects_of_the_caller_do_not_get_in_the_way(psql: Psql) -> None:
    psql(
        f"""
        CREATE TEMP TABLE events (LIKE "{SCHEMA}".events);
        CREATE TEMP TABLE dispatch (event_seq bigint);
        CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$ SELECT 'epoch'::timestamptz $$;
        SET search_path = public, pg_catalog;
        SELECT {PUBLISH}('t');
        """
    )
    [event] = rows(psql, "events")
    assert not str(event["created_at"]).startswith("1970")
    assert len(rows(psql, "dispatch")) == 1


async def test_listeners_hear_of_it_when_it_commits(psql: Psql, schema_dsn: str) -> None:
    heard: list[object] = []
    connection = await asyncpg.connect(schema_dsn)
    await connection.add_listener("evb_channel", lambda *signal: heard.append(signal[-1]))
    publish = f"SELECT {PUBLISH}('t');"

    await asyncio.to_thread(psql, publish)  # nobody is said to listen
    psql(f"""UPDATE "{SCHEMA}".bus SET channel = 'evb_channel'; {ALIVE}""")
    await asyncio.to_thread(psql, f"BEGIN; {publish} ROLLBACK;")
    await connection.fetchval("SELECT 1")  # what was sent before has arrived when this has
    assert heard == []

    await asyncio.to_thread(psql, f"BEGIN; {publish} {publish} COMMIT;")
    await eventually(lambda: heard == [""])
    await connection.close()


@pytest.mark.parametrize(
    ("source", "id"), [("urn:s", "é" * 3000), ("é" * 1400, "1"), ("s" * 1301, "i" * 1300), ("s", "i")]
)
async def test_what_is_too_long_for_the_index_is_one_from_either_side(
    psql: Psql, schema_dsn: str, source: str, id: str
) -> None:
    store = open_storage(Dsn.parse(schema_dsn, base=Path.cwd()), schema=SCHEMA, pool=2)
    for extensions in ({}, {"b": 1}):
        name = f"{id}{len(extensions)}"
        event = Event.new("t", b"", source=source, id=name, extensions=extensions, datacontenttype="application/json")
        publish = call({"source": source, "id": name, **({"extensions": extensions} if extensions else {})})
        seq = await asyncio.to_thread(psql, publish)
        [receipt] = await store.events.append([Publication(event)])
        assert (receipt.seq, receipt.id, receipt.duplicate) == (int(seq), name, True)
    await store.close()


class TestTwoPhases:
    """A transaction that notified cannot be prepared, so that one publishes without where there is nobody to notify."""

    @pytest.fixture
    def bus(self, make_postgres: Callable[..., PostgresServer]) -> Psql:
        server = make_postgres(fsync=False, settings={"max_prepared_transactions": "2"})
        engine = open_engine(Dsn.parse(server.dsn(), base=Path.cwd()), schema=SCHEMA, pool=1)

        async def make() -> None:
            await migrate(engine)
            await engine.dispose()

        asyncio.run(make())
        return server.psql

    def test_it_can_be_prepared(self, bus: Psql) -> None:
        publish = f"SELECT {PUBLISH}('t', source => '/s');"
        prepare = "PREPARE TRANSACTION 'one'; COMMIT PREPARED 'one';"
        bus(f"BEGIN; {publish} {prepare}")  # no runner has ever been there
        bus(f"""UPDATE "{SCHEMA}".bus SET channel = 'evb_channel'""")
        bus(f"BEGIN; {publish} {prepare}")  # the last one has left
        bus(ALIVE)
        with pytest.raises(RuntimeError, match=r"cannot PREPARE.*NOTIFY"):
            bus(f"BEGIN; {publish} {prepare}")
        bus(f"BEGIN; SET LOCAL runner.notify = off; {publish} {prepare}")
        bus(f"""UPDATE "{SCHEMA}".instances SET heartbeat_at = clock_timestamp() - interval '1 minute'""")
        bus(f"BEGIN; {publish} {prepare}")  # it has crashed
        assert len(rows(bus, "dispatch")) == 4


def test_an_expiry_is_noted_and_one_that_is_no_time_is_refused(psql: Psql) -> None:
    def publish(id: str, expiry: str) -> str:
        return psql(f"""SELECT {PUBLISH}('t', id => '{id}', extensions => '{{"expirytime": {expiry}}}')""")

    seq = publish("a", '"2030-01-31T12:00:00+01:00"')
    assert publish("a", '"2031-01-31T12:00:00Z"') == seq
    [row] = rows(psql, "expiries")
    assert row["event_seq"] == int(seq)
    assert str(row["expires_at"]).startswith("2030-01-31T11:00:00")
    assert row["look_at"] == row["expires_at"]
    for bad in ('"soon"', "5", '"2030-01-31"', '"2030-13-31T12:00:00Z"'):
        with pytest.raises(Exception, match="expirytime"):
            publish("b", bad)
    assert len(rows(psql, "events")) == 1


def test_how_an_event_came_about_is_no_content(psql: Psql) -> None:
    def publish(extensions: str) -> str:
        return psql(f"""SELECT {PUBLISH}('t', id => 'a', extensions => '{extensions}')""")

    seq = publish('{"tenant": "acme", "causationid": "x"}')
    assert publish('{"tenant": "acme", "traceparent": "00-1", "runnerhops": 3}') == seq
    assert publish('{"tenant": "acme"}') == seq
    with pytest.raises(Exception, match="other content"):
        publish('{"tenant": "other"}')
    with pytest.raises(Exception, match="other content"):
        publish('{"causationid": "x"}')


@pytest.mark.parametrize("caller", ["SET SESSION AUTHORIZATION {role}", "SET ROLE {role}"])
def test_who_may_only_publish_does_not_speak_for_the_bus(psql: Psql, postgres: PostgresServer, caller: str) -> None:
    role = f"only_publishes_{'role' if 'ROLE' in caller else 'session'}"
    tick = f"SELECT {PUBLISH}('report.due', source => '/schedules/nightly', id => 'nightly/2037-01-01T01:00:00Z')"
    try:
        psql(f'CREATE ROLE {role}; GRANT USAGE ON SCHEMA "{SCHEMA}" TO {role}')
        psql(f"GRANT EXECUTE ON FUNCTION {PUBLISH} TO {role}")
        become = caller.format(role=role)
        for refused in (tick, f"SELECT {PUBLISH}('runner.delivery.dead', source => '/runner/shop')"):
            with pytest.raises(RuntimeError, match=r"is one of the bus itself"):
                psql(f"{become}; {refused}")
        for taken in ("/schedules", "/schedulesx/a", "/s", "/runner"):
            assert psql(f"{become}; SELECT {PUBLISH}('a', source => '{taken}')")
        assert psql(tick), "whoever owns the tables may"
        assert psql(f'GRANT UPDATE ON "{SCHEMA}".bus TO {role}; {become}; {tick}'), "and a role that writes them"
    finally:
        psql(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_time_too_far_ahead_is_refused(psql: Psql) -> None:
    with pytest.raises(RuntimeError, match="deliver_at is more than 366 days from now"):
        psql(f"SELECT {PUBLISH}('a', deliver_at => clock_timestamp() + interval '367 days')")
    assert psql(f"SELECT {PUBLISH}('a', deliver_at => clock_timestamp() + interval '365 days')")
