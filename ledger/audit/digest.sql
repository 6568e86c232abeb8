-- streams: every event up to a position, stream by stream in byte order, and in a stream by version
SELECT position, stream, version, topic, state FROM events
WHERE position <= %(at)s
ORDER BY stream COLLATE "C", version
