-- share: let other connections see what this one does
SELECT pg_export_snapshot()

-- head: the last position
SELECT max(position) FROM events

-- log: every event, in the order in which it was recorded
SELECT position, stream, version, topic, recorded_at, state FROM events ORDER BY position
