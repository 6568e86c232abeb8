-- leaves: whether the event at a position is there, how many there are after it (at most `limit`), the last of them, and
-- the hashes of their leaves in one piece.
-- Postgres hashes them (docs/audit.md says what): to bring every event here for that would cost the server's process more.
SELECT %(after)s = 0 OR EXISTS (SELECT FROM events WHERE position = %(after)s), count(*), coalesce(max(position), %(after)s), coalesce(string_agg(hash, ''::bytea ORDER BY position), ''::bytea)
FROM (
    SELECT position, sha256(
        '\x000000000d'::bytea || 'ledger/leaf/1'::bytea
        || '\x00000008'::bytea || int8send(position)
        || int4send(octet_length(convert_to(stream, 'UTF8'))) || convert_to(stream, 'UTF8')
        || '\x00000008'::bytea || int8send(version)
        || int4send(octet_length(convert_to(topic, 'UTF8'))) || convert_to(topic, 'UTF8')
        || '\x00000008'::bytea || int8send((extract(epoch FROM recorded_at) * 1000000)::bigint)
        || int4send(octet_length(state)) || state
    ) AS hash
    FROM events WHERE position > %(after)s ORDER BY position LIMIT %(limit)s
) AS e

-- newest_head: the last one signed
SELECT number, tree_size, root_hash, note, signed_at FROM tree_heads ORDER BY number DESC LIMIT 1

-- head_of_size: the last one signed at just this size
SELECT number, tree_size, root_hash, note, signed_at FROM tree_heads
WHERE tree_size = %(tree_size)s ORDER BY number DESC LIMIT 1

-- tiles: those of some places
SELECT t.level, t.index, t.hashes
FROM unnest(%(levels)s::smallint[], %(indexes)s::bigint[]) AS wanted (level, index) JOIN tree_tiles AS t USING (level, index)
WHERE t.hashes IS NOT NULL

-- tiles_beyond: where a tree of some size has no tiles
SELECT level, index FROM tree_tiles
WHERE level < 0 OR index NOT BETWEEN 0 AND ((%(size)s::bigint >> least(8 * level, 63)) + 255) / 256 - 1
ORDER BY level, index

-- put_tiles: new ones, and those that have grown
INSERT INTO tree_tiles (level, index, hashes)
SELECT * FROM unnest(%(levels)s::smallint[], %(indexes)s::bigint[], %(hashes)b::bytea[])
ON CONFLICT (level, index) DO UPDATE SET hashes = EXCLUDED.hashes

-- add_head: the next one
INSERT INTO tree_heads (number, tree_size, root_hash, note) VALUES (%(number)s, %(tree_size)s, %(root_hash)s, %(note)s)

-- add_key: a public key, if it is new
INSERT INTO tree_keys (number, public_key, first_head)
SELECT (SELECT coalesce(max(number), 0) + 1 FROM tree_keys), %(public_key)s, %(first_head)s
WHERE NOT EXISTS (SELECT FROM tree_keys WHERE public_key = %(public_key)s)

-- last_break: the last one recorded
SELECT number, note FROM tree_breaks ORDER BY number DESC LIMIT 1

-- add_break: the next one
INSERT INTO tree_breaks (number, note) VALUES (%(number)s, %(note)s)

-- log_head: the last position of the log
SELECT coalesce(max(position), 0) FROM events
