-- read: the event at the checkpoint, which must still be there, and those after it
SELECT position, stream, version, topic, state FROM events
WHERE position >= %(checkpoint)s ORDER BY position LIMIT %(limit)s + 1
