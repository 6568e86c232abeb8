-- last_until: the head, and the last position recorded before a time, or right then too if it is `inclusive`.
-- By bisection, as positions have no gaps and their times never go backwards
WITH RECURSIVE head AS (SELECT coalesce(max(position), 0) AS position FROM events),
halves (low, high) AS (
    SELECT 0::bigint, position FROM head
    UNION ALL
    SELECT CASE WHEN earlier THEN middle ELSE low END, CASE WHEN earlier THEN high ELSE middle - 1 END
    FROM halves,
         LATERAL (SELECT (low + high + 1) / 2 AS middle) AS m,
         LATERAL (
             SELECT recorded_at < %(time)s::timestamptz OR (%(inclusive)s AND recorded_at = %(time)s::timestamptz) AS earlier
             FROM events WHERE position = middle
         ) AS e
    WHERE low < high
)
SELECT head.position, halves.low FROM head, halves WHERE halves.low = halves.high

-- whole: all events of streams up to a position, in order
SELECT e.position, e.stream, e.version, e.topic, e.state
FROM unnest(%(names)b::text[]) AS wanted (stream),
     LATERAL (
         SELECT * FROM events WHERE events.stream = wanted.stream AND position <= %(at)s ORDER BY version OFFSET 0
     ) AS e

-- last: the last event of accounts up to a position. Their history knows where that is; to go back to it from the newest event
-- would take as long as much has happened since
SELECT e.position, e.stream, e.version, e.topic, e.state
FROM unnest(%(names)b::text[]) AS wanted (account_id),
     LATERAL (
         SELECT position FROM entries
         WHERE entries.account_id = wanted.account_id AND position <= %(at)s ORDER BY position DESC LIMIT 1
     ) AS line,
     LATERAL (SELECT * FROM events WHERE events.position = line.position OFFSET 0) AS e

-- next: the event after a position
SELECT position, stream, version, topic, state FROM events WHERE position = %(position)s + 1
