-- append: add events after position `head`, which must be the last; reports one row per event, or none if the event that
-- was seen at `head` is not there any more
WITH turn AS MATERIALIZED (SELECT 1 FROM log_turn FOR UPDATE)
INSERT INTO events (stream, version, position, topic, recorded_at, state)
SELECT e.stream, e.version, %(head)s::bigint + e.place, e.topic, %(recorded_at)s::timestamptz, e.state
FROM turn,
     unnest(%(streams)t::text[], %(versions)t::bigint[], %(topics)t::text[], %(states)b::bytea[])
         WITH ORDINALITY AS e (stream, version, topic, state, place)
WHERE %(head)s::bigint = 0
   OR EXISTS (SELECT FROM events WHERE position = %(head)s::bigint AND recorded_at = %(head_recorded_at)s::timestamptz)

-- take_turn: wait until no other writer is appending, and keep others waiting until this transaction ends
SELECT 1 FROM log_turn FOR UPDATE

-- head: the last event's position and time
SELECT position, recorded_at FROM events ORDER BY position DESC LIMIT 1

-- holds: whether the event that was seen at `head` is there
SELECT EXISTS (SELECT FROM events WHERE position = %(head)s AND recorded_at = %(head_recorded_at)s)

-- load_head: part 0 of a load, the head. The parts that are needed are joined by UNION ALL: all is seen at one moment
SELECT 0 AS part, position, NULL AS stream, 0::bigint AS version, NULL AS topic, recorded_at, NULL::bytea AS state
FROM (SELECT position, recorded_at FROM events ORDER BY position DESC LIMIT 1) AS head

-- load_last: part 1, the last event of streams
SELECT 1 AS part, e.position, e.stream, e.version, e.topic, e.recorded_at, e.state
FROM unnest(%(last)b::text[]) AS wanted (stream),
     LATERAL (SELECT * FROM events WHERE events.stream = wanted.stream ORDER BY version DESC LIMIT 1) AS e

-- load_first: part 2, the first event of streams
SELECT 2 AS part, e.position, e.stream, e.version, e.topic, e.recorded_at, e.state
FROM unnest(%(first)b::text[]) AS wanted (stream),
     LATERAL (SELECT * FROM events WHERE events.stream = wanted.stream ORDER BY version LIMIT 1) AS e

-- load_whole: part 3, all events of streams
SELECT 3 AS part, e.position, e.stream, e.version, e.topic, e.recorded_at, e.state
FROM unnest(%(whole)b::text[]) AS wanted (stream),
     LATERAL (SELECT * FROM events WHERE events.stream = wanted.stream ORDER BY version OFFSET 0) AS e

-- load_newest: part 1, the last events of the accounts that the newest events are about. They are looked up one by one: as a
-- join Postgres read the whole log for them
SELECT 1 AS part, e.position, e.stream, e.version, e.topic, e.recorded_at, e.state
FROM (SELECT stream, max(version) AS version
      FROM (SELECT stream, version FROM events ORDER BY position DESC LIMIT %(newest)s) AS newest
      WHERE stream LIKE 'account/%%'
      GROUP BY stream) AS last,
     LATERAL (SELECT * FROM events WHERE events.stream = last.stream AND events.version = last.version OFFSET 0) AS e

-- moved: the streams that got events after a position
SELECT DISTINCT stream FROM events WHERE position > %(after)s

-- tail: what stands at the positions right after one
SELECT position, stream, version, topic, recorded_at, state
FROM events WHERE position > %(after)s ORDER BY position LIMIT %(limit)s

-- tail_of_topics: the same, of some topics only
SELECT position, stream, version, topic, recorded_at, state
FROM events WHERE position > %(after)s AND topic = ANY (%(topics)s) ORDER BY position LIMIT %(limit)s

-- stream: the events of one stream, oldest first
SELECT position, stream, version, topic, recorded_at, state
FROM events WHERE stream = %(stream)s AND version > %(after)s AND version <= %(up_to)s
ORDER BY version LIMIT %(limit)s

-- stream_newest_first: the events of one stream, newest first
SELECT position, stream, version, topic, recorded_at, state
FROM events WHERE stream = %(stream)s AND version > %(after)s AND version <= %(up_to)s
ORDER BY version DESC LIMIT %(limit)s

-- insert_at_head: add events right after the last one; for a transaction that holds the turn
INSERT INTO events (stream, version, position, topic, state)
SELECT e.stream, e.version, head.position + e.place, e.topic, e.state
FROM (SELECT coalesce(max(position), 0) AS position FROM events) AS head,
     unnest(%(streams)b::text[], %(versions)b::bigint[], %(topics)b::text[], %(states)b::bytea[])
         WITH ORDINALITY AS e (stream, version, topic, state, place)
RETURNING position

-- session: who this connection is to the server; only its login is told
SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()

-- clock: the server's
SELECT clock_timestamp()

-- end_session: end a connection of ours that was lost, so that nothing it still had in hand can be committed later
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid = %(pid)s AND backend_start = %(backend_start)s
