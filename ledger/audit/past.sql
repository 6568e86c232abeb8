-- accounts: accounts as they were at a version: that event alone tells all
SELECT e.stream, e.version, e.topic, e.state
FROM unnest(%(streams)b::text[], %(versions)b::bigint[]) AS wanted (stream, version),
     LATERAL (SELECT * FROM events WHERE events.stream = wanted.stream AND events.version = wanted.version LIMIT 1) AS e

-- payments: all events of payments before a version
SELECT e.stream, e.version, e.topic, e.state
FROM unnest(%(streams)b::text[], %(versions)b::bigint[]) AS wanted (stream, version),
     LATERAL (
         SELECT * FROM events WHERE events.stream = wanted.stream AND events.version < wanted.version
         ORDER BY version OFFSET 0
     ) AS e
