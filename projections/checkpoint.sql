-- create: how far each follower has come
CREATE TABLE IF NOT EXISTS checkpoints (
    name     text        COLLATE "C" NOT NULL CONSTRAINT checkpoints_one_per_follower PRIMARY KEY,
    position bigint      NOT NULL CONSTRAINT checkpoints_position_is_not_negative CHECK (position >= 0),
    moved_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    failure  text
) WITH (fillfactor = 10);
COMMENT ON TABLE checkpoints IS 'How far each follower of the log has come.';
COMMENT ON COLUMN checkpoints.position IS 'The last position that is applied.';
COMMENT ON COLUMN checkpoints.moved_at IS 'When it was applied.';
COMMENT ON COLUMN checkpoints.failure IS 'Why the follower stopped there; NULL if it did not.';
INSERT INTO checkpoints (name, position) VALUES ('read_models', 0) ON CONFLICT (name) DO NOTHING;

-- select: how far it has come, and why it stopped if it did
SELECT position, failure FROM checkpoints WHERE name = 'read_models'

-- watch: the same, with the head, and for how many seconds what comes next has been there
SELECT c.position, c.failure, (SELECT coalesce(max(position), 0) FROM events),
       coalesce(extract(epoch FROM clock_timestamp() - (SELECT recorded_at FROM events WHERE position = c.position + 1)), 0)::float8
FROM checkpoints AS c WHERE c.name = 'read_models'

-- move: compare and set
UPDATE checkpoints SET position = %(after)s, moved_at = clock_timestamp(), failure = NULL
WHERE name = 'read_models' AND position = %(before)s

-- fail: say why it stopped, unless somebody got further
UPDATE checkpoints SET failure = %(failure)s WHERE name = 'read_models' AND position = %(position)s

-- head: the last position of the log
SELECT coalesce(max(position), 0) FROM events

-- status: how far each follower has come, the head, and since when what it has not applied is there
SELECT c.name, c.position, c.failure, h.position,
       coalesce(extract(epoch FROM clock_timestamp() - (SELECT recorded_at FROM events WHERE position = c.position + 1)), 0)
FROM checkpoints AS c, (SELECT coalesce(max(position), 0) AS position FROM events) AS h
ORDER BY c.name
