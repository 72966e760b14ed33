-- Publish an event from SQL, inside the caller's own transaction: it exists if and when that commits.
-- The rules are those of runner/event.py: what is refused there is refused here, with the same limits.
CREATE OR REPLACE FUNCTION {schema}publish_event(
    type text,
    data jsonb DEFAULT NULL,
    source text DEFAULT NULL,
    id text DEFAULT NULL,
    subject text DEFAULT NULL,
    "time" timestamptz DEFAULT NULL,
    datacontenttype text DEFAULT 'application/json',
    dataschema text DEFAULT NULL,
    extensions jsonb DEFAULT NULL,
    deliver_at timestamptz DEFAULT NULL,
    raw bytea DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql
-- Who may call it needs no right on the tables. So nothing in here may be found by way of the caller: nothing but
-- PostgreSQL's own is on the search path, and the tables are named with their schema.
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    bus_row {schema}bus%ROWTYPE;
    body bytea := coalesce(raw, convert_to(data::text, 'UTF8'));
    utf8 CONSTANT boolean := getdatabaseencoding() = 'UTF8';
    -- Control characters and noncharacters; the last two of each of the 17 planes are such.
    forbidden CONSTANT text := E'[\\u0001-\\u001f\\u007f-\\u009f\\ufdd0-\\ufdef\\ufffe\\uffff'
        '\\U0001fffe-\\U0001ffff\\U0002fffe-\\U0002ffff\\U0003fffe-\\U0003ffff\\U0004fffe-\\U0004ffff'
        '\\U0005fffe-\\U0005ffff\\U0006fffe-\\U0006ffff\\U0007fffe-\\U0007ffff\\U0008fffe-\\U0008ffff'
        '\\U0009fffe-\\U0009ffff\\U000afffe-\\U000affff\\U000bfffe-\\U000bffff\\U000cfffe-\\U000cffff'
        '\\U000dfffe-\\U000dffff\\U000efffe-\\U000effff\\U000ffffe-\\U000fffff\\U0010fffe-\\U0010ffff]';
    -- The same in the bytes of UTF-8: where the database has another encoding, a regular expression sees the codes of that.
    forbidden_bytes CONSTANT text :=
        '^(..)*([01][0-9a-f]|7f|c2[89][0-9a-f]|efb7[9a][0-9a-f]|efbfb[ef]|f[0-4][89ab]fbfb[ef])';
    -- What the unique index cannot hold; see runner/storage/identity.py.
    recorded_id text;
    recorded_source text;
    recorded_extensions jsonb;
    attribute text;
    value text;
    size bigint;
    event_seq bigint;
    fresh boolean;
    expires_at timestamptz;
    -- They tell how an event came about, and are no content: see runner/event.py.
    circumstances CONSTANT text[] :=
        '{causationid, correlationid, expirytime, runnerhops, traceparent, tracestate}';
BEGIN
    SELECT * INTO STRICT bus_row FROM {schema}bus bus WHERE bus.one = 1;
    IF source IS NULL AND bus_row.deployment_id IS NULL THEN
        RAISE EXCEPTION 'publish_event: source has no default before a runner was started on these tables'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Give a source, or start a runner first.';
    END IF;
    source := coalesce(source, 'urn:runner:' || bus_row.deployment_id);
    -- A tick that finds its event recorded publishes nothing, and everybody can reckon the id of one. So only who may write
    -- the tables may speak for the schedules and for the bus. In here the current user is the owner: the caller is the
    -- role that was set, or else the one that logged in.
    IF (starts_with(source, '/schedules/') OR starts_with(source, '/runner/')) AND NOT (
        SELECT has_table_privilege(
            coalesce(nullif(current_setting('role', true), 'none'), session_user), bus.tableoid, 'UPDATE')
        FROM {schema}bus bus WHERE bus.one = 1)
    THEN
        RAISE EXCEPTION 'publish_event: source "%" is one of the bus itself', left(source, 80)
            USING ERRCODE = 'insufficient_privilege',
                HINT = 'Give a source of your own; those below /schedules/ and /runner/ take a role that may write the tables.';
    END IF;
    IF id IS NULL THEN
        -- Looked up when it runs, so that an older server never sees the name it does not know.
        IF current_setting('server_version_num')::int >= 180000 THEN
            id := uuidv7()::text;
        ELSE
            id := gen_random_uuid()::text;
        END IF;
    END IF;

    IF data IS NOT NULL AND raw IS NOT NULL THEN
        RAISE EXCEPTION 'publish_event: got both data and raw'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Give JSON as data, or bytes as raw.';
    END IF;
    IF octet_length(body) > 1048576 THEN
        RAISE EXCEPTION 'publish_event: data has % bytes, at most 1048576 are taken', octet_length(body)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Keep large content elsewhere and publish where it is.';
    END IF;
    IF jsonb_typeof(extensions) <> 'object' THEN
        RAISE EXCEPTION 'publish_event: extensions is a JSON %, expected an object', jsonb_typeof(extensions)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF (SELECT count(*) FROM jsonb_object_keys(extensions)) > 1000 THEN
        RAISE EXCEPTION 'publish_event: there are % extensions, at most 1000 are taken',
            (SELECT count(*) FROM jsonb_object_keys(extensions)) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    size := octet_length(convert_to(concat(type, source, id, subject, datacontenttype, dataschema), 'UTF8'))
        + (SELECT coalesce(sum(octet_length(convert_to(concat(each.key, each.value), 'UTF8'))), 0)
           FROM jsonb_each_text(extensions) each);
    IF size > 131072 THEN
        RAISE EXCEPTION 'publish_event: attributes have % bytes together, at most 131072 are taken', size
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Keep large content in the data.';
    END IF;
    FOR attribute IN
        SELECT each.key FROM jsonb_each(extensions) each
        WHERE each.key !~ '^[a-z0-9]{1,100}$' OR each.key IN
            ('specversion', 'id', 'source', 'type', 'subject', 'time', 'datacontenttype', 'dataschema', 'data')
    LOOP
        RAISE EXCEPTION 'publish_event: extension "%" has no possible name', attribute
            USING ERRCODE = 'invalid_parameter_value',
                HINT = 'Expected 1-100 of a-z and 0-9, other than the names CloudEvents defines.';
    END LOOP;
    FOR attribute IN
        SELECT each.key FROM jsonb_each(extensions) each
        WHERE NOT CASE jsonb_typeof(each.value)
            WHEN 'string' THEN true
            WHEN 'boolean' THEN true
            WHEN 'number' THEN each.value::text ~ '^-?[0-9]+$'
                AND each.value::text::numeric BETWEEN -2147483648 AND 2147483647
            ELSE false END
    LOOP
        RAISE EXCEPTION 'publish_event: extension "%" is no text, boolean or integer of 32 bits', attribute
            USING ERRCODE = 'invalid_parameter_value';
    END LOOP;
    FOR attribute, value IN
        VALUES ('type', coalesce(type, '')), ('source', source), ('id', id), ('subject', subject),
            ('datacontenttype', datacontenttype), ('dataschema', dataschema)
        UNION ALL
        SELECT 'extension "' || each.key || '"', nullif(each.value #>> '{}', '')
        FROM jsonb_each(extensions) each WHERE jsonb_typeof(each.value) = 'string'
    LOOP
        IF value = '' THEN
            RAISE EXCEPTION 'publish_event: % must not be empty', attribute
                USING ERRCODE = 'invalid_parameter_value';
        ELSIF char_length(value) > 65536 THEN
            RAISE EXCEPTION 'publish_event: % has % characters, at most 65536 are taken', attribute, char_length(value)
                USING ERRCODE = 'invalid_parameter_value';
        ELSIF (utf8 AND value ~ forbidden)
            OR (NOT utf8 AND encode(convert_to(value, 'UTF8'), 'hex') ~ forbidden_bytes)
        THEN
            RAISE EXCEPTION 'publish_event: % has a control character or noncharacter', attribute
                USING ERRCODE = 'invalid_parameter_value', HINT = 'CloudEvents 1.0, section 3.1, forbids them.';
        END IF;
    END LOOP;
    IF datacontenttype !~ '^[A-Za-z0-9_!#$&^.+-]+/[A-Za-z0-9_!#$&^.+-]+ *(;[ -~]*)?$' THEN
        RAISE EXCEPTION 'publish_event: datacontenttype "%" is no media type', left(datacontenttype, 80)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Expected one of RFC 2046, such as application/json.';
    END IF;
    IF NOT "time" BETWEEN '0001-01-01 00:00+00' AND '9999-12-31 00:00+00'
        OR NOT deliver_at BETWEEN '0001-01-01 00:00+00' AND '9999-12-31 00:00+00'
    THEN
        RAISE EXCEPTION 'publish_event: time and deliver_at must be in the years 1 to 9999'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;

    IF deliver_at > clock_timestamp() + interval '366 days' THEN
        RAISE EXCEPTION 'publish_event: deliver_at is more than 366 days from now'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Keep what is further ahead, and publish it later.';
    END IF;

    value := extensions ->> 'expirytime';
    IF value IS NOT NULL THEN
        BEGIN
            IF value !~ '^\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)$' THEN
                RAISE EXCEPTION USING ERRCODE = 'invalid_datetime_format';
            END IF;
            expires_at := value::timestamptz;
        EXCEPTION WHEN data_exception THEN
            RAISE EXCEPTION 'publish_event: extension "expirytime" is no time of RFC 3339: %', left(value, 40)
                USING ERRCODE = 'invalid_parameter_value', HINT = 'Expected one such as 2026-01-31T12:00:00Z.';
        END;
    END IF;

    recorded_id := id;
    recorded_source := source;
    recorded_extensions := nullif(extensions, '{}');
    IF octet_length(convert_to(source || id, 'UTF8')) > 2600 THEN
        IF octet_length(convert_to(id, 'UTF8')) > 1300 THEN
            recorded_id := E'\x01' || encode(sha256(convert_to(id, 'UTF8')), 'hex');
            recorded_extensions := coalesce(recorded_extensions, '{}') || jsonb_build_object('id', id);
        END IF;
        IF octet_length(convert_to(source, 'UTF8')) > 1300 THEN
            recorded_source := E'\x01' || encode(sha256(convert_to(source, 'UTF8')), 'hex');
            recorded_extensions := coalesce(recorded_extensions, '{}') || jsonb_build_object('source', source);
        END IF;
    END IF;

    -- A known event is written again, so that this commit waits for the same durability as the first one's did.
    INSERT INTO {schema}events AS e
        (id, source, type, subject, time, datacontenttype, dataschema, extensions, data, created_at)
    VALUES
        (recorded_id, recorded_source, publish_event.type, publish_event.subject, publish_event.time,
         CASE WHEN body IS NOT NULL THEN publish_event.datacontenttype END, publish_event.dataschema,
         recorded_extensions::json, body, clock_timestamp())
    ON CONFLICT ON CONSTRAINT events_source_id DO UPDATE SET source = excluded.source
        WHERE e.type IS NOT DISTINCT FROM excluded.type
            AND e.subject IS NOT DISTINCT FROM excluded.subject
            AND e.time IS NOT DISTINCT FROM excluded.time
            AND e.datacontenttype IS NOT DISTINCT FROM excluded.datacontenttype
            AND e.dataschema IS NOT DISTINCT FROM excluded.dataschema
            AND coalesce(CASE jsonb_typeof(e.extensions::jsonb) WHEN 'object' THEN e.extensions::jsonb - circumstances END, '{}')
                = coalesce(excluded.extensions::jsonb - circumstances, '{}')
            AND e.data IS NOT DISTINCT FROM excluded.data
    RETURNING e.seq, e.xmax = 0 INTO event_seq, fresh;
    IF event_seq IS NULL THEN
        RAISE EXCEPTION 'publish_event: event "%" of source "%" is recorded with other content',
            left(id, 80), left(source, 80)
            USING ERRCODE = 'unique_violation', HINT = 'Give every event an id of its own.';
    END IF;
    IF NOT fresh THEN
        RETURN event_seq;
    END IF;

    IF expires_at IS NOT NULL THEN
        INSERT INTO {schema}expiries (event_seq, expires_at, look_at) VALUES (event_seq, expires_at, expires_at);
    END IF;
    IF deliver_at > clock_timestamp() THEN
        INSERT INTO {schema}scheduled (event_seq, due_at) VALUES (event_seq, deliver_at);
    ELSE
        INSERT INTO {schema}dispatch (event_seq) VALUES (event_seq);
    END IF;
    -- The commit of a transaction that notifies takes a lock that all notifying transactions of the server share, and one
    -- that notified cannot be PREPAREd. So nothing is said without a channel, which is that of the runner that started
    -- last, nor once no runner is alive, nor where `SET LOCAL runner.notify = off` says so: workers then find the event when
    -- they poll. The payload is empty on purpose: equal signals of one transaction become one, and an id could exceed the
    -- 7999 bytes NOTIFY takes.
    IF bus_row.channel IS NOT NULL
        AND coalesce(nullif(current_setting('runner.notify', true), ''), 'on') NOT IN ('off', 'false', 'no', '0')
        AND EXISTS (SELECT FROM {schema}instances i WHERE i.heartbeat_at > clock_timestamp() - interval '30 seconds')
    THEN
        PERFORM pg_notify(bus_row.channel, '');
    END IF;
    RETURN event_seq;
END
$function$
