-- The log of one ledger: every event, in the order in which it was committed. Append-only.

CREATE TABLE events (
    stream      text        COLLATE "C" NOT NULL,
    version     bigint      NOT NULL,
    position    bigint      NOT NULL,
    topic       text        NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    state       bytea       NOT NULL,
    CONSTRAINT events_one_event_per_version PRIMARY KEY (stream, version),
    CONSTRAINT events_one_event_per_position UNIQUE (position)
) WITH (
    -- Nothing is ever updated or deleted: vacuum only to freeze and to keep the visibility map.
    autovacuum_vacuum_insert_threshold = 1000000,
    autovacuum_analyze_threshold = 10000
);

COMMENT ON TABLE events IS 'The log: every event of this ledger. Rows are only ever added, in order of position, without a gap.';
COMMENT ON COLUMN events.stream IS 'The account, payment or transfer that the event belongs to: account/<id>, payment/<id>, transfer/<id>.';
COMMENT ON COLUMN events.version IS 'The place of the event in its stream: 1, 2, 3 ...';
COMMENT ON COLUMN events.position IS 'The place of the event in the whole log: 1, 2, 3 ... without gaps, in commit order.';
COMMENT ON COLUMN events.topic IS 'The kind of the event.';
COMMENT ON COLUMN events.recorded_at IS 'When the event was recorded. Never goes backwards.';
COMMENT ON COLUMN events.state IS 'The event itself: JSON in UTF-8 with sorted keys, exactly these bytes.';

-- The row that writers lock to take turns. It is never updated: an updated row would grow a chain of dead versions
-- under any long snapshot, and every append would walk it.
CREATE TABLE log_turn (one_row boolean PRIMARY KEY DEFAULT true CONSTRAINT log_turn_has_one_row CHECK (one_row));
INSERT INTO log_turn DEFAULT VALUES;
COMMENT ON TABLE log_turn IS 'One row: whoever holds its lock may append.';

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on %.% is refused: the log is append-only', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER events_are_never_changed BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER log_turn_is_never_changed BEFORE UPDATE OR DELETE OR TRUNCATE ON log_turn
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
