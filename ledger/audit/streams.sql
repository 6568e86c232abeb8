-- streams: every event, stream by stream in byte order, and in a stream by version
SELECT position, stream, version, topic, state FROM events ORDER BY stream COLLATE "C", version
