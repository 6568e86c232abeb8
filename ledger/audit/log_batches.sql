-- head: the last position of the log
SELECT coalesce(max(position), 0) FROM events

-- batch: the head, and beside it the next events up to a position, as many as fit into a message, ...
SELECT h.head, e.position, e.stream, e.version, e.topic, e.recorded_at, e.state
FROM (SELECT coalesce(max(position), 0) AS head FROM events) AS h
LEFT JOIN (
    SELECT *, sum(octet_length(state)) OVER (ORDER BY position) - octet_length(state) AS bytes_before
    FROM (
        SELECT * FROM events WHERE position > %(after)s AND position <= %(until)s

-- of_topics: ... those of some topics, ...
AND topic = ANY (%(topics)s)

-- batch_end: ... in order
        ORDER BY position LIMIT %(events_most)s
    ) AS next
) AS e ON e.bytes_before < %(bytes_most)s
ORDER BY e.position

-- versions: the version at which each of some streams was at a position, by bisection, as versions have no gaps
WITH RECURSIVE halves (stream, low, high) AS (
    SELECT wanted.stream, 0::bigint, (SELECT max(version) FROM events WHERE events.stream = wanted.stream)
    FROM unnest(%(streams)b::text[]) AS wanted (stream)
    UNION ALL
    SELECT stream, CASE WHEN earlier THEN middle ELSE low END, CASE WHEN earlier THEN high ELSE middle - 1 END
    FROM halves,
         LATERAL (SELECT (low + high + 1) / 2 AS middle) AS m,
         LATERAL (
             SELECT position <= %(position)s AS earlier FROM events
             WHERE events.stream = halves.stream AND version = middle
         ) AS e
    WHERE low < high
)
SELECT stream, low FROM halves WHERE low = high

-- places: the head, and beside it where the next events of some streams are, and how large their states
SELECT h.head, e.position, e.stream, e.version, e.topic, e.bytes
FROM (SELECT coalesce(max(position), 0) AS head FROM events) AS h
LEFT JOIN (
    SELECT next.*
    FROM unnest(%(streams)b::text[], %(versions)b::bigint[]) AS wanted (stream, version),
         LATERAL (
             SELECT position, stream, version, topic, octet_length(state) AS bytes
             FROM events WHERE events.stream = wanted.stream AND events.version > wanted.version
             ORDER BY events.version LIMIT %(places_most)s
         ) AS next
) AS e ON true

-- events: those at some positions, in order
SELECT position, stream, version, topic, recorded_at, state
FROM events WHERE position = ANY (%(positions)b::bigint[]) ORDER BY position
